"""Goal: a rebuild makes the catalogue what the repository holds, whatever happens beside it, and the CLI tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activities.catalog_rebuild import Rebuilt, rebuild
from safehaul.catalog.catalog import Catalog
from safehaul.errors import ConnectionLostError
from safehaul.media import forgotten, manifest
from safehaul.media.manifest import BackupIndex, BackupRef, Manifest, manifest_name, write_index
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import open_session
from safehaul.media.store_local import LocalStore
from tests.contract.catalog_rows import backup as row
from tests.contract.catalog_rows import moment
from tests.unit.media_backup import contents, new_repository, write_disk
from tests.unit.test_cli import config
from workers.cli.app import run

__all__ = ["config"]
IMAGE = b"\x01" * 4096


def back_up(repository: Repository, vm: str, number: int, *, indexed: bool = True) -> BackupRef:
    session = open_session(
        repository,
        f"{vm}-{number}",
        vc_guid=vm,
        vm_name=f"name of {vm}",
        vm_group="nightly",
        point_in_time="snapshot-7",
        opened=f"2026010{number}T000000Z",
    )
    write_disk(session, IMAGE)
    verify_session(session)
    ref = commit(session, contents(IMAGE))
    if indexed:
        write_index(repository, BackupIndex(backup_id=ref.backup_id, vc_guid=vm, status="Completed"))
    return ref


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = new_repository(tmp_path)
    yield made
    made.close()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield made
    made.close()


def forget(repository: Repository, ref: BackupRef) -> None:
    """As a retention's run does."""
    store = repository.store
    assert isinstance(store, LocalStore)
    forgotten.forget(repository, store, ref, "too old")


def _rebuild(catalog: Catalog, repository: Repository) -> Rebuilt:
    return rebuild(catalog, repository, "vault", lambda _: None)


def test_a_rebuild_gives_the_same_rows_and_drops_those_of_what_is_gone(
    catalog: Catalog, repository: Repository, tmp_path: Path
) -> None:
    refs = [back_up(repository, vm, number) for vm in ("vm-a", "vm-b", "vm-c") for number in (1, 2)]
    other = row(1, media_agent="other")
    catalog.record_backups([other, row(2), row(3, vc_guid="vm-a")])
    told: list[str] = []
    assert rebuild(catalog, repository, "vault", told.append) == Rebuilt(backups=6, removed=2)
    assert told[-1] == "vault: 6 backups of 3 VMs"
    kept = list(catalog.export())
    assert len(kept) == 7
    assert catalog.list_backups(vm="guid-1") == [other]
    assert _rebuild(catalog, repository) == Rebuilt(backups=6)
    assert list(catalog.export()) == kept
    for ref in (refs[0], refs[2], refs[3]):
        forget(repository, ref)
    assert _rebuild(catalog, repository) == Rebuilt(backups=3, removed=3)
    assert catalog.known_vms("vault") == {"vm-a", "vm-c"}
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.db'}")
    _rebuild(fresh, repository)
    fresh.record_backup(other)
    assert list(fresh.export()) == list(catalog.export())
    fresh.close()


def test_a_backup_that_is_forgotten_while_it_is_read_is_passed_over(
    catalog: Catalog, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, staying = back_up(repository, "vm-a", 1), back_up(repository, "vm-a", 2)
    _rebuild(catalog, repository)

    def list_then_forget(repository: Repository) -> Iterator[BackupRef]:
        listed = list(manifest.list_backups(repository))
        forget(repository, going)
        yield from listed

    monkeypatch.setattr("activities.catalog_rebuild.list_backups", list_then_forget)
    assert _rebuild(catalog, repository) == Rebuilt(backups=1, removed=1)
    assert [item.backup_id for item in catalog.list_backups()] == [staying.backup_id]


def test_a_backup_that_is_committed_meanwhile_keeps_its_row(
    catalog: Catalog, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(repository, "vm-a", 1)

    def list_then_commit(repository: Repository) -> Iterator[BackupRef]:
        listed = list(real(repository))
        for vm in ("vm-a", "vm-new"):
            ref = back_up(repository, vm, 2)
            catalog.record_backup(row(9, vc_guid=vm, backup_id=ref.backup_id))
        yield from listed

    real = manifest.list_backups
    monkeypatch.setattr("activities.catalog_rebuild.list_backups", list_then_commit)
    assert _rebuild(catalog, repository) == Rebuilt(backups=1)
    assert sorted((item.vc_guid, item.vm_name) for item in catalog.list_backups()) == [
        ("vm-a", "Web 0 ü"),
        ("vm-a", "name of vm-a"),
        ("vm-new", "Web 0 ü"),
    ]


def test_a_damaged_manifest_is_named_and_hides_no_other(catalog: Catalog, repository: Repository) -> None:
    damaged, whole = back_up(repository, "vm-a", 1), back_up(repository, "vm-a", 2, indexed=False)
    store = repository.store
    assert isinstance(store, LocalStore)
    path = store.root / manifest_name(damaged)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-3])
    done = _rebuild(catalog, repository)
    assert done.backups == 1
    assert [line.split(":")[1].strip() for line in done.unread] == [f"vm-a/{damaged.backup_id}"]
    assert [(item.backup_id, item.status) for item in catalog.list_backups()] == [
        (whole.backup_id, "Unindexed")
    ]


