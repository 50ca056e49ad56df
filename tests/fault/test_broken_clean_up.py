"""The crash matrix notices a clean-up that is broken on purpose: copies of the product with a defect are guilty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.points import parse_case
from tests.crash.product_copy import broken_copy
from tests.crash.serve import Player

pytestmark = pytest.mark.slow

NOT_TAKEN_OVER = {
    "workflows/policies.py": (
        "    retry=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=30)),\n",
        "    retry=_ONCE,\n",
    ),
    "workflows/snapshot_guard.py": (
        "return await hand_over(removal, vm.vm_group, explain(error))",
        "return Removal(gone=False, pending=True, moref=removal.moref, reason=explain(error))",
    ),
}
"""A removal that fails is neither tried again nor handed to RemoveSnapshot."""
ORPHANS_STAY = {
    "workflows/vm_runner.py": (
        "        if finished.orphaned:\n",
        "        if finished.orphaned and not finished.child_id:\n",
    ),
}
"""The job does not remove the snapshot of a VM whose workflow was terminated."""


@pytest.mark.parametrize(
    ("defects", "line"),
    [
        (NOT_TAKEN_OVER, "vcenter/late/vcenter:RemoveSnapshot_Task:1:before"),
        (ORPHANS_STAY, "commserve/at-once/zombie:terminated"),
    ],
    ids=["not-taken-over", "orphans-stay"],
)
def test_a_snapshot_that_a_defect_leaves_behind_is_found(
    defects: dict[str, tuple[str, str]], line: str, tmp_path: Path
) -> None:
    case = parse_case(line)
    with broken_copy(defects) as copy, Player(tmp_path, copy) as player:
        outcome = player.play(case)
    assert outcome.state == "played"
    assert any("snapshot" in item and "is left behind" in item for item in outcome.violations), outcome
    with Player(tmp_path) as player:
        assert player.play(case).violations == []
