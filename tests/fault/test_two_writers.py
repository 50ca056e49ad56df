"""Two access nodes' processes write the same content at once while a third process collects again and again: nothing is
lost, and in the end it is stored once.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from safehaul.errors import StaleLeaseError
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import BackupRef, list_backups
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import Session, open_session
from safehaul.media.store_local import LocalStore
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from tests.unit.media_backup import DISK, KEY_FILE, VM, contents, restore

CHUNK = 64 << 10
PACK = 1 << 20
CHUNKS = 600
STOPPED = 3
"""Exit code of a writer that was told that another one has finished its session."""

QUICK = CollectOptions(grace_s=0)
SPAWN = multiprocessing.get_context("spawn")


def image() -> bytes:
    """Incompressible, with a hole and a part that occurs twice."""
    chance = random.Random(7)
    part = chance.randbytes(100 * CHUNK)
    return part + bytes(50 * CHUNK) + chance.randbytes((CHUNKS - 250) * CHUNK) + part


def _open(folder: Path) -> Repository:
    return Repository.open(LocalStore(folder), secret=KEY_FILE)


def _write(folder: Path, session_id: str, node: str, go: Event) -> None:
    """An access node: reads the disk in pieces of its own size."""
    data = image()
    piece = {"a": 300_000, "b": 1_000_000}[node]
    repository = _open(folder)
    session = open_session(
        repository,
        session_id,
        vc_guid=VM,
        vm_name="web 1",
        point_in_time=session_id,
        opened=f"2026010{len(session_id)}T000000Z",
    )
    go.wait(60)
    try:
        _back_up(session, data, piece)
    except StaleLeaseError:
        sys.exit(STOPPED)
    repository.close()


def _back_up(session: Session, data: bytes, piece: int) -> None:
    with DiskWriter(session, DISK, len(data)) as writer:
        offset = writer.resume_offset_bytes
        while offset < len(data):
            writer.write(data[offset : offset + piece], offset)
            offset += len(data[offset : offset + piece])
        writer.finish()
    verify_session(session)
    commit(session, contents(data))


def _collect_until(folder: Path, stop: Event) -> None:
    while not stop.is_set():
        repository = _open(folder)
        collect(repository, LocalStore(folder), QUICK)
        repository.close()


def _all_at_once(folder: Path, sessions: dict[str, str]) -> list[int]:
    """`sessions`: node → session. Returns how the writers ended."""
    go, stop = SPAWN.Event(), SPAWN.Event()
    writers = [
        SPAWN.Process(target=_write, args=(folder, session, node, go)) for node, session in sessions.items()
    ]
    collector = SPAWN.Process(target=_collect_until, args=(folder, stop))
    for process in (collector, *writers):
        process.start()
    go.set()
    for process in writers:
        process.join(300)
    stop.set()
    collector.join(120)
    assert collector.exitcode == 0
    return sorted(process.exitcode or 0 for process in writers)


def _check(folder: Path, refs: Callable[[Repository], list[BackupRef]]) -> None:
    data = image()
    for _ in range(3):
        repository = _open(folder)
        collect(repository, LocalStore(folder), QUICK)
        repository.close()
    repository = _open(folder)
    for ref in refs(repository):
        assert restore(repository, ref) == data
    assert verify(repository, full=True).sound
    stored = sum(found.size_bytes for found in repository.store.list("packs/"))
    unique = (CHUNKS - 150) * CHUNK
    assert unique <= stored <= unique * 1.01 + PACK, "stored once, and one pack more at most"
    repository.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = LocalStore(tmp_path / "repository")
    Repository.init(store, chunk_size_bytes=CHUNK, pack_size_bytes=PACK, secret=KEY_FILE).close()
    return store.root


@pytest.mark.slow
def test_two_vms_of_the_same_content(folder: Path) -> None:
    assert _all_at_once(folder, {"a": "vm-1", "b": "vm-22"}) == [0, 0]

    def both(repository: Repository) -> list[BackupRef]:
        refs = list(list_backups(repository))
        assert len(refs) == 2
        return refs

    _check(folder, both)


@pytest.mark.slow
def test_a_zombie_and_its_successor(folder: Path) -> None:
    """One session: the first record of each number counts, and both read the same frozen disk."""
    ended = _all_at_once(folder, {"a": "vm-1", "b": "vm-1"})
    assert ended in ([0, 0], [0, STOPPED]), "the slower one may be told that it is done"

    def one(repository: Repository) -> list[BackupRef]:
        refs = list(list_backups(repository))
        assert len(refs) == 1
        return refs

    _check(folder, one)
