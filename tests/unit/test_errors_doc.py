"""Goal: docs/errors.md names every type of error and no other, and quotes the messages as the code has them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from safehaul import errors
from workers.cli import exits

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
PRODUCT = ("safehaul", "activities", "workflows", "workers")


def _tables() -> Iterator[list[list[str]]]:
    """Each table as rows of cells, its head first."""
    for block in re.findall(r"(?m)(?:^\|.*\|\n)+", PAGE.read_text()):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        yield [rows[0], *rows[2:]]


def _column(head: str, index: int = 0) -> list[str]:
    return [row[index] for table in _tables() if table[0][0] == head for row in table[1:]]


def _every_error() -> dict[str, type[errors.SafehaulError]]:
    """Every class of the error tree but its root, wherever the product defines it."""
    for name in PRODUCT:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    found: dict[str, type[errors.SafehaulError]] = {}
    waiting = [errors.SafehaulError]
    while waiting:
        below = waiting.pop().__subclasses__()
        found |= {kind.__name__: kind for kind in below if kind.__module__.split(".")[0] in PRODUCT}
        waiting += below
    return found


@cache
def _said() -> str:
    """Every text of the product, the parts between an f-string's values apart."""
    texts: list[str] = []
    for folder in PRODUCT:
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            texts += [
                node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
    return "\0".join(texts)


def _fragments() -> list[str]:
    """The words of each quoted message, between its `…`."""
    quoted = [
        span
        for table in _tables()
        if (index := next((i for i, head in enumerate(table[0]) if head in {"message", "reason"}), None))
        is not None
        for row in table[1:]
        for span in re.findall(r"`([^`]+)`", row[index])
    ]
    return [part.strip(" :,;") for span in quoted for part in span.split("…") if len(part) > 3]


def test_every_type_of_error_is_on_the_page_with_whether_it_is_tried_again() -> None:
    told = {row[0].strip("`"): row[1] for table in _tables() if table[0][0] == "type" for row in table[1:]}
    known = _every_error()
    assert sorted(told) == sorted(known)
    again = {name for name, kind in known.items() if issubclass(kind, errors.TransientError)}
    assert {name for name, word in told.items() if word == "yes"} == again


def test_every_type_of_a_workflows_failure_is_on_the_page() -> None:
    found: set[str] = set()
    for path in (ROOT / "workflows").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "type":
                found |= {
                    part.value
                    for part in ast.walk(node.value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    # These two stand behind a function that passes a step's own type on.
    found |= {"JobFailed", "RestoreFailed"}
    told = {cell.strip("`") for cell in _column("type of a workflow's failure")}
    assert told == {name for name in found if not name.endswith("Error")}


def test_no_type_is_named_that_does_not_exist() -> None:
    assert set(re.findall(r"`(\w+Error)`", PAGE.read_text())) <= set(_every_error())


def test_every_exit_code_is_on_the_page() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)} - {
        exits.UNEXPECTED_LIMIT
    }
    assert {int(code) for code in _column("code")} == codes - {exits.OK}


@pytest.mark.parametrize("fragment", _fragments())
def test_the_messages_are_the_codes_own(fragment: str) -> None:
    assert fragment in _said()


def test_there_are_messages_of_every_step_that_can_fail() -> None:
    steps = {int(number) for cell in _column("step") for number in re.findall(r"\d+", cell)}
    assert steps >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17}
