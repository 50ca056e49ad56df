"""`safehaul repo key`: slots by command, and never a secret in what is printed."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_cli import CONFIG
from workers.cli.app import run

FIRST, SECOND = "the first passphrase of all", "the second passphrase"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with a passphrase in the environment."""
    path = tmp_path / "safehaul.toml"
    text = CONFIG.format(home=tmp_path, installation=uuid.uuid4())
    path.write_text(text.replace("[[vm_groups]]", 'passphrase = { env = "VAULT_PASSPHRASE" }\n[[vm_groups]]'))
    monkeypatch.setenv("VAULT_PASSPHRASE", FIRST)
    monkeypatch.setenv("NEW_PASSPHRASE", SECOND)
    return path


def _run(config: Path, *arguments: str) -> int:
    return run(["--config", str(config), "repo", *arguments])


def _slots(config: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert _run(config, "key", "list", "--json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_a_secret_is_rotated_and_the_old_one_opens_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(config, "init") == 0
    told = capsys.readouterr().out
    assert "made the encrypted repository" in told
    assert "without it no backup can be read" in " ".join(told.split())
    (first,) = _slots(config, capsys)
    assert _run(config, "key", "rotate", "--passphrase-env", "NEW_PASSPHRASE", "--label", "ops") == 0
    assert "give every worker the new passphrase" in " ".join(capsys.readouterr().out.split())
    (second,) = _slots(config, capsys)
    assert second["slot_id"] != first["slot_id"]
    assert second["label"] == "ops"
    assert _run(config, "info") == 2
    refused = capsys.readouterr()
    assert "opens none of the 1 key slots" in " ".join(refused.err.split())
    monkeypatch.setenv("VAULT_PASSPHRASE", SECOND)
    assert _run(config, "info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["encrypted"] is True
    assert FIRST not in told + refused.err + refused.out


def test_a_key_file_is_added_and_removed_and_the_last_slot_stays(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(config, "init") == 0
    key = tmp_path / "vault.key"
    key.write_bytes(bytes(range(32)))
    assert _run(config, "key", "add", "--key-file", str(key)) == 0
    by_method = {slot["method"]: slot["slot_id"] for slot in _slots(config, capsys)}
    assert set(by_method) == {"passphrase", "key-file"}
    assert _run(config, "key", "remove", by_method["key-file"]) == 0
    assert _run(config, "key", "remove", by_method["passphrase"]) == 1
    assert "the last one" in " ".join(capsys.readouterr().err.split())


def test_what_is_done_with_keys_is_in_the_audit_log_without_any_secret(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(config, "init") == 0
    assert _run(config, "key", "add", "--passphrase-env", "NEW_PASSPHRASE", "--label", "ops") == 0
    added = next(slot["slot_id"] for slot in _slots(config, capsys) if slot["label"] == "ops")
    assert _run(config, "key", "remove", added) == 0
    assert _run(config, "key", "rotate", "--passphrase-env", "NEW_PASSPHRASE") == 0
    monkeypatch.setenv("VAULT_PASSPHRASE", SECOND)
    capsys.readouterr()
    assert _run(config, "audit", "--json") == 0
    told = capsys.readouterr().out
    entries = [item["entry"] for item in json.loads(told)]
    assert [entry["action"] for entry in entries] == ["key add", "key remove", "key rotate"]
    assert [entry["object_name"] for entry in entries[:2]] == [f"keys/{added}"] * 2
    assert entries[0]["details"] == {"method": "passphrase", "label": "ops"}
    assert FIRST not in told
    assert SECOND not in told


@pytest.mark.parametrize(
    "options", [[], ["--passphrase-env", "A", "--key-file", "/b"], ["--passphrase-file", "relative"]]
)
def test_one_reference_to_the_new_secret_is_needed(config: Path, options: list[str]) -> None:
    assert _run(config, "init") == 0
    assert _run(config, "key", "add", *options) == 2


def test_an_unencrypted_repository_has_no_keys(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace('passphrase = { env = "VAULT_PASSPHRASE" }', ""))
    assert _run(config, "init") == 0
    assert "who can read its files can read the backups" in " ".join(capsys.readouterr().out.split())
    assert _run(config, "key", "list") == 2
    assert "is not encrypted" in " ".join(capsys.readouterr().err.split())
