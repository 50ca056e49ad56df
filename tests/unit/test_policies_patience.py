"""How long a step waits for a peer that is away depends on what is held meanwhile: nothing, a snapshot, nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from workflows import policies
from workflows.policies import StepPolicy

MINUTE = timedelta(minutes=1)
FOR_EVER = timedelta.max


def patience(policy: StepPolicy) -> timedelta:
    """The pauses between a step's tries, summed up: the outage that it survives when each try fails at once."""
    retry = policy.retry
    longest = retry.maximum_interval or 100 * retry.initial_interval
    if not retry.maximum_attempts:
        return policy.schedule_to_close or FOR_EVER
    pauses = (
        min(retry.initial_interval * retry.backoff_coefficient**number, longest)
        for number in range(retry.maximum_attempts - 1)
    )
    return sum(pauses, timedelta())


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    [
        (policies.COORDINATOR, 8 * MINUTE, 12 * MINUTE),
        (policies.PREPARE, 1.5 * MINUTE, 3 * MINUTE),
        (policies.VM_STEP_BEFORE, 8 * MINUTE, 12 * MINUTE),
        (policies.SNAPSHOT, 2 * MINUTE, 5 * MINUTE),
        (policies.VM_STEP, 25 * MINUTE, 35 * MINUTE),
        (policies.TRANSFER, 25 * MINUTE, 35 * MINUTE),
        (policies.MEDIA_AGENT, 25 * MINUTE, 35 * MINUTE),
        (policies.VM_STEP_AFTER, 4 * 60 * MINUTE, 12 * 60 * MINUTE),
        (policies.MEDIA_AGENT_AFTER, 12 * 60 * MINUTE, 48 * 60 * MINUTE),
    ],
    ids=[
        "coordinator",
        "prepare",
        "before",
        "snapshot",
        "held",
        "transfer",
        "media agent held",
        "after",
        "media agent after",
    ],
)
def test_the_outage_that_a_step_survives(policy: StepPolicy, least: timedelta, most: timedelta) -> None:
    assert least <= patience(policy) <= most
