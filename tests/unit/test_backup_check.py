"""A backup is checked by reading all of it: every damaged range is named, and what is sound is never called damaged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safehaul.errors import NotFoundError
from safehaul.media.backup_check import BackupChecker
from safehaul.media.files import FileWriter
from safehaul.media.manifest import BackupIndex, BackupRef, manifest_name, write_index
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.verify import verify
from tests.unit.media_backup import (
    CHUNK,
    SECRETS,
    back_up,
    contents,
    flip,
    new_repository,
    new_session,
    pack_paths,
    reopen,
    write_disk,
)

DATA = 40
IMAGE = (
    random.Random(1).randbytes(DATA * CHUNK) + bytes(8 * CHUNK) + random.Random(2).randbytes(5 * CHUNK + 9)
)
DATA_BYTES = len(IMAGE) - 8 * CHUNK


@pytest.fixture(params=SECRETS)
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    return new_repository(tmp_path, secret=request.param)


def test_a_sound_backup_is_read_whole_and_only_once(repository: Repository) -> None:
    first = back_up(repository, "run-1", IMAGE)
    changed = IMAGE[: 3 * CHUNK] + random.Random(3).randbytes(CHUNK) + IMAGE[4 * CHUNK :]
    second = back_up(repository, "run-2", changed, opened="20260102T000000Z")
    dealt_with: list[int] = []
    checker = BackupChecker(repository, dealt_with.append)
    found = checker.check(first)
    assert found.sound
    assert (found.vm_name, found.disks, found.bytes_read, found.bytes_known) == ("web 1", 1, DATA_BYTES, 0)
    assert sum(dealt_with) == len(IMAGE)
    again = checker.check(second)
    assert again.sound
    assert (again.bytes_read, again.bytes_known) == (CHUNK, DATA_BYTES - CHUNK)
    assert sum(dealt_with) == 2 * len(IMAGE)


@pytest.mark.parametrize("seed", range(8))
def test_every_damaged_chunk_is_named_by_disk_and_offset(tmp_path: Path, seed: int) -> None:
    repository = new_repository(tmp_path)
    ref = back_up(repository, "run-1", IMAGE)
    chance = random.Random(seed)
    for path in chance.sample(pack_paths(repository), 3):
        flip(path, chance.randrange(path.stat().st_size // 2))
    expected = verify(reopen(tmp_path), full=True)
    lost = {item.offset_bytes for item in expected.touched if item.lost}
    assert lost, "the test has damaged something"
    found = BackupChecker(reopen(tmp_path)).check(ref)
    assert not found.sound
    named = {
        offset
        for item in found.damage
        for offset in range(item.offset_bytes, item.offset_bytes + item.length_bytes, CHUNK)
    }
    assert named == lost
    assert {item.part for item in found.damage} == {"disk Hard disk 1 (key 2000)"}
    whole = [item for item in found.damage if item.length_bytes % CHUNK]
    assert all(item.offset_bytes + item.length_bytes == len(IMAGE) for item in whole)


def test_a_lost_pack_damages_one_range_and_the_rest_is_read(tmp_path: Path) -> None:
    repository = new_repository(tmp_path)
    ref = back_up(repository, "run-1", IMAGE)
    pack_paths(repository)[0].unlink()
    found = BackupChecker(reopen(tmp_path)).check(ref)
    lost = sum(item.length_bytes for item in found.damage)
    assert 0 < lost < DATA_BYTES
    assert found.bytes_read == DATA_BYTES - lost


def test_damage_of_a_map_page_a_file_the_index_and_the_manifest_is_named(tmp_path: Path) -> None:
    repository = new_repository(tmp_path)
    session = new_session(repository, "run-1")
    with FileWriter(session) as files:
        files.add("[ds] web/web.vmx", "config", b"x" * 100)
        files.finish()
    write_disk(session, IMAGE)
    verify_session(session)
    ref = commit(session, contents(IMAGE))
    write_index(repository, BackupIndex(backup_id=ref.backup_id, vc_guid=ref.vc_guid, status="Completed"))
    root = tmp_path / "repository"
    for folder in ("pages", "index"):
        for path in (root / folder).rglob("*"):
            if path.is_file():
                flip(path, path.stat().st_size // 2)
    found = BackupChecker(reopen(tmp_path)).check(ref)
    assert [(item.part, item.offset_bytes, item.length_bytes) for item in found.damage] == [
        ("index", 0, 0),
        ("disk Hard disk 1 (key 2000)", 0, len(IMAGE)),
    ]
    for path in pack_paths(repository):
        path.unlink()
    parts = [item.part for item in BackupChecker(reopen(tmp_path)).check(ref).damage]
    assert "file [ds] web/web.vmx" in parts
    flip(root / manifest_name(ref), 40)
    (damage,) = BackupChecker(reopen(tmp_path)).check(ref).damage
    assert damage.part == "manifest"


def test_a_backup_that_is_not_there_is_an_error(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match="no backup"):
        BackupChecker(repository).check(BackupRef("vc.vm", "none"))
