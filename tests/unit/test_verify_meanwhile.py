"""A verification beside backups, collections and other verifications; what it records, and what of that is dropped."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from safehaul.errors import ConnectionLostError
from safehaul.media.backup_check import BackupChecker
from safehaul.media.collection import PREFIX, Generation
from safehaul.media.envelope import Kind
from safehaul.media.forgotten import forget, purge
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import manifest_name
from safehaul.media.repository import Repository
from safehaul.media.store import open_deleting_store
from safehaul.media.verified import Findings, drop_superseded, put_findings, read_findings
from safehaul.media.verify import verify
from safehaul.messages.verify import VerifyMode
from tests.unit.media_backup import CHUNK, back_up, flip, pack_paths, reopen, restore
from tests.unit.test_verify import IMAGE, OTHER, aged, damage_object, plain, repository, sample

__all__ = ["plain", "repository"]


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
    name = damage_object(plain, "verified/")
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


def test_a_store_that_is_not_mounted_has_lost_nothing(plain: Repository) -> None:
    """Everything seems to be gone: nothing is noted, and another try finds it sound."""
    back_up(plain, "run-1", IMAGE)
    root = Path(plain.store.url.removeprefix("file://"))

    def unmount(doing: str) -> None:
        if "idx/" in doing and root.exists():
            root.rename(root.with_name("away"))
            root.mkdir()

    with pytest.raises(ConnectionLostError, match="is its directory mounted"):
        verify(plain, full=True, note_damage=True, heartbeat=unmount)
    assert list(root.iterdir()) == []
    root.rmdir()
    root.with_name("away").rename(root)
    assert verify(plain, full=True).sound


def test_a_bad_sector_is_damage_of_the_chunk_that_it_holds(
    plain: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = back_up(plain, "run-1", IMAGE)
    bad, sound = pack_paths(plain)[0], os.preadv
    place = 5000

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        here = Path(f"/proc/self/fd/{descriptor}").readlink() == bad
        if here and offset <= place < offset + len(buffers[0]):
            raise OSError(errno.EIO, "Input/output error")
        return sound(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    report = verify(plain, full=True, note_damage=True)
    assert report.damaged_packs == [bad.name]
    assert sum(item.lost for item in report.touched) == 1
    assert [item.bytes_lost for item in report.damaged_backups] == [CHUNK]
    assert "Input/output error" in report.damage[0].problem
    check = BackupChecker(plain).check(ref)
    assert [item.length_bytes for item in check.damage] == [CHUNK]
    monkeypatch.undo()
    assert restore(plain, ref) == IMAGE
