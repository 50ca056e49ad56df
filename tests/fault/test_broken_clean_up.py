"""The crash matrix notices a clean-up that is broken on purpose: copies of the product with a defect are guilty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.points import parse_case
from tests.crash.product_copy import NOT_TAKEN_OVER, ORPHANS_STAY, broken_copy
from tests.crash.serve import Player

pytestmark = pytest.mark.slow


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
