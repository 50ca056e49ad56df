"""What a running VM waits for, from the server's list of its pending steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo

from activities.pending import TAKEN_WITHIN_S, hindrance

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _step(
    name: str, *, waited_s: float = 0.0, failure: str = "", started: bool = False
) -> PendingActivityInfo:
    info = PendingActivityInfo(attempt=3 if failure else 1, maximum_attempts=36)
    info.activity_type.name = name
    states = PendingActivityState
    info.state = states.PENDING_ACTIVITY_STATE_STARTED if started else states.PENDING_ACTIVITY_STATE_SCHEDULED
    info.scheduled_time.FromDatetime(NOW - timedelta(seconds=waited_s))
    if failure:
        info.last_failure.message = failure
    return info


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([], ""),
        ([_step("transfer_disk", waited_s=900, started=True)], ""),
        ([_step("transfer_disk", waited_s=TAKEN_WITHIN_S - 1)], ""),
        ([_step("seal_backup", waited_s=40)], "seal_backup: no worker has taken it for 40 s"),
        (
            [_step("watch_snapshot", started=True), _step("transfer_disk", failure="the filer is away")],
            "transfer_disk, try 3 of 36: the filer is away",
        ),
    ],
)
def test_what_hinders_a_vm(steps: list[PendingActivityInfo], says: str) -> None:
    assert hindrance(steps, NOW) == says
