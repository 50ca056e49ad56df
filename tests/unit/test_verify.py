"""A verification goes on where it was killed, reads the oldest first, and tells damage from what a collection took."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from safehaul.errors import BusyError
from safehaul.media.collection import record_damaged
from safehaul.media.forgotten import forget
from safehaul.media.manifest import BackupIndex, index_name, write_index
from safehaul.media.repair import repair_index
from safehaul.media.repository import Repository
from safehaul.media.sessions import open_session
from safehaul.media.store import open_deleting_store
from safehaul.media.verified import Findings, put_findings, read_findings
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
    # Enough to do that every process is killed before it is done, in the light mode too.
    for day in range(3, 9):
        back_up(plain, f"run-{day}", IMAGE[day * CHUNK :], f"202601{day:02d}T000000Z")
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


def damage_object(repository: Repository, prefix: str) -> str:
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
    name = damage_object(repository, prefix)
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
    damage_object(plain, "sessions/s/disk-2000/")
    (found,) = verify(plain).damage
    assert "db 1 (vc.other)" in found.problem


def test_a_damaged_forgotten_backup_and_a_damaged_outcome_are_named(
    plain: Repository,
) -> None:
    ref = back_up(plain, "run-1", IMAGE)
    outcome = "sessions/run-1/outcome"
    flip(Path(plain.store.url.removeprefix("file://")) / outcome, 50)
    forget(plain, open_deleting_store(plain.store.url), ref, "old")
    forgotten = damage_object(plain, "forgotten/")
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
