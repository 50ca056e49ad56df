"""A step's heartbeat: tells the server that the step lives, and the step that it is cancelled."""

from __future__ import annotations

from temporalio import activity
from temporalio.exceptions import CancelledError

Progress = int | float | str | None


def beat(*progress: Progress) -> None:
    """Heartbeat with `progress`; raises CancelledError when the workflow asked for the step's cancel.

    Steps call it where stopping is safe. When the worker shuts down the step stops in the same way and is tried
    again, by this worker's successor or by another one.
    """
    activity.heartbeat(*progress)
    if activity.is_cancelled() or activity.is_worker_shutdown():
        raise CancelledError("the step was asked to stop")


def keep_alive(*progress: Progress) -> None:
    """Heartbeat without looking at the cancel: for steps that must go on to their end (removal, commit)."""
    activity.heartbeat(*progress)
