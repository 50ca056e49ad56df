"""Goal: docs/configuration.md tells every key of the configuration as it is, and its examples can be copied."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from safehaul.config import reference_text as texts
from safehaul.config.example import example_toml, short_toml, with_own_id
from safehaul.config.fields import SizeBytes
from safehaul.config.loader import check, load
from safehaul.config.models import VmGroup
from safehaul.config.reference import HIDDEN, reference_markdown
from safehaul.config.secrets import SecretRef
from safehaul.config.settings import Settings
from safehaul.rules import RULE_KINDS, Rule
from tests.unit.test_config_used import MODELS, PRODUCT

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    hint = "write it anew: .venv/bin/safehaul config reference > docs/configuration.md"
    assert PAGE.read_text() == reference_markdown(), hint


@pytest.mark.parametrize("model", [*MODELS, SecretRef], ids=lambda model: model.__name__)
def test_every_key_is_told_and_has_a_meaning(model: type[BaseModel]) -> None:
    page = PAGE.read_text()
    keys = [key for key in model.model_fields if key not in HIDDEN]
    if model is Settings:
        assert [key for key in keys if f"](#{key}) |" not in page] == []
    else:
        assert [key for key in keys if not re.search(rf"(?m)^\| `{key}` \|", page)] == []
    assert [key for key in keys if not model.model_fields[key].description] == []


def test_no_cell_is_empty_and_no_python_shows() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert [row for row in rows if re.search(r"\|\s*\|", row)] == []
    assert [row for row in rows if re.search(r"\b(None|True|False|PydanticUndefined)\b", row)] == []


def test_the_examples_together_are_a_valid_configuration(tmp_path: Path) -> None:
    path = tmp_path / "safehaul.toml"
    path.write_text("\n".join(texts.EXAMPLES.values()))
    assert check(path) == []
    assert load(path).vm_group("nightly").quiesce_fallback
    assert set(texts.EXAMPLES) == {*Settings.model_fields, "temporal.tls", "vm_groups.retention"}


def test_the_short_example_is_valid_and_needs_little(tmp_path: Path) -> None:
    path = tmp_path / "safehaul.toml"
    path.write_text(short_toml())
    assert check(path) == []
    assert not load(path).temporal.tls.enabled
    assert len(short_toml().splitlines()) < 60


@pytest.mark.parametrize("text", [short_toml(), example_toml()])
def test_an_example_that_is_copied_has_an_id_of_its_own(tmp_path: Path, text: str) -> None:
    path = tmp_path / "safehaul.toml"
    path.write_text(with_own_id(text))
    first = load(path).installation_id
    path.write_text(with_own_id(text))
    assert load(path).installation_id != first


def test_the_example_of_each_kind_of_rule_is_one() -> None:
    assert list(texts.RULE_EXAMPLES) == list(RULE_KINDS)
    for kind, example in texts.RULE_EXAMPLES.items():
        rule: Any = TypeAdapter(Rule).validate_python(tomllib.loads(f"rule = {example}")["rule"])
        assert isinstance(rule, RULE_KINDS[kind]), kind


def test_the_other_examples_are_valid() -> None:
    filters = tomllib.loads(texts.DISK_FILTER_EXAMPLE)
    group = {"name": "x", "vcenter": "x", "media_agent": "x", "rules": [{"name": "*"}], **filters}
    assert len(VmGroup.model_validate(group).exclude_disks) == 3
    SecretRef.model_validate(tomllib.loads(texts.REFERENCE_EXAMPLE)["password"])


def test_every_size_on_the_page_is_one_that_the_file_takes() -> None:
    sizes = re.findall(r"`\"(\d[^\"]*B)\"`", PAGE.read_text())
    assert {"2 GiB", "64 MiB", "10 GiB"} <= set(sizes)
    for size in sizes:
        TypeAdapter(SizeBytes).validate_python(size)


def test_every_variable_that_the_product_reads_is_told() -> None:
    """Constants named like an environment variable, in the code that is not the lab's or the tests'."""
    found: set[str] = set()
    for folder in PRODUCT:
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"[\"'](SAFEHAUL_[A-Z]+(?:_[A-Z]+)*)[\"']", path.read_text()))
    assert {"SAFEHAUL_CONFIG", "SAFEHAUL_BUILD_ID", "SAFEHAUL_TRACES"} <= found
    assert sorted(name for name in found if f"`{name}`" not in PAGE.read_text()) == []
