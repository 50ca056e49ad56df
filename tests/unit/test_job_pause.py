"""A job's pause over its runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from workflows.pause import JobPause

EARLIER = datetime(2026, 11, 26, 18, 0, tzinfo=UTC)
NOW = EARLIER + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("earlier", "spoken", "now", "then"),
    [
        (EARLIER, False, None, EARLIER),
        (None, False, None, None),
        (EARLIER, True, NOW, EARLIER),
        (EARLIER, True, None, None),
        (None, True, NOW, NOW),
    ],
)
def test_a_signal_between_two_runs_counts_more_than_what_the_earlier_run_knew(
    earlier: datetime | None, spoken: bool, now: datetime | None, then: datetime | None
) -> None:
    pause = JobPause()
    pause.has_news, pause.since = spoken, now
    pause.carry_on(earlier)
    assert pause.since == then
