"""Whatever backups, crashes, resumes, prunes, collections and verifications do to one repository, in whatever order and
inside each other: every committed backup stays readable and equal.

One thing at a time works here, but at any operation on the store another may be done completely, or the process may
end. Every process has its own Repository; what they share is the store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehaul.errors import BusyError, IntegrityError, InvalidInputError, NotFoundError, StaleLeaseError
from safehaul.media.forgotten import forget, list_forgotten, purge, recover
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import BackupRef, list_backups, read_manifest
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import open_session, session_prefix
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from tests.property.test_media_repository import chunk_content
from tests.property.watched_store import Clock, Crash, Hook, WatchedStore
from tests.unit.media_backup import CHUNK, DISK, KEY_FILE, PACK, VM, contents, restore

DAY_S = 86400.0
LEASE_S = 2 * DAY_S


class Action(NamedTuple):
    """Something that a process does; `at` and `inner`: at which of its store operations, and what then."""

    what: str
    which: int
    kinds: tuple[int, ...] = ()
    inner: tuple[tuple[int, Action], ...] = ()


class World:
    """The repository, and what must be in it."""

    def __init__(self, folder: Path, *, encrypted: bool) -> None:
        self.folder = folder / "repository"
        self.clock = Clock()
        self.secret = KEY_FILE if encrypted else None
        Repository.init(
            self.store(), chunk_size_bytes=CHUNK, pack_size_bytes=PACK, secret=self.secret
        ).close()
        self.images: dict[str, bytes] = {}
        """Session → what its disk holds."""
        self.committed: dict[BackupRef, bytes] = {}
        self.given_up: dict[BackupRef, bytes] = {}
        """Forgotten, or perhaps: somebody began to forget it."""
        self.log: list[str] = []
        """What was done; written in threads of the writers too, where Hypothesis takes no notes."""

    def store(self, hook: Hook = lambda *_: None) -> WatchedStore:
        return WatchedStore(self.folder, self.clock, hook)

    @contextmanager
    def process(self, hook: Hook = lambda *_: None) -> Iterator[tuple[Repository, WatchedStore]]:
        """One process, with the repository open; a crash ends it."""
        store = self.store()
        repository = Repository.open(store, secret=self.secret)
        store.hook = hook
        try:
            yield repository, store
        finally:
            repository.close()

    def do(self, action: Action) -> None:
        """Do an action with what is to happen inside it."""
        steps = {
            "backup": self.back_up,
            "write": self.write,
            "commit": self.commit,
            "forget": self.forget,
            "recover": self.recover,
            "purge": self.purge,
            "collect": self.collect,
            "drop": self.drop,
            "cycle": self.cycle,
            "restore": self.restore,
            "days": self.pass_days,
        }
        waiting = sorted(action.inner, key=lambda item: item[0])
        done = 0
        busy = False

        def hook(_when: str, _operation: str, _name: str) -> None:
            nonlocal done, busy
            if busy:
                return
            done += 1
            while waiting and waiting[0][0] <= done:
                _, inner = waiting.pop(0)
                if inner.what == "crash":
                    raise Crash
                busy = True
                try:
                    self.do(inner)
                finally:
                    busy = False

        self.log.append(f"{action}")
        try:
            steps[action.what](action, hook)
        except Crash:
            self.log.append("… and died there")

    def session(self, action: Action) -> str:
        names = sorted(self.images)
        return names[action.which % len(names)] if names else ""

    def back_up(self, action: Action, hook: Hook) -> None:
        name = f"run-{len(self.images):03d}"
        self.images[name] = b"".join(map(chunk_content, action.kinds))
        self._write(name, len(self.images[name]), hook)
        self._commit(name, hook)

    def write(self, action: Action, hook: Hook) -> None:
        """A part of a backup, by a process that then goes away without a word."""
        name = f"run-{len(self.images):03d}"
        self.images[name] = b"".join(map(chunk_content, action.kinds))
        self._write(name, len(self.images[name]) * (action.which % 3) // 2, hook)

    def commit(self, action: Action, hook: Hook) -> None:
        """Go on with a session, whatever became of it."""
        name = self.session(action)
        if name:
            self._write(name, len(self.images[name]), hook)
            self._commit(name, hook)

    def _write(self, name: str, until: int, hook: Hook) -> None:
        image = self.images[name]
        with self.process(hook) as (repository, _):
            try:
                session = open_session(
                    repository,
                    name,
                    vc_guid=VM,
                    vm_name="web 1",
                    point_in_time=name,
                    opened=f"20260101T{int(name[4:]):06d}Z",
                )
                # One thread: a hook that does something else must not be met by two threads at once.
                with DiskWriter(session, DISK, len(image)) as writer:
                    offset = writer.resume_offset_bytes
                    writer.write(image[offset : max(offset, until)], offset)
                    if max(offset, until) == len(image):
                        writer.finish()
            except (StaleLeaseError, NotFoundError) as error:
                self._expect_ended(name, error)

    def _commit(self, name: str, hook: Hook) -> None:
        image = self.images[name]
        with self.process(hook) as (repository, _):
            try:
                session = open_session(repository, name, vc_guid=VM, vm_name="web 1", point_in_time=name)
                verify_session(session)
                ref = commit(session, contents(image))
            except (StaleLeaseError, NotFoundError) as error:
                self._expect_ended(name, error)
                return
            except InvalidInputError as error:
                self.log.append(f"{name} has not come to its end: {error}")
                return
        if ref not in self.given_up:
            self.committed[ref] = image

    def _expect_ended(self, name: str, error: Exception) -> None:
        """Sealed or fenced; only of one that has ended may something be missing: it must not be committed then."""
        self.log.append(f"{name}: {error}")
        if isinstance(error, NotFoundError):
            folder, exists = session_prefix(name), self.store().exists
            assert exists(f"{folder}outcome") or not exists(f"{folder}open"), error

    def forget(self, action: Action, hook: Hook) -> None:
        refs = sorted(self.committed)
        if not refs:
            return
        ref = refs[action.which % len(refs)]
        self.given_up[ref] = self.committed.pop(ref)
        with self.process(hook) as (repository, store):
            forget(repository, store, ref, "the model wants it")

    def recover(self, action: Action, hook: Hook) -> None:
        with self.process(hook) as (repository, store):
            refs = [found.ref for found in list_forgotten(repository)]
            if not refs:
                return
            ref = refs[action.which % len(refs)]
            try:
                recover(repository, store, ref)
            except NotFoundError:
                return
            if ref in self.given_up:
                self.committed[ref] = self.given_up.pop(ref)

    def purge(self, action: Action, hook: Hook) -> None:
        with self.process(hook) as (repository, store):
            purge(repository, store)

    def collect(self, action: Action, hook: Hook) -> None:
        with self.process(hook) as (repository, store):
            try:
                collect(repository, store, CollectOptions(session_lease_s=LEASE_S))
            except BusyError as error:
                if "took the pack for garbage" not in str(error):
                    raise
                self.log.append(f"collect: {error}")

    def drop(self, action: Action, hook: Hook) -> None:
        """A backup is forgotten, and its seven days pass."""
        self.forget(action, hook)
        self.clock.now += 7.1 * DAY_S

    def cycle(self, action: Action, hook: Hook) -> None:
        """All that a prune does to what was forgotten a week ago."""
        self.purge(action, hook)
        self.collect(action, hook)
        self.clock.now += 1.0 * DAY_S
        self.collect(action, hook)

    def restore(self, action: Action, hook: Hook) -> None:
        refs = sorted(self.committed)
        if not refs:
            return
        ref = refs[action.which % len(refs)]
        image = self.committed[ref]
        with self.process(hook) as (repository, _):
            try:
                assert restore(repository, ref) == image
            except (NotFoundError, IntegrityError):
                # Only one that was given up, and purged, while it was read.
                assert ref not in self.committed

    def pass_days(self, action: Action, hook: Hook) -> None:
        self.clock.now += (0.3, 1.0, 2.1, 7.1)[action.which % 4] * DAY_S

    def check(self) -> None:
        """Every backup that was reported as committed is there and equal, and so is each that is in the list."""
        with self.process() as (repository, _):
            listed = set(list_backups(repository))
            assert set(self.committed) <= listed
            for ref in listed:
                session = read_manifest(repository, ref).session_id
                assert restore(repository, ref) == self.images[session]
            report = verify(repository, full=True)
            assert report.sound, report.damage

    def check_forgotten(self) -> None:
        """Whatever is among the forgotten ones can be brought back."""
        with self.process() as (repository, store):
            for found in list(list_forgotten(repository)):
                session = recover(repository, store, found.ref).session_id
                assert restore(repository, found.ref) == self.images[session]

    def check_empty(self) -> None:
        """With every backup given up, also those that a first collection completes, nothing is left after a while."""
        with self.process() as (repository, store):
            collect(repository, store, CollectOptions(session_lease_s=LEASE_S))
            for ref in list(list_backups(repository)):
                forget(repository, store, ref, "the end")
            for days in (3.0, 7.1, 3.0, 3.0, 3.0, 3.0):
                self.clock.now += days * DAY_S
                purge(repository, store)
                collect(repository, store, CollectOptions(session_lease_s=LEASE_S))
        kept = ("config", "keys/", "gc/")
        left = [name for name in self.clock.stored if not name.startswith(kept)]
        assert [name for name in left if not name.endswith(("/sealed", "/outcome"))] == []


@contextmanager
def world(*, encrypted: bool) -> Iterator[World]:
    with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
        yield World(Path(folder), encrypted=encrypted)


def _scratch() -> str | None:
    """Memory where there is some to write to: thousands of small files are synced here."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


