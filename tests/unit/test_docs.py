"""The 17 steps stand in workflows, docstrings and the step table, and agree; links resolve."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.replay.test_golden_names import ACTIVITIES

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "architecture.md"
# Steps that are done by nobody of ours (7), or are the repetition of others (16).
WITHOUT_ACTIVITY = {7, 16}


def _table() -> dict[int, str]:
    rows = re.findall(r"(?m)^\| (\d+) \| (.*) \|$", TABLE.read_text())
    return {int(number): row for number, row in rows}


def _steps_in(docstring: str) -> set[int]:
    """The numbers that open a docstring: `Step 8: …`, `Steps 6 and 7: …`, `Before step 6: …`, `After step 17: …`."""
    opening = re.match(r"(?:Before |After )?[Ss]teps? (\d+)(?: and (\d+))?", docstring.strip())
    return {int(number) for number in opening.groups() if number} if opening else set()


def _docstrings() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for owner, names in ACTIVITIES.items():
        for name in names:
            found[name] = _steps_in(getattr(owner, name).__doc__ or "")
    return found


def test_every_step_stands_in_the_workflows() -> None:
    text = "".join(path.read_text() for path in (ROOT / "workflows").glob("*.py"))
    found = {int(number) for number in re.findall(r"# Step (\d+)", text)}
    assert found == set(range(1, 18))


def test_every_step_opens_the_docstring_of_an_activity() -> None:
    found = set().union(*_docstrings().values())
    assert found | WITHOUT_ACTIVITY >= set(range(1, 18))


def test_the_table_has_every_step_and_agrees_with_the_docstrings() -> None:
    table, docstrings = _table(), _docstrings()
    assert sorted(table) == list(range(1, 18))
    for number, row in table.items():
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert name in docstrings, f"step {number} names {name}, which is no activity"
    for name, steps in docstrings.items():
        for number in steps:
            assert f"`{name}`" in table[number], f"{name} says that it is step {number}; the table does not"


def test_every_link_of_the_documents_resolves() -> None:
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_module_of_the_story_says_who_it_is() -> None:
    for folder in ("workflows", "activities", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert path.read_text().startswith('"""'), path


def test_nothing_tracked_names_a_machine_or_a_registry() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    words = ("/work" + "/main", "py" + "pi.org", "pythonhosted" + ".org", "registry." + "npmjs")
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix != ".json":
            text = path.read_text("utf-8", "replace")
            assert not [word for word in words if word in text], name
