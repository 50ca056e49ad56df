"""A step's heartbeat: tells the server that the step lives, and the step that it is cancelled."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from temporalio import activity
from temporalio.exceptions import CancelledError

from safehaul.errors import BusyError
from safehaul.messages.base import Message

Progress = int | float | str | Message | None

# A step's heartbeat time-out is 15 s and means that its worker is dead. One call of a step may block for longer: a
# vCenter that hangs (15 s for each of several calls), a filer, an fsync, a locked catalogue (30 s). The answer
# to a heartbeat also tells of a cancel: as often as the worker sends any.
PULSE_EVERY_S = 2.0
# Every blocking call of ours ends within minutes. A step that does not get on for longer hangs: the heartbeats stop.
PATIENCE_S = 300.0


class _Pulse:
    """Repeats the last heartbeat of a step while one of its calls blocks."""

    def __init__(self) -> None:
        self._progress: tuple[Progress, ...] = ()
        self._at = time.monotonic()
        self._end = threading.Event()

    def note(self, progress: tuple[Progress, ...]) -> None:
        """The step got on."""
        self._progress, self._at = progress, time.monotonic()

    def run(self) -> None:
        """Heartbeat until `stop`, or until the step has not got on for too long."""
        while not self._end.wait(PULSE_EVERY_S):
            if time.monotonic() - self._at > PATIENCE_S:
                return
            activity.heartbeat(*self._progress)

    def stop(self) -> None:
        """The step has ended."""
        self._end.set()


_pulse: contextvars.ContextVar[_Pulse | None] = contextvars.ContextVar("pulse", default=None)


@contextmanager
def pulse() -> Iterator[None]:
    """Keep the step alive for the server while it runs, also where it blocks between two heartbeats."""
    if activity.info().heartbeat_timeout is None:
        yield
        return
    beating = _Pulse()
    token = _pulse.set(beating)
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(beating.run,), name="pulse", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        beating.stop()
        thread.join()
        _pulse.reset(token)


def beat(*progress: Progress) -> None:
    """Heartbeat with `progress`, and stop the step here if it should: steps call it where stopping is safe.

    Raises:
        CancelledError: the workflow asked for the step's cancel.
        BusyError: the worker shuts down. The step is tried again by its successor or by another worker; an error
            of the cancel's kind would end the VM as Cancelled, although nobody cancelled it.
    """
    keep_alive(*progress)
    if activity.is_cancelled():
        raise CancelledError("the step was asked to stop")
    if activity.is_worker_shutdown():
        raise BusyError("this worker is shutting down: the step goes on in the next one")


def keep_alive(*progress: Progress) -> None:
    """Heartbeat without looking at the cancel: for steps that must go on to their end (removal, commit)."""
    beating = _pulse.get()
    if beating is not None:
        beating.note(progress)
    activity.heartbeat(*progress)