def test_a_store_that_does_not_answer_costs_no_row(
    catalog: Catalog, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        back_up(repository, "vm-a", number)
    _rebuild(catalog, repository)
    before = list(catalog.export())

    def away(repository: Repository, ref: BackupRef) -> Manifest:
        raise ConnectionLostError("the store does not answer")

    monkeypatch.setattr("activities.catalog_rebuild.read_manifest", away)
    with pytest.raises(ConnectionLostError):
        _rebuild(catalog, repository)
    assert list(catalog.export()) == before


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def filled(config: Path) -> list[str]:
    """The command line with a configuration whose catalogue holds twelve backups."""
    catalog = Catalog(f"sqlite:///{config.parent}/catalog.db")
    catalog.record_backups(row(number) for number in range(1, 13))
    catalog.record_backup(row(13, status="Failed", media_agent="copy"))
    catalog.close()
    return ["--config", str(config)]


def test_a_long_list_goes_on_page_by_page(filled: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found: list[str] = []
    after: list[str] = []
    while True:
        assert run([*filled, "backups", "list", "--ids", "--limit", "5", *after]) == 0
        page = capsys.readouterr().out.split()
        if not page:
            break
        found += page
        after = ["--after", page[-1]]
    assert len(found) == len(set(found)) == 13
    assert run([*filled, "backups", "list", "--limit", "5"]) == 0
    assert f"--after {found[4]}" in capsys.readouterr().out
    assert run([*filled, "backups", "list", "--limit", "50"]) == 0
    assert "--after" not in capsys.readouterr().out
    assert run([*filled, "backups", "list", "--after", "no/such"]) == 2
    assert "no such backup" in capsys.readouterr().err


def test_a_page_does_not_end_between_two_copies_of_a_backup(
    filled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = Catalog(f"sqlite:///{Path(filled[1]).parent}/catalog.db")
    catalog.record_backups(row(number, media_agent=agent) for number in (11, 12) for agent in ("b", "a", "z"))
    catalog.close()
    found: list[str] = []
    after: list[str] = []
    while True:
        assert run([*filled, "backups", "list", "--limit", "2", "--json", *after]) == 0
        page = _json(capsys)
        if not page:
            break
        found += [f"{item['media_agent']} {item['committed']}" for item in page]
        after = ["--after", f"{page[-1]['vc_guid']}/{page[-1]['backup_id']}"]
    assert len(found) == len(set(found)) == 19


def test_backups_are_searched_and_bounded_in_time(
    filled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    day = moment(4).strftime("%Y-%m-%d")
    assert run([*filled, "backups", "list", "--search", "WEB 1", "--until", day, "--json"]) == 0
    assert [item["backup_id"] for item in _json(capsys)] == [row(1).backup_id]
    assert run([*filled, "backups", "list", "--until", "soon"]) == 2
    assert "--until 'soon'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("group", ["nightly", "weekly", "in all"]),
        ("status", ["Completed", "Failed", "in all"]),
        ("media-agent", ["copy", "vault", "in all"]),
    ],
)
def test_the_summary_adds_up(
    filled: list[str], by: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*filled, "backups", "summary", "--by", by]) == 0
    lines = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [line[0].strip() for line in lines] == names
    assert [int(line[1]) for line in lines][-1] == 13 == sum(int(line[1]) for line in lines[:-1])
    assert lines[-1][2].strip() == "1"
    assert run([*filled, "backups", "summary", "--group", "nightly", "--json"]) == 0
    assert sum(item["backups"] for item in _json(capsys)) == 7
    assert run([*filled, "backups", "summary", "--since", "2030-01-01"]) == 0
    assert "no backup was found" in capsys.readouterr().out


def test_the_catalogue_is_upgraded_by_a_command(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", str(config), "catalog", "upgrade"]
    assert run([*base, "--json"]) == 0
    assert _json(capsys) == {"before": None, "now": "0002"}
    assert run(base) == 0
    assert "has schema 0002 already" in capsys.readouterr().out
