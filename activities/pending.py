"""What keeps a workflow's pending steps from getting on, as the server tells it by Describe."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo

# A step is taken at once by a worker that is there; a poll may be under way for a moment.
TAKEN_WITHIN_S = 10.0


def hindrance(pending: Iterable[PendingActivityInfo], now: datetime | None = None) -> str:
    """The first step that has failed before or that nobody takes, and why; empty when all get on."""
    now = now or datetime.now(UTC)
    for item in pending:
        name = item.activity_type.name
        failure = last_failure(item)
        if failure:
            return f"{name}, {failure}"
        waiting = item.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        seconds = (now - item.scheduled_time.ToDatetime(UTC)).total_seconds()
        if waiting and seconds > TAKEN_WITHIN_S:
            return f"{name}: no worker has taken it for {seconds:.0f} s"
    return ""


def last_failure(step: PendingActivityInfo) -> str:
    """Which try it is on, and why the one before failed; empty for a first one."""
    if not step.HasField("last_failure"):
        return ""
    tries = f"try {step.attempt}" + (f" of {step.maximum_attempts}" if step.maximum_attempts else "")
    return f"{tries}: {step.last_failure.message}"
