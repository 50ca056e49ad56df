"""What a verification says of each kind of damage, and of what is no damage any more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from safehaul.errors import BusyError
from safehaul.media import verified
from safehaul.media.collection import record_damaged
from safehaul.media.forgotten import forget
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import BackupIndex, index_name, write_index
from safehaul.media.repair import repair_index
from safehaul.media.repository import Repository
from safehaul.media.sessions import open_session
from safehaul.media.store import open_deleting_store
from safehaul.media.verified import Findings, put_findings, read_findings
from safehaul.media.verify import verify
from safehaul.messages.base import Request
from safehaul.messages.copy import CopyBackupsRequest
from safehaul.messages.verify import (
    HISTORY_LIMIT,
    Damage,
    VerifyMode,
    VerifyReport,
    VerifyRepositoryRequest,
)
from tests.unit.media_backup import (
    CHUNK,
    SECRETS,
    VM,
    back_up,
    flip,
    new_repository,
    new_session,
    pack_paths,
    reopen,
    restore,
    write_disk,
)
from tests.unit.test_verify import aged, sample

IMAGE = random.Random(1).randbytes(40 * CHUNK)
OTHER = random.Random(2).randbytes(20 * CHUNK)
LONG_AGO = 1_700_000_000


@pytest.fixture(params=SECRETS)
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Repository]:
    made = new_repository(tmp_path, secret=request.param)
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path: Path) -> Repository:
    return new_repository(tmp_path)


def test_what_was_noted_and_healed_is_a_leftover_and_no_alarm(repository: Repository, tmp_path: Path) -> None:
    first = back_up(repository, "run-1", IMAGE)
    flip(pack_paths(repository)[0], 200)
    report = verify(repository, full=True, note_damage=True)
    assert not report.sound
    assert [item.backup_id for item in report.damaged_backups] == [first.backup_id]
    assert report.damaged_backups[0].newest
    assert report.damaged_backups[0].by_chunks
    healing = reopen(tmp_path)
    back_up(healing, "run-2", IMAGE, "20260102T000000Z")
    assert restore(healing, first) == IMAGE
    for again in (verify(healing, full=True), verify(healing), sample(healing)):
        assert again.sound
        assert again.damaged_packs == again.leftovers == report.damaged_packs


def test_a_noted_pack_is_read_in_every_mode_and_takes_nothing_of_the_sample(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    damaged = pack_paths(plain)[0]
    flip(damaged, 200)
    verify(plain, full=True, note_damage=True)
    for report in (verify(plain), sample(plain)):
        assert report.damaged_packs == [damaged.name]
        assert {item.lost for item in report.touched} == {True, False}
        assert not report.sound


def _damage_object(repository: Repository, prefix: str) -> str:
    root = Path(repository.store.url.removeprefix("file://"))
    name = next(found.name for found in repository.store.list(prefix))
    flip(root / name, 50)
    return name


@pytest.mark.parametrize(
    ("prefix", "problem", "advice"),
    [
        ("gc/", "gc/", "stop PruneRepository, delete the object"),
        ("idx/", "idx/", "repo repair"),
        ("sessions/unfinished/disk-2000/", "unfinished backup of VM web 1", "begins a new session"),
        ("sessions/unfinished/", "unfinished backup", "begins a new session"),
        ("pages/", "pages/", "back the VM up again"),
        ("index/", "index/", "itself can be restored"),
        ("manifests/", "manifests/", "--drop-lost"),
    ],
)
def test_a_damaged_object_is_named_with_what_it_touches_and_what_to_do(
    repository: Repository, tmp_path: Path, prefix: str, problem: str, advice: str
) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    write_index(repository, BackupIndex(backup_id=ref.backup_id, vc_guid=VM, status="Completed"))
    record_damaged(repository, [bytes(32)])
    write_disk(new_session(repository, "unfinished"), OTHER)
    name = _damage_object(repository, prefix)
    report = verify(reopen(tmp_path))
    found = [item for item in report.damage if item.object_name == name]
    assert len(found) == 1
    assert problem in found[0].problem
    assert advice in found[0].advice
    assert not report.sound
    touches = bool(report.damaged_backups)
    assert touches == (prefix in {"idx/", "pages/", "manifests/"})
    if prefix == "idx/":
        assert repair_index(reopen(tmp_path)) == len(pack_paths(repository))
    assert index_name(ref)


def test_findings_that_are_superseded_are_named_and_nothing_else(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    now = 4_000_000_000
    first = verify(plain, full=True, note_damage=True)
    assert verified.superseded(plain, now) == []
    ids = "".join(path.name for path in pack_paths(plain)[:2])
    put_findings(plain, "20990101T000000Z-b", Findings(mode=VerifyMode.FULL, recorded=now, sound=ids))
    assert verified.superseded(plain, now) == []
    everything = "".join(path.name for path in pack_paths(plain))
    put_findings(plain, "20990102T000000Z-c", Findings(mode=VerifyMode.FULL, recorded=now, sound=everything))
    names = verified.superseded(plain, now)
    assert {name.split("/")[1] for name in names} == {first.run, "20990101T000000Z-b"}


def test_two_that_record_at_once_lose_nothing(plain: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [bytes([number]) * 32 for number in range(3)]
    monkeypatch.setattr(plain.store, "list", lambda _prefix: iter(()))
    for pack in ids:
        put_findings(plain, "run", Findings(mode=VerifyMode.FULL, sound=pack.hex()))
    monkeypatch.undo()
    assert [part.sound for part in read_findings(plain, "run")] == [pack.hex() for pack in ids]


def test_a_store_that_is_away_stops_it_and_is_no_damage(
    plain: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(plain, "run-1", IMAGE)

    def away(*_: object) -> None:
        raise BusyError("the store is away")

    monkeypatch.setattr(plain.store, "read_into", away)
    with pytest.raises(BusyError):
        verify(plain, full=True, note_damage=True)
    assert list(plain.store.list("gc/")) == []


def test_the_report_of_a_workflow_is_bounded() -> None:
    damage = [Damage(object_name=f"packs/{number}", problem="x") for number in range(300)]
    report = VerifyReport(damage=damage, damage_omitted=5).for_history()
    assert len(report.damage) == HISTORY_LIMIT
    assert report.damage_omitted == 205
    assert not report.sound


def test_a_session_of_another_vm_is_told_by_its_name(plain: Repository) -> None:
    session = open_session(plain, "s", vc_guid="vc.other", vm_name="db 1", point_in_time="snapshot-1")
    write_disk(session, OTHER)
    _damage_object(plain, "sessions/s/disk-2000/")
    (found,) = verify(plain).damage
    assert "db 1 (vc.other)" in found.problem


def test_a_collection_removes_what_is_left_of_a_healed_pack(repository: Repository, tmp_path: Path) -> None:
    first = back_up(repository, "run-1", IMAGE)
    damaged = pack_paths(repository)[0]
    flip(damaged, 200)
    verify(repository, full=True, note_damage=True)
    healing = reopen(tmp_path)
    back_up(healing, "run-2", IMAGE, "20260102T000000Z")
    store = open_deleting_store(healing.store.url)
    for _ in range(4):
        collect(reopen(tmp_path), store, CollectOptions(grace_s=0, session_lease_s=0))
    assert not damaged.exists()
    # In a process that knows nothing of it yet, and in one that has the old lists in its index.
    for known in (reopen(tmp_path), healing, repository):
        report = verify(known, full=True)
        assert report.sound
        assert report.leftovers == report.damaged_packs == []
        assert restore(known, first) == IMAGE


def test_a_damaged_forgotten_backup_and_a_damaged_outcome_are_named(
    plain: Repository,
) -> None:
    ref = back_up(plain, "run-1", IMAGE)
    outcome = "sessions/run-1/outcome"
    flip(Path(plain.store.url.removeprefix("file://")) / outcome, 50)
    forget(plain, open_deleting_store(plain.store.url), ref, "old")
    forgotten = _damage_object(plain, "forgotten/")
    found = {item.object_name: item.advice for item in verify(plain).damage}
    assert "cannot be recovered" in found[forgotten]
    assert "no collection can run" in found[outcome]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (VerifyRepositoryRequest, {"media_agent": "v", "mode": "deep"}, "mode"),
        (VerifyRepositoryRequest, {"media_agent": "v", "sample_percent": 9, "sample_bytes": 9}, "not both"),
        (VerifyRepositoryRequest, {"media_agent": "v", "mode": "light", "max_age_days": 9}, "goes with mode"),
        (CopyBackupsRequest, {"source": "v", "target": "v"}, "the source itself"),
        (CopyBackupsRequest, {"source": "v", "since": "2026-01-01T00:00:00"}, "time zone"),
        (CopyBackupsRequest, {"source": "v", "what": 1}, "what"),
    ],
)
def test_what_a_person_gives_wrongly_is_named(
    kind: type[Request], values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(values)
