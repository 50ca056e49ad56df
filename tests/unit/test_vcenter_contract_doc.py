"""Goal: docs/vcenter-contract.md says which server can do what, as the tests have it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.contract.lab_server import LabServer
from tests.contract.vcenter_server import Ability
from tests.contract.vcsim_server import VcsimServer

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "vcenter-contract.md").read_text()


def test_the_table_has_every_ability_and_who_has_it() -> None:
    rows = re.findall(r"(?m)^\| ([^|]+) \| (yes|no) \| (yes|no) \| ([^|]+) \|$", DOCUMENT)
    assert [(name, lab == "yes", vcsim == "yes") for name, lab, vcsim, _ in rows] == [
        (ability.value, ability in LabServer.abilities, ability in VcsimServer.abilities)
        for ability in Ability
    ]
    assert all(len(reason.strip()) > 20 for *_, reason in rows)


def test_every_property_that_is_never_set_is_written_down() -> None:
    assert all(f"`{path}`" in DOCUMENT for path in VcsimServer.never_set)


def test_every_ability_is_needed_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "contract").glob("test_*.py"))
    assert [ability.name for ability in Ability if f"Ability.{ability.name}" not in tests] == []


def test_every_suite_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", DOCUMENT))
    assert len(named) >= 6
    assert all((ROOT / "tests" / "contract" / name).exists() for name in named)
