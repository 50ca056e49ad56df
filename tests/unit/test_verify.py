"""A verification goes on where it was killed, reads the oldest first, and tells damage from what a collection took."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from safehaul.errors import BusyError
from safehaul.media.collection import PREFIX, Generation, record_damaged
from safehaul.media.envelope import Kind
from safehaul.media.forgotten import forget, purge
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import BackupIndex, index_name, manifest_name, write_index
from safehaul.media.repair import repair_index
from safehaul.media.repository import Repository
from safehaul.media.sessions import open_session
from safehaul.media.store import open_deleting_store
from safehaul.media.verified import Findings, drop_superseded, put_findings, read_findings
from safehaul.media.verify import Verification, next_stage, verify
from safehaul.media.verify_summary import summarise
from safehaul.messages.base import Request
from safehaul.messages.copy import CopyBackupsRequest
from safehaul.messages.verify import (
    HISTORY_LIMIT,
    Damage,
    PackMark,
    VerifyMode,
    VerifyProgress,
    VerifyReport,
    VerifyRepositoryRequest,
    VerifyStage,
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


def aged(repository: Repository, seconds: int = LONG_AGO) -> None:
    """The packs were stored long ago, one second after the other."""
    for number, path in enumerate(pack_paths(repository)):
        os.utime(path, (seconds + number, seconds + number))


def sample(repository: Repository, percent: float = 25.0) -> VerifyReport:
    return verify(repository, sample_percent=percent, note_damage=True)


def read_packs(repository: Repository, report: VerifyReport) -> set[str]:
    found = "".join(part.sound for part in read_findings(repository, report.run))
    return {found[at : at + 64] for at in range(0, len(found), 64)}


def test_four_samples_of_a_quarter_read_everything_once(repository: Repository) -> None:
    back_up(repository, "run-1", IMAGE)
    aged(repository)
    everything = {path.name for path in pack_paths(repository)}
    seen: list[str] = []
    for _ in range(4):
        report = sample(repository)
        assert report.sound
        assert 0 < report.bytes_read < report.bytes_total
        seen += read_packs(repository, report)
    assert set(seen) == everything
    # A pack's granularity: each sample may take one pack more than a quarter.
    assert len(seen) <= len(everything) + 4


def test_a_new_pack_counts_as_verified_by_its_read_back(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    old = {path.name for path in pack_paths(plain)}
    back_up(plain, "run-2", OTHER, "20260102T000000Z")
    for _ in range(3):
        report = sample(plain, 15)
        assert read_packs(plain, report) <= old
    assert report.oldest_verified


def test_what_is_older_than_a_limit_is_read_whatever_the_sample(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    work = Verification(plain, VerifyMode.SAMPLE, LONG_AGO + 86_400 + 3, lambda _: None, lambda _: None)
    request = VerifyRepositoryRequest(media_agent="v", sample_bytes=1, max_age_days=1)
    assert work.plan(request).packs == 3
    assert work.plan(request.model_copy(update={"max_age_days": None})).packs == 1
    work.close()


def test_a_record_from_the_future_hides_no_pack(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    ids = "".join(path.name for path in pack_paths(plain))
    put_findings(
        plain, "29991231T000000Z-x", Findings(mode=VerifyMode.FULL, recorded=32_503_680_000, sound=ids)
    )
    assert sample(plain, 100).bytes_read == sum(path.stat().st_size for path in pack_paths(plain))


class _KilledError(Exception):
    pass


def _run(
    repository: Repository, mode: VerifyMode, started_at: int, kill_after: int | None, start: VerifyProgress
) -> tuple[VerifyProgress, bool]:
    """Go on until the end, or a kill after some heartbeats; where the last heartbeat was, and whether it ended."""
    told, beats = start, 0

    def beat(progress: VerifyProgress) -> None:
        nonlocal told, beats
        told, beats = progress, beats + 1
        if kill_after is not None and beats > kill_after:
            raise _KilledError

    work = Verification(
        repository,
        mode,
        started_at,
        lambda findings: put_findings(repository, "run", findings),
        beat,
        note_damage=True,
        known=read_findings(repository, "run"),
    )
    until = PackMark(verified_at=started_at, pack="ff" * 32)
    try:
        progress = start
        while True:
            progress = work.run(progress, until if mode is VerifyMode.FULL else None, lambda: True)
            if progress.stage_done:
                if progress.stage is VerifyStage.BACKUPS:
                    return progress, True
                following = list(VerifyStage)[list(VerifyStage).index(progress.stage) + 1]
                progress = progress.model_copy(update=next_stage(following))
            told = progress
    except _KilledError:
        return told.model_copy(update={"stage_done": False}), False
    finally:
        work.close()


@pytest.mark.parametrize("mode", [VerifyMode.FULL, VerifyMode.LIGHT])
def test_a_verification_that_is_killed_everywhere_finds_the_same_as_one_that_is_not(
    plain: Repository, mode: VerifyMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safehaul.media.verify.RECORD_EVERY_S", 0.0)
    back_up(plain, "run-1", IMAGE)
    back_up(plain, "run-2", OTHER, "20260102T000000Z")
    new_session(plain, "unfinished")
    aged(plain)
    paths = pack_paths(plain)
    flip(paths[1], 200)
    paths[3].write_bytes(paths[3].read_bytes()[:-1])
    paths[5].unlink()
    expected = verify(reopen(tmp_path), full=mode is VerifyMode.FULL)
    progress, ended, tries = VerifyProgress(), False, 0
    started_at = LONG_AGO + 1_000_000
    while not ended:
        tries += 1
        # Each process is killed a little later than the last one: never at the same place twice.
        progress, ended = _run(reopen(tmp_path), mode, started_at, 14 + tries % 3, progress)
        assert tries < 200
    assert tries > 2, "it was never killed"
    report = summarise(mode, read_findings(plain, "run"))
    for name in ("damaged_packs", "touched", "damaged_backups", "backups"):
        assert getattr(report, name) == getattr(expected, name), name
    assert {(item.object_name, item.chunk_id) for item in report.damage} == {
        (item.object_name, item.chunk_id) for item in expected.damage
    }
    if mode is VerifyMode.FULL:
        sound = "".join(part.sound for part in read_findings(plain, "run"))
        ids = [sound[at : at + 64] for at in range(0, len(sound), 64)]
        assert len(ids) == len(set(ids)) == len(paths) - 3, "no sound pack is read twice"


def test_a_pack_that_a_collection_deleted_meanwhile_is_no_damage(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    kept = set(pack_paths(plain))
    orphan = back_up(plain, "run-2", OTHER, "20260102T000000Z")
    (Path(plain.store.url.removeprefix("file://")) / manifest_name(orphan)).unlink()
    mine = sorted(set(pack_paths(plain)) - kept)
    # The first is gone before the packs are listed, the second when it is to be read.
    condemned = Generation(condemned=[path.name for path in mine[:2]]).model_dump_json().encode()
    plain.put(Kind.COLLECTION, f"{PREFIX}0000000001", condemned)
    mine[0].unlink()

    def collect(doing: str) -> None:
        if "trailer" in doing:
            mine[1].unlink(missing_ok=True)

    report = verify(plain, full=True, heartbeat=collect)
    assert report.sound
    assert report.collected_packs == 2
    mine[2].unlink()
    assert verify(plain).damaged_packs == [mine[2].name]


def test_a_backup_that_was_forgotten_meanwhile_is_no_damage(plain: Repository) -> None:
    first = back_up(plain, "run-1", IMAGE)
    back_up(plain, "run-2", OTHER, "20260102T000000Z")
    path = Path(plain.store.url.removeprefix("file://")) / manifest_name(first)

    def forget(doing: str) -> None:
        if first.backup_id in doing:
            path.unlink()

    report = verify(plain, heartbeat=forget)
    assert report.sound
    assert report.backups == 1


def test_a_backup_that_is_committed_meanwhile_is_no_damage(plain: Repository, tmp_path: Path) -> None:
    """Another process commits it after the lists were loaded: its chunks are looked for in the new lists."""
    back_up(plain, "run-1", IMAGE)
    other = reopen(tmp_path)

    def commit_one(doing: str) -> None:
        if "trailer" in doing and not other.store.exists("sessions/run-2/open"):
            back_up(other, "run-2", OTHER, "20260102T000000Z")

    report = verify(reopen(tmp_path), full=True, heartbeat=commit_one)
    assert report.backups == 2
    assert report.sound


SLOWLY = [pytest.param(every, marks=pytest.mark.slow) for every in (1, 7, 15)]


@pytest.mark.parametrize("every", [4, *SLOWLY])
def test_collections_that_run_all_the_while_are_no_damage(
    plain: Repository, tmp_path: Path, every: int
) -> None:
    """They delete packs that the verification has listed, and copy the needed chunks of others into new ones."""
    kept = [back_up(plain, "run-1", IMAGE)]
    mixed = b"".join(
        (IMAGE if number % 3 else OTHER)[number % 20 * CHUNK : (number % 20 + 1) * CHUNK]
        for number in range(40)
    )
    store = open_deleting_store(plain.store.url)
    for day, image in enumerate((OTHER + IMAGE, OTHER, mixed), start=2):
        ref = back_up(plain, f"run-{day}", image, f"2026010{day}T000000Z")
        if day < 4:
            forget(plain, store, ref, "old")
        else:
            kept.append(ref)
    purge(plain, store, 0)
    beats = 0
    other = reopen(tmp_path)

    def collect_now(_: str) -> None:
        nonlocal beats
        beats += 1
        if beats % every == 0 and beats < 60:
            collect(other, store, CollectOptions(grace_s=0, session_lease_s=0, repack_below=0.99))

    before = {path.name for path in pack_paths(plain)}
    report = verify(reopen(tmp_path), full=True, note_damage=True, heartbeat=collect_now)
    assert report.sound
    assert report.damaged_packs == []
    assert before - {path.name for path in pack_paths(plain)}, "something was collected meanwhile"
    assert [restore(reopen(tmp_path), ref) for ref in kept] == [IMAGE, mixed]
    assert verify(reopen(tmp_path), full=True).sound


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


def test_findings_that_are_superseded_are_dropped_and_nothing_else(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    now = 4_000_000_000
    store = open_deleting_store(plain.store.url)
    first = verify(plain, full=True, note_damage=True)
    assert drop_superseded(plain, store, now) == 0
    ids = "".join(path.name for path in pack_paths(plain)[:2])
    put_findings(plain, "20990101T000000Z-b", Findings(mode=VerifyMode.FULL, recorded=now, sound=ids))
    assert drop_superseded(plain, store, now) == 0
    everything = "".join(path.name for path in pack_paths(plain))
    put_findings(plain, "20990102T000000Z-c", Findings(mode=VerifyMode.FULL, recorded=now, sound=everything))
    assert drop_superseded(plain, store, now) > 0
    left = {found.name.split("/")[1] for found in plain.store.list("verified/")}
    assert left == {"20990102T000000Z-c"} | ({first.run} & left)
    assert not any(part.sound for part in read_findings(plain, first.run))


def test_damaged_findings_are_named_and_their_packs_are_read_again(plain: Repository) -> None:
    back_up(plain, "run-1", IMAGE)
    aged(plain)
    verify(plain, full=True, note_damage=True)
    name = _damage_object(plain, "verified/")
    report = sample(plain, 50)
    assert [item.object_name for item in report.damage] == [name]
    assert "nothing is lost" in report.damage[0].advice
    drop_superseded(plain, open_deleting_store(plain.store.url), 4_000_000_000)
    assert sample(plain, 50).sound


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


def test_a_damaged_forgotten_backup_and_outcome_are_named_because_they_stop_collections(
    plain: Repository,
) -> None:
    ref = back_up(plain, "run-1", IMAGE)
    outcome = "sessions/run-1/outcome"
    flip(Path(plain.store.url.removeprefix("file://")) / outcome, 50)
    forget(plain, open_deleting_store(plain.store.url), ref, "old")
    forgotten = _damage_object(plain, "forgotten/")
    found = {item.object_name: item.advice for item in verify(plain).damage}
    assert "no collection can run" in found[forgotten]
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
