"""A repair tells what is lost, whether it may heal and what dropping costs; it drops only when told to."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

from safehaul.catalog.catalog import Catalog
from safehaul.media.audit import entries
from safehaul.media.forgotten import list_forgotten, recover
from safehaul.media.holds import place_hold, release_hold
from safehaul.media.manifest import (
    BackupIndex,
    BackupRef,
    list_backups,
    manifest_name,
    read_manifest,
    write_index,
)
from safehaul.media.repair_plan import Fate, Healing, clear_manifest, drop_lost, plan_repair
from safehaul.media.repository import Repository
from safehaul.media.store import LocalStore, open_deleting_store
from safehaul.media.verify import verify
from tests.unit.media_backup import CHUNK, DISK, back_up, flip, new_repository, pack_paths, reopen, restore
from tests.unit.test_cli import backup, config
from workers.cli.app import run

__all__ = ["backup", "config"]

OLD = random.Random(1).randbytes(6 * CHUNK)
NEW = OLD[: 4 * CHUNK] + random.Random(2).randbytes(2 * CHUNK)
"""Shares the first pack: four chunks."""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path)


def pack_of(repository: Repository, ref: BackupRef, chunk: int) -> Path:
    identity = read_manifest(repository, ref).disk_map(repository, DISK).chunk_id(chunk)
    (place,) = repository.index.lookup(identity)
    return next(path for path in pack_paths(repository) if path.name == place.pack.pack_id.hex())


def test_what_the_newest_backup_needs_too_may_heal_and_the_rest_hardly(
    repository: Repository, tmp_path: Path
) -> None:
    first = back_up(repository, "run-1", OLD)
    second = back_up(repository, "run-2", NEW, "20260102T000000Z")
    repository.refresh_index()
    pack_of(repository, first, 0).unlink()
    plan = plan_repair(repository, verify(reopen(tmp_path), full=True))
    assert {item.backup_id: item.healing for item in plan.backups} == {
        first.backup_id: Healing.LIKELY,
        second.backup_id: Healing.LIKELY,
    }
    assert [(vm.lost, vm.left, vm.newest_left) for vm in plan.vms] == [(2, 0, "")]
    pack_of(repository, first, 5).unlink()
    plan = plan_repair(repository, verify(reopen(tmp_path), full=True))
    assert {item.backup_id: item.healing for item in plan.backups} == {
        first.backup_id: Healing.POSSIBLE,
        second.backup_id: Healing.LIKELY,
    }
    assert [item.bytes_lost for item in plan.backups] == [6 * CHUNK, 4 * CHUNK]


def test_a_lost_map_never_heals(repository: Repository, tmp_path: Path) -> None:
    first = back_up(repository, "run-1", OLD)
    page = next(iter(repository.store.list("pages/"))).name
    second = back_up(repository, "run-2", NEW, "20260102T000000Z")
    flip(tmp_path / "repository" / page, 60)
    plan = plan_repair(repository, verify(reopen(tmp_path)))
    assert [(item.backup_id, item.healing, item.bytes_lost) for item in plan.backups] == [
        (first.backup_id, Healing.NO, len(OLD))
    ]
    assert [(vm.lost, vm.left, vm.newest_left) for vm in plan.vms] == [(1, 1, second.backup_id)]


def test_what_is_held_stays_and_a_manifest_is_made_again_from_its_session(
    repository: Repository, tmp_path: Path
) -> None:
    refs = [
        back_up(repository, f"run-{day}", random.Random(day).randbytes(3 * CHUNK), f"2026010{day}T000000Z")
        for day in (1, 2, 3, 4)
    ]
    repository.refresh_index()
    for ref in refs[:2]:
        pack_of(repository, ref, 1).unlink()
    flip(tmp_path / "repository" / manifest_name(refs[2]), 60)
    plan = plan_repair(repository, verify(reopen(tmp_path)))
    assert plan.remaining == 3
    forgotten: dict[BackupRef, str] = {}

    def forget(ref: BackupRef, reason: str) -> None:
        forgotten[ref] = reason

    store = open_deleting_store(repository.store.url)
    dropped = drop_lost(
        plan, forget, lambda ref: clear_manifest(repository, store, ref), lambda ref: ref == refs[1]
    )
    assert [item.fate for item in dropped.backups] == [Fate.FORGOTTEN, Fate.HELD, Fate.REBUILT]
    assert dropped.remaining == 1
    assert restore(repository, refs[2])
    # A collection has cleared the session since: then nothing is left to make it from.
    flip(tmp_path / "repository" / manifest_name(refs[2]), 60)
    for found in list(repository.store.list("sessions/")):
        store.delete(found.name)
    assert clear_manifest(repository, store, refs[2]) is Fate.DELETED
    assert not repository.store.exists(manifest_name(refs[2]))
    assert list(forgotten) == [refs[0]]
    assert "disk Hard disk 1 (key 2000) are lost" in forgotten[refs[0]]


def test_a_whole_repository_is_said_to_be_and_ends_with_0(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (config.parent / "repository" / "idx").iterdir():
        path.unlink()
    assert run(["--config", str(config), "repo", "repair"]) == 0
    told = capsys.readouterr().out
    assert "2 packs were listed again" in told
    assert "every backup is whole" in told
    assert run(["--config", str(config), "repo", "repair", "--full", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packs_listed"] == 0


def test_lost_data_is_told_with_what_dropping_costs_and_ends_with_1(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (config.parent / "repository" / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    before = sorted((config.parent / "repository" / "manifests").rglob("*"))
    assert run(["--config", str(config), "repo", "repair"]) == 1
    told = capsys.readouterr().out
    assert backup in told
    assert "likely, by the VM's next backup" in told
    assert "newest whole backup" in told
    assert sorted((config.parent / "repository" / "manifests").rglob("*")) == before


def test_a_damaged_gc_object_is_told_and_nothing_is_listed(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gc = config.parent / "repository" / "gc"
    gc.mkdir()
    (gc / "0000000001").write_bytes(b"junk")
    assert run(["--config", str(config), "repo", "repair"]) == 1
    assert "stop PruneRepository, delete the object" in capsys.readouterr().out


def test_lost_backups_are_dropped_only_when_it_is_confirmed_and_can_be_recovered(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (config.parent / "repository" / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    repair = ["--config", str(config), "repo", "repair"]
    assert run(["--config", str(config), "catalog", "rebuild"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run([*repair, "--drop-lost"]) == 2
    assert "confirm it with --yes" in capsys.readouterr().err
    assert run([*repair, "--yes"]) == 2
    repository = Repository.open(LocalStore(config.parent / "repository"))
    ref = BackupRef(*backup.split("/"))
    place_hold(repository, ref, "me@here", "a lawsuit")
    assert run([*repair, "--drop-lost", "--yes"]) == 1
    assert "stays: it is held" in capsys.readouterr().out
    store = open_deleting_store(repository.store.url)
    release_hold(store, ref)
    assert run([*repair, "--drop-lost", "--yes", "--json"]) == 0
    (dropped,) = json.loads(capsys.readouterr().out)["backups"]
    assert dropped["fate"] == "forgotten"
    assert [found.ref for found in list_forgotten(repository)] == [ref]
    catalog = Catalog(f"sqlite:///{config.parent}/catalog.db")
    assert catalog.list_backups() == []
    catalog.close()
    assert list(list_backups(repository)) == []
    assert [logged.entry.action for logged in entries(repository) if logged.entry] == ["forget"]
    assert run(repair) == 0
    assert recover(repository, store, ref).backup_id == ref.backup_id


def test_damaged_objects_of_no_use_are_deleted_with_what_is_lost(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = config.parent / "repository"
    ref = BackupRef(*backup.split("/"))
    repository = Repository.open(LocalStore(root))
    write_index(repository, BackupIndex(backup_id=ref.backup_id, vc_guid=ref.vc_guid, status="Completed"))
    verify(repository, full=True, note_damage=True)
    names = [
        next(found.name for found in repository.store.list(prefix))
        for prefix in ("idx/", "index/", "verified/")
    ]
    names.append("sessions/s1/outcome")
    for name in names:
        flip(root / name, 40)
    repair = ["--config", str(config), "repo", "repair", "--full"]
    assert run(repair) == 1
    told = capsys.readouterr().out
    assert "every backup is whole" in told
    assert all(name in told for name in names)
    assert run([*repair, "--drop-lost", "--yes"]) == 0
    told = capsys.readouterr().out
    assert all(f"deleted {name}" in told for name in names)
    assert run(repair) == 0
    assert verify(Repository.open(LocalStore(root)), full=True).sound
    assert run(["--config", str(config), "backups", "verify", backup]) == 0
