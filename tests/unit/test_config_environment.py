"""Goal: the environment overrides the file key by key, and what is wrong there is blamed on the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehaul.config.example import example_toml
from safehaul.config.loader import check, load


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "safehaul.toml"
    path.write_text(example_toml())
    return path


def test_single_keys_of_tables_and_of_named_items_are_overridden(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEHAUL_TEMPORAL__ADDRESS", "other:7234")
    monkeypatch.setenv("SAFEHAUL_VCENTERS__MAIN__URL", "https://other:8443")
    monkeypatch.setenv("SAFEHAUL_ACCESS_NODES__NODE_2__STREAMS", "7")
    monkeypatch.setenv("SAFEHAUL_VM_GROUPS__NIGHTLY__ACCESS_NODES", '["node-2"]')
    settings = load(example)
    assert settings.temporal.address == "other:7234"
    assert settings.temporal.namespace == "backup"
    assert (settings.vcenter("main").host, settings.vcenter("main").port) == ("other", 8443)
    assert settings.vcenter("main").path == "/sdk"
    assert settings.access_node("node-2").streams == 7
    assert settings.vm_group("nightly").access_nodes == ("node-2",)


def test_a_reference_is_replaced_by_another_kind_whole(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEHAUL_VCENTERS__MAIN__PASSWORD", '{"env": "VC_PASSWORD"}')
    assert load(example).vcenter("main").password.env == "VC_PASSWORD"


def test_a_whole_list_is_replaced_by_json(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "SAFEHAUL_ACCESS_NODES", '[{"name": "node-1"}, {"name": "node-2"}, {"name": "node-3"}]'
    )
    assert [node.name for node in load(example).access_nodes] == ["node-1", "node-2", "node-3"]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("SAFEHAUL_ACCESS_NODES__NODE_2__STREAMS", "0", "greater than or equal to 1"),
        ("SAFEHAUL_TEMPORAL__ADRESS", "x:1", "did you mean 'address'?"),
        ("SAFEHAUL_CATALOGUE__URL", "sqlite:////x", "did you mean 'catalog'?"),
        ("SAFEHAUL_VCENTERS__OTHER__URL", "https://x", "there are: main"),
        ("SAFEHAUL_VM_GROUPS__NIGHTLY__VCENTER", "mian", "did you mean 'main'?"),
    ],
)
def test_a_wrong_value_is_blamed_on_its_variable(
    example: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    (problem,) = check(example)
    assert reason in problem.reason
    assert variable.startswith(problem.file.removeprefix("environment variable ").rstrip("_…"))


def test_broken_json_is_an_error_that_does_not_show_the_value(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEHAUL_VCENTERS", '[{"password": "S3cret!"')
    (problem,) = check(example)
    assert "vcenters" in problem.reason
    assert "S3cret!" not in str(problem)
