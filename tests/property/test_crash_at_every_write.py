"""The process ends before, or right after, each object that is written or deleted, and starts again: nothing that was
committed is lost, what was begun comes to its end, and no object is left over.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from safehaul.media.files import FileWriter
from safehaul.media.forgotten import forget, purge, recover
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import BackupIndex, BackupRef, list_backups, write_index
from safehaul.media.repository import Repository
from safehaul.media.seal import backup_ref, commit, verify_session
from safehaul.media.sessions import Session, SessionInfo, open_session
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from tests.property.test_collection_model import DAY_S
from tests.property.watched_store import Clock, Crash, WatchedStore
from tests.unit.media_backup import CHUNK, DISK, KEY_FILE, PACK, VM, contents, restore

OLD = random.Random(1).randbytes(14 * CHUNK)
NEW = (
    OLD[: 3 * CHUNK] + bytes(2 * CHUNK) + random.Random(2).randbytes(4 * CHUNK) + OLD[9 * CHUNK : 11 * CHUNK]
)
IMAGES = {"run-1": OLD, "run-2": NEW, "run-3": OLD}


class Story:
    """A backup with a file, a second one, the first given up, recovered, given up again and collected, a third one.

    Each step can be done again after a crash. `deadly` is the write or deletion, from 1, at which the process dies.
    """

    def __init__(self, folder: Path, deadly: int, when: str) -> None:
        self.folder = folder / "repository"
        self.clock = Clock()
        self.deadly = deadly
        self.when = when
        self.done = 0
        self.died_at = ""
        self.committed: dict[BackupRef, bytes] = {}
        Repository.init(
            WatchedStore(self.folder, self.clock),
            chunk_size_bytes=CHUNK,
            pack_size_bytes=PACK,
            secret=KEY_FILE,
        ).close()

    def hook(self, when: str, operation: str, name: str) -> None:
        if operation not in {"put", "delete"} or when != self.when:
            return
        self.done += 1
        if self.done == self.deadly:
            self.died_at = f"{when} {operation} {name}"
            raise Crash

    def process(self, step: Callable[[Repository, WatchedStore], None]) -> None:
        """Do a step in a process of its own; should it die, look at what is left, and do it again."""
        while True:
            store = WatchedStore(self.folder, self.clock, self.hook)
            repository = Repository.open(store, secret=KEY_FILE)
            try:
                step(repository, store)
            except Crash:
                self.check()
                continue
            finally:
                repository.close()
            self.check()
            return

    def check(self) -> None:
        repository = Repository.open(WatchedStore(self.folder, self.clock), secret=KEY_FILE)
        listed = list(list_backups(repository))
        assert set(self.committed) <= set(listed), self.died_at
        for ref in listed:
            image = next(image for run, image in IMAGES.items() if _ref(repository, run) == ref)
            assert restore(repository, ref) == image, self.died_at
        repository.close()

    def back_up(self, run: str) -> None:
        image = IMAGES[run]

        def step(repository: Repository, _: WatchedStore) -> None:
            session = _session(repository, run)
            if not session.sealed():
                with FileWriter(session) as files:
                    files.add("web-1.vmx", "config", b"guestOS = debian")
                    files.finish()
                with DiskWriter(session, DISK, len(image)) as writer:
                    offset = writer.resume_offset_bytes
                    writer.write(image[offset:], offset)
                    writer.finish()
            verify_session(session)
            ref = commit(session, contents(image))
            write_index(repository, BackupIndex(backup_id=ref.backup_id, vc_guid=VM, status="Completed"))
            self.committed[ref] = image

        self.process(step)

    def collect(self, days: float) -> None:
        self.clock.now += days * DAY_S
        options = CollectOptions(session_lease_s=3 * DAY_S)
        self.process(lambda repository, store: _discard(collect(repository, store, options)))

    def forget(self, run: str) -> None:
        def step(repository: Repository, store: WatchedStore) -> None:
            ref = _ref(repository, run)
            self.committed.pop(ref, None)
            forget(repository, store, ref, "the story wants it")

        self.process(step)

    def recover(self, run: str) -> None:
        def step(repository: Repository, store: WatchedStore) -> None:
            ref = _ref(repository, run)
            if repository.store.exists(f"forgotten/{VM}/{ref.backup_id}"):
                recover(repository, store, ref)
            self.committed[ref] = IMAGES[run]

        self.process(step)

    def purge(self, days: float) -> None:
        self.clock.now += days * DAY_S
        self.process(lambda repository, store: _discard(purge(repository, store)))

    def tell(self) -> None:
        self.back_up("run-1")
        self.back_up("run-2")
        self.forget("run-1")
        self.recover("run-1")
        self.forget("run-1")
        self.purge(7)
        self.collect(0)
        self.collect(1.5)
        self.back_up("run-3")
        self.collect(5)
        repository = Repository.open(WatchedStore(self.folder, self.clock), secret=KEY_FILE)
        assert verify(repository, full=True).sound, self.died_at
        assert len(list(list_backups(repository))) == 2
        repository.close()
        for run in ("run-2", "run-3"):
            self.forget(run)
        self.purge(7)
        for _ in range(4):
            self.collect(3.5)
        # A question for the time that died in the last run is taken away by the next one that is an hour later.
        kept = ("config", "keys/", "gc/", "clock/")
        assert [name for name in self.clock.stored if not name.startswith(kept)] == [], self.died_at


def _session(repository: Repository, run: str) -> Session:
    return open_session(
        repository, run, vc_guid=VM, vm_name="web 1", point_in_time=run, opened=f"2026010{run[-1]}T000000Z"
    )


def _ref(repository: Repository, run: str) -> BackupRef:
    opened = f"2026010{run[-1]}T000000Z"
    info = SessionInfo(session_id=run, vc_guid=VM, vm_name="web 1", point_in_time=run, opened=opened)
    return backup_ref(Session(repository, info))


def _discard(_: object) -> None:
    return


def _tell(deadly: int, when: str) -> Story:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        story = Story(Path(folder), deadly, when)
        story.tell()
    return story


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_write_or_deletion_loses_nothing(when: str) -> None:
    count = _tell(0, when).done
    assert count > 80, "a story worth telling"
    for deadly in range(1, count + 1):
        assert _tell(deadly, when).died_at, deadly


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_some_writes_and_deletions_loses_nothing(when: str) -> None:
    count = _tell(0, when).done
    for deadly in range(random.Random(when).randrange(1, 12), count + 1, 12):
        assert _tell(deadly, when).died_at, deadly
