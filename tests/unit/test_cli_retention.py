"""`safehaul retention …` and `safehaul repo audit`: what is kept and why, holds, recovery, and who did what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.peers import Peers
from activities.restore_desk import RestoreDesk
from activities.upkeep_prune import UpkeepPrune
from safehaul.errors import RepositoryFullError
from safehaul.media import audit
from safehaul.media.canonical import canonical_json
from safehaul.media.envelope import Kind
from safehaul.media.forgotten import Forgotten
from safehaul.media.manifest import BackupRef, forgotten_name, read_manifest
from safehaul.messages.prune import PruneStep
from safehaul.messages.restore import OpenRestoreInput, RestoreVmRequest
from tests.unit.retained_site import add_backup, committed, listed, make_site
from workers.cli.app import run


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, Peers, list[BackupRef]]]:
    """A configuration that keeps three days, and five backups of as many days."""
    config, peers = make_site(tmp_path)
    yield config, peers, [add_backup(peers, days) for days in range(5)]
    peers.close()


Site = tuple[Path, Peers, list[BackupRef]]


class _Cli:
    """Runs commands over a configuration."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._config, self._capsys = str(config), capsys

    def json(self, *arguments: str) -> Any:
        self._capsys.readouterr()
        assert run(["--config", self._config, *arguments, "--json"]) == 0
        return json.loads(self._capsys.readouterr().out)

    def text(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        assert run(["--config", self._config, *arguments]) == code
        told = self._capsys.readouterr()
        return " ".join((told.out + told.err).split())


@pytest.fixture
def cli(site: Site, capsys: pytest.CaptureFixture[str]) -> _Cli:
    return _Cli(site[0], capsys)


def _prune(peers: Peers) -> None:
    ActivityEnvironment().run(UpkeepPrune(peers).forget_backups, PruneStep(media_agent="vault"))


def _name(ref: BackupRef) -> str:
    return f"{ref.vc_guid}/{ref.backup_id}"


def test_the_rules_and_the_holds_are_shown(site: Site, cli: _Cli) -> None:
    told = cli.text("retention", "show")
    assert "nightly" in told
    assert "3 daily, at least 1" in told
    assert "no backup is held" in told
    cli.json("retention", "hold", _name(site[2][4]), "--reason", "case 7")
    found = cli.json("retention", "show")
    assert found["rules"]["nightly"]["daily"] == 3
    assert [item["reason"] for item in found["holds"]] == ["case 7"]
    assert "case 7" in cli.text("retention", "show")


def test_a_preview_says_what_the_prune_then_does(site: Site, cli: _Cli) -> None:
    _, peers, refs = site
    before = committed(peers.repository("vault"))
    rows = cli.json("retention", "preview", "nightly")
    assert [row["keep"] for row in rows] == [True, True, True, False, False]
    assert "the next prune forgets 2 and keeps 3" in cli.text("retention", "preview")
    assert "kept: daily" in cli.text("retention", "preview", "--vm", "name of vc.vm")
    assert committed(peers.repository("vault")) == before
    _prune(peers)
    assert committed(peers.repository("vault")) == sorted(row["backup_id"] for row in rows if row["keep"])
    assert "no VM group 'weekly'" in cli.text("retention", "preview", "weekly", code=2)
    assert refs[0].backup_id in listed(peers)


def test_a_backup_is_held_and_released(site: Site, cli: _Cli) -> None:
    _, peers, refs = site
    held = _name(refs[4])
    assert "is held: case 7" in cli.text("retention", "hold", held, "--reason", "case 7")
    assert "is held already, by" in cli.text("retention", "hold", held, "--reason", "again", code=1)
    _prune(peers)
    assert refs[4].backup_id in committed(peers.repository("vault"))
    cli.json("retention", "release", held)
    assert "is not held" in cli.text("retention", "release", held, code=1)
    _prune(peers)
    assert refs[4].backup_id not in committed(peers.repository("vault"))


def test_a_forgotten_backup_is_listed_and_comes_back_held(site: Site, cli: _Cli) -> None:
    _, peers, refs = site
    assert "no forgotten backup" in cli.text("retention", "forgotten")
    _prune(peers)
    rows = cli.json("retention", "forgotten")
    assert {row["backup"] for row in rows} == {_name(ref) for ref in refs[3:]}
    assert "no rule keeps it" in cli.text("retention", "forgotten", "--vm", "vc.vm")
    gone = _name(refs[3])
    assert "is back" in cli.text("retention", "recover", gone)
    assert refs[3].backup_id in committed(peers.repository("vault"))
    assert refs[3].backup_id in listed(peers)
    _prune(peers)
    assert refs[3].backup_id in committed(peers.repository("vault")), "it is held"
    assert "is not among the forgotten ones" in cli.text("retention", "recover", gone, code=1)
    assert cli.json("retention", "recover", _name(refs[4]), "--no-hold")["held"] is False
    assert "not of the form" in cli.text("retention", "recover", "web/latest/x", code=2)


def test_a_forgotten_backup_can_be_held_and_the_command_says_what_next(site: Site, cli: _Cli) -> None:
    _, peers, refs = site
    _prune(peers)
    told = cli.text("retention", "hold", _name(refs[4]), "--reason", "case 7")
    assert "the next prune brings it back" in told
    assert "is not among the forgotten ones" in cli.text(
        "retention", "hold", "vc.vm/20200101T000000Z-0000000000000000", "--reason", "x", code=1
    )


def test_what_describes_another_backup_is_not_recovered(site: Site, cli: _Cli) -> None:
    """Goal: an unreadable manifest, which would stop every collection, is not made of what a thief put there."""
    _, peers, refs = site
    repository, invented = peers.repository("vault"), BackupRef("vc.vm", "20200101T000000Z-0000000000000000")
    content = Forgotten(forgotten="20200101T000000Z", reason="x", manifest=read_manifest(repository, refs[0]))
    repository.put(Kind.FORGOTTEN, forgotten_name(invented), canonical_json(content.model_dump()))
    assert "describes backup" in cli.text("retention", "recover", _name(invented), code=1)
    assert invented.backup_id not in committed(repository)


def test_the_log_has_what_was_done_and_by_whom(site: Site, cli: _Cli, tmp_path: Path) -> None:
    _, peers, refs = site
    name = _name(refs[0])
    cli.json("retention", "hold", name, "--reason", "case 7")
    cli.json("retention", "release", name)
    cli.json("restore", "disk", name, "2000", "--to", str(tmp_path / "disk.raw"))
    request = RestoreVmRequest(backup=name, name="again", datastore="ds")
    ActivityEnvironment().run(RestoreDesk(peers).open_restore, OpenRestoreInput(request=request))
    _prune(peers)
    found = [item["entry"] for item in cli.json("repo", "audit")]
    assert [entry["action"] for entry in found] == ["hold", "release", "read", "restore", "forget"]
    assert {entry["actor"] for entry in found} == {audit.actor()}
    assert found[3]["details"]["as"] == "again"
    assert "case 7" in cli.text("repo", "audit", "--since", "1h")
    assert cli.json("repo", "audit", "--since", "2199-01-01") == []
    assert "no entry since then" in cli.text("repo", "audit", "--since", "2199-01-01")


def test_a_restore_goes_on_when_the_log_cannot_be_written(
    site: Site, cli: _Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: whoever must restore from a full repository can."""

    def full(*_args: Any) -> None:
        raise RepositoryFullError("the repository is full")

    monkeypatch.setattr(audit, "append", full)
    told = cli.text("restore", "disk", _name(site[2][0]), "2000", "--to", str(tmp_path / "disk.raw"))
    assert "the audit log has no entry of this: the repository is full" in told
    assert (tmp_path / "disk.raw").read_bytes() == b"x" * 5000