# Chunks that recur in many disks, at many places.
DISKS = tuple(
    tuple((first + step * place) % 13 for place in range(length))
    for first, step, length in (
        (2, 1, 12),
        (2, 1, 5),
        (3, 2, 9),
        (4, 0, 6),
        (5, 3, 12),
        (7, 1, 7),
        (8, 5, 10),
        (2, 4, 3),
        (0, 0, 4),
        (9, 6, 11),
    )
)
kinds = st.sampled_from(DISKS)
# Often enough, what a backup counts on was given up, and a prune does all of its work inside that backup.
MEANS = (
    "backup",
    "write",
    "commit",
    "forget",
    "drop",
    "recover",
    "purge",
    "collect",
    "cycle",
    "restore",
    "days",
)
OFTEN = (3, 1, 2, 1, 2, 1, 1, 2, 3, 1, 1)
NAMES = tuple(name for name, times in zip(MEANS, OFTEN, strict=True) for _ in range(times))
simple = st.builds(Action, st.sampled_from(NAMES), st.integers(0, 7), kinds, st.just(()))
crash = st.just(Action("crash", 0))
inside = st.lists(st.tuples(st.integers(1, 60), simple | crash), max_size=3).map(tuple)
actions = st.builds(Action, st.sampled_from(NAMES), st.integers(0, 7), kinds, inside)
SETTINGS = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@SETTINGS
@given(encrypted=st.booleans(), story=st.lists(actions, min_size=3, max_size=10))
def test_every_committed_backup_stays_equal(encrypted: bool, story: list[Action]) -> None:
    _tell(encrypted, story)


