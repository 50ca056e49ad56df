"""Every key of the configuration does something: the program that is configured reads it, not only its checks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import BaseModel

from safehaul.config import models
from safehaul.config.fields import Section
from safehaul.config.media_agent import MediaAgent
from safehaul.config.settings import Settings
from safehaul.messages.exports import ExportDefinition
from safehaul.retention import Retention

BY_NAME = {Retention}
"""Its keys are read by their names: tests/unit/test_retention.py tries each."""

ROOT = Path(__file__).parents[2]
PRODUCT = ("safehaul", "activities", "workflows", "workers")
MODELS: tuple[type[BaseModel], ...] = (
    Settings,
    models.TlsSettings,
    models.TemporalSettings,
    models.CatalogSettings,
    models.VCenter,
    models.AccessNode,
    MediaAgent,
    models.DiskFilter,
    models.VmGroup,
    ExportDefinition,
)


def _attributes(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def _is_check(function: ast.FunctionDef) -> bool:
    """Validators look at a key without using it."""
    return any("validator" in ast.unparse(decorator) for decorator in function.decorator_list)


def _used() -> set[str]:
    """Attributes that the product reads outside the configuration, and what the methods that it calls read for it."""
    outside: set[str] = set()
    methods: dict[str, set[str]] = {}
    for folder in PRODUCT:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            inside = "config" in path.parent.parts or path.name == "exports.py"
            if not inside:
                outside |= _attributes(tree)
                continue
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                if not _is_check(function):
                    methods.setdefault(function.name, set()).update(_attributes(function))
    outside |= methods.get("__str__", set())
    while True:
        more = set().union(*(read for name, read in methods.items() if name in outside)) - outside
        if not more:
            return outside
        outside |= more


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_read_somewhere(model: type[BaseModel]) -> None:
    assert sorted(set(model.model_fields) - _used()) == []


def test_no_model_is_left_out() -> None:
    found = {
        item
        for item in vars(models).values()
        if isinstance(item, type) and issubclass(item, Section) and item is not Section
    }
    assert found <= {*MODELS, *BY_NAME}


def test_a_key_that_nobody_reads_would_be_found() -> None:
    assert "labels_that_nobody_reads" not in _used()
