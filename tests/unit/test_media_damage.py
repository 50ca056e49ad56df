"""Damage is found, named by disk and offset, and healed by the next backup that meets the content again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safehaul.errors import AlreadyExistsError, IntegrityError, InvalidInputError, NotFoundError
from safehaul.media.collection import read_condemnations, record_damaged
from safehaul.media.files import FileWriter
from safehaul.media.manifest import manifest_name
from safehaul.media.pack import pack_name
from safehaul.media.reader import BackupReader
from safehaul.media.repair import repair_index
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.verify import verify
from safehaul.messages.verify import VerifyReport
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    SECRETS,
    back_up,
    contents,
    flip,
    new_repository,
    new_session,
    pack_paths,
    reopen,
    restore,
    write_disk,
)

IMAGE = (
    random.Random(1).randbytes(20 * CHUNK) + bytes(8 * CHUNK) + random.Random(2).randbytes(5 * CHUNK + 512)
)


@pytest.fixture(params=SECRETS)
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    return new_repository(tmp_path, secret=request.param)


def objects(tmp_path: Path, folder: str) -> list[Path]:
    return sorted(path for path in (tmp_path / "repository" / folder).rglob("*") if path.is_file())


def lost_offsets(report: VerifyReport) -> list[int]:
    return [item.offset_bytes for item in report.touched if item.lost]


def test_any_range_is_read_alone(repository: Repository) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    reader = BackupReader(repository, *ref)
    chance = random.Random(3)
    for _ in range(200):
        start = chance.randrange(len(IMAGE) + 1)
        length = chance.randrange(min(len(IMAGE) - start, 6 * CHUNK) + 1)
        assert reader.read_range(DISK, start, length) == IMAGE[start : start + length]
    with pytest.raises(InvalidInputError, match="beyond"):
        reader.read_range(DISK, len(IMAGE), 1)
    with pytest.raises(InvalidInputError, match="beyond"):
        reader.read_range(DISK, -1, 1)
    with pytest.raises(NotFoundError, match="key 7"):
        reader.read_range(7, 0, 1)
    reader.close()


def test_files_come_back_and_the_latest_of_a_name_counts(repository: Repository, tmp_path: Path) -> None:
    session = new_session(repository, "run-1")
    write_disk(session, IMAGE)
    log = tmp_path / "vmware.log"
    log.write_bytes(b"line\n" * 3000)
    with FileWriter(session) as files:
        files.add("web 1.vmx", "config", b"old")
        files.finish()
    with FileWriter(session) as files:
        files.add("web 1.vmx", "config", b"new")
        files.add("vmware.log", "log", log)
        files.add("web 1.nvram", "nvram", IMAGE[: 2 * CHUNK] + bytes(CHUNK))
        files.add("empty", "log", b"")
        with pytest.raises(InvalidInputError, match="larger"):
            files.add("huge", "log", log, limit_bytes=100)
        with pytest.raises(NotFoundError, match="spool"):
            files.add("gone", "log", tmp_path / "gone")
        assert [stored.name for stored in files.finish()] == [
            "web 1.vmx",
            "vmware.log",
            "web 1.nvram",
            "empty",
        ]
    verify_session(session)
    reader = BackupReader(repository, *commit(session, contents(IMAGE)))
    assert reader.read_file("web 1.vmx") == b"new"
    assert reader.read_file("vmware.log") == log.read_bytes()
    assert reader.read_file("web 1.nvram") == IMAGE[: 2 * CHUNK] + bytes(CHUNK)
    assert reader.read_file("empty") == b""
    with pytest.raises(NotFoundError, match="no file"):
        reader.read_file("huge")
    reader.close()


def test_an_increment_stores_what_changed_and_shares_the_rest(repository: Repository) -> None:
    first = back_up(repository, "run-1", IMAGE)
    changed = bytearray(IMAGE)
    changed[3 * CHUNK + 7] ^= 1
    reader = BackupReader(repository, *first)
    second = back_up(repository, "run-2", bytes(changed), "20260102T000000Z")
    stats = BackupReader(repository, *second).manifest.disk(DISK).stats
    assert stats.bytes_new == CHUNK
    assert stats.bytes_zero == 8 * CHUNK
    assert restore(repository, second) == changed
    assert restore(repository, first) == IMAGE
    reader.close()


def test_a_flipped_byte_is_named_by_disk_offset_chunk_and_pack(
    repository: Repository, tmp_path: Path
) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    reader = BackupReader(repository, *ref)
    location = repository.usable(reader.manifest.disk_map(repository, DISK).chunk_id(5))
    assert location is not None
    pack = tmp_path / "repository" / f"packs/{location.pack.pack_id.hex()[:2]}/{location.pack.pack_id.hex()}"
    flip(pack, location.entry.offset + 100)
    named = rf"Hard disk 1 \(key 2000\), offset {5 * CHUNK}: chunk {location.entry.chunk_id.hex()} in pack "
    with pytest.raises(IntegrityError, match=named + f"packs/../{location.pack.pack_id.hex()}"):
        reader.read_range(DISK, 0, len(IMAGE))
    assert reader.read_range(DISK, 0, 5 * CHUNK) == IMAGE[: 5 * CHUNK]
    reader.close()
    assert verify(repository).sound
    report = verify(repository, full=True)
    assert not report.sound
    assert report.damaged_packs == [location.pack.pack_id.hex()]
    assert lost_offsets(report) == [5 * CHUNK]
    assert {item.lost for item in report.touched} == {True, False}
    assert {(item.vm_name, item.backup_id) for item in report.touched} == {("web 1", ref.backup_id)}


def test_a_lost_pack_is_found_by_the_light_verification(repository: Repository, tmp_path: Path) -> None:
    back_up(repository, "run-1", IMAGE)
    assert verify(repository).model_dump(include={"backups", "unlisted_packs", "damage"}) == {
        "backups": 1,
        "unlisted_packs": 0,
        "damage": [],
    }
    pack_paths(repository)[0].unlink()
    report = verify(reopen(tmp_path))
    assert len(report.damage) == 1
    assert lost_offsets(report)


def test_later_backups_heal_what_a_verification_found(repository: Repository, tmp_path: Path) -> None:
    first = back_up(repository, "run-1", IMAGE)
    flip(pack_paths(repository)[0], 200)
    with pytest.raises(IntegrityError):
        restore(repository, first)
    verify(repository, full=True, note_damage=True)
    healing = reopen(tmp_path)
    second = back_up(healing, "run-2", IMAGE, "20260102T000000Z")
    assert restore(healing, second) == IMAGE
    assert restore(reopen(tmp_path), first) == IMAGE
    report = verify(healing, full=True)
    assert report.touched == []
    assert len(report.damaged_packs) == 1


def test_a_lost_pack_is_stored_again_without_being_told(repository: Repository, tmp_path: Path) -> None:
    first = back_up(repository, "run-1", IMAGE)
    for path in pack_paths(repository):
        path.unlink()
    later = reopen(tmp_path)
    second = back_up(later, "run-2", IMAGE, "20260102T000000Z")
    assert restore(later, second) == restore(later, first) == IMAGE


def test_a_pack_that_vanishes_before_the_commit_stops_it(repository: Repository) -> None:
    back_up(repository, "run-1", IMAGE)
    session = new_session(repository, "run-2", "20260102T000000Z")
    write_disk(session, IMAGE)
    verify_session(session)
    pack_paths(repository)[0].unlink()
    with pytest.raises(IntegrityError, match=r"Hard disk 1 at offset \d+: chunk"):
        commit(session, contents(IMAGE))


def test_a_condemned_pack_is_no_longer_relied_on(repository: Repository, tmp_path: Path) -> None:
    back_up(repository, "run-1", IMAGE)
    session = new_session(repository, "run-2", "20260102T000000Z")
    write_disk(session, IMAGE)
    verify_session(session)
    packs = [bytes.fromhex(path.name) for path in pack_paths(repository)]
    assert record_damaged(repository, packs[:1]) == 1
    assert record_damaged(repository, packs[:1]) == 1
    assert record_damaged(repository, packs[:2]) == 2
    assert read_condemnations(repository).packs == set(packs[:2])
    second = commit(session, contents(IMAGE))
    for pack in packs[:2]:
        (tmp_path / "repository" / pack_name(pack)).unlink()
    assert restore(reopen(tmp_path), second) == IMAGE, "the commit has copied what only condemned packs held"


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_the_index_is_made_again_from_the_packs(repository: Repository, tmp_path: Path, how: str) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    for path in objects(tmp_path, "idx"):
        if how == "gone":
            path.unlink()
        else:
            flip(path, 60)
    without = reopen(tmp_path)
    with pytest.raises(IntegrityError, match="no pack holds"):
        restore(without, ref)
    assert not verify(without).sound
    assert repair_index(without) == len(pack_paths(repository))
    assert repair_index(without) == 0
    assert restore(reopen(tmp_path), ref) == IMAGE
    # Again, when the repaired list itself is what gets damaged: its name is taken.
    for path in objects(tmp_path, "idx"):
        flip(path, 61)
    again = reopen(tmp_path)
    assert repair_index(again) == len(pack_paths(repository))
    assert restore(reopen(tmp_path), ref) == IMAGE


def test_a_damaged_pack_is_not_listed_by_a_repair(repository: Repository, tmp_path: Path) -> None:
    back_up(repository, "run-1", IMAGE)
    for path in objects(tmp_path, "idx"):
        path.unlink()
    flip(pack_paths(repository)[0], 300)
    assert repair_index(reopen(tmp_path)) == len(pack_paths(repository)) - 1


def test_damaged_pages_manifests_and_indexes_are_named(repository: Repository, tmp_path: Path) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    page = objects(tmp_path, "pages")[0]
    flip(page, 50)
    report = verify(reopen(tmp_path))
    assert [item.object_name for item in report.damage] == [f"pages/{page.name[:2]}/{page.name}"]
    assert len(lost_offsets(report)) == -(-len(IMAGE) // CHUNK)
    with pytest.raises(IntegrityError, match=page.name):
        restore(reopen(tmp_path), ref)
    flip(page, 50)
    flip(tmp_path / "repository" / manifest_name(ref), 50)
    assert [item.object_name for item in verify(repository).damage] == [manifest_name(ref)]


def test_a_kept_index_serves_the_next_process(repository: Repository, tmp_path: Path) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    path = tmp_path / "index.sqlite"
    for _ in range(2):
        kept = reopen(tmp_path, path)
        assert restore(kept, ref) == IMAGE
        count = kept.index.chunk_count()
        kept.close()
        assert count == 26
    assert path.exists()


def test_a_second_manifest_of_the_same_name_is_refused(repository: Repository) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    with pytest.raises(AlreadyExistsError):
        repository.store.put_if_absent(manifest_name(ref), b"other")