@pytest.mark.slow
@settings(SETTINGS, max_examples=400)
@given(encrypted=st.booleans(), story=st.lists(actions, min_size=5, max_size=25))
def test_every_committed_backup_stays_equal_in_long_stories(encrypted: bool, story: list[Action]) -> None:
    _tell(encrypted, story)


LONG, SHORT = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0), (2, 3, 4, 5, 6)
TWO = [Action("backup", 0, LONG), Action("backup", 0, SHORT)]
DROP, CYCLE, COLLECT = Action("drop", 0), Action("cycle", 0), Action("collect", 0)
WEEKS = (Action("days", 3), CYCLE) * 3
STANDS_STILL = {
    "backup": ([Action("backup", 0, SHORT)], Action("backup", 0, LONG), WEEKS, 60),
    "repacking": (
        [Action("backup", 0, LONG), Action("backup", 0, (2,)), DROP, Action("purge", 0)],
        COLLECT,
        WEEKS,
        50,
    ),
    "collection while another purges": ([*TWO, DROP], COLLECT, (CYCLE,), 40),
    "collection while a backup is forgotten and purged": (TWO, COLLECT, (DROP, CYCLE, CYCLE), 25),
    "purge": ([Action("backup", 0, LONG), DROP], Action("purge", 0), (CYCLE,), 25),
    "forget": (TWO, Action("forget", 0), WEEKS, 5),
}
"""What goes before, what then stands still, what others do meanwhile, and at how many operations at least."""


@pytest.mark.parametrize(("before", "action", "meanwhile", "least"), STANDS_STILL.values(), ids=STANDS_STILL)
def test_a_process_stands_still_for_weeks_at_each_of_its_operations(
    before: list[Action], action: Action, meanwhile: tuple[Action, ...], least: int
) -> None:
    """Others end its session, take for garbage what it wrote, delete that and forget that they did."""
    for at in range(1, 1000):
        with world(encrypted=False) as here:
            for earlier in before:
                here.do(earlier)
            here.log.clear()
            here.do(action._replace(inner=tuple((at, other) for other in meanwhile)))
            reached = str(meanwhile[0]) in here.log
            here.check()
            here.check_forgotten()
            here.check_empty()
        if not reached:
            assert at > least, "the action has not done anything"
            return
    raise AssertionError("there is no end of operations")


def _tell(encrypted: bool, story: list[Action]) -> None:
    with world(encrypted=encrypted) as here:
        for action in story:
            here.do(action)
            here.check()
        here.check_forgotten()
        here.check()
        here.check_empty()
