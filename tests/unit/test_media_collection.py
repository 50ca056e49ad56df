"""What no backup needs goes, in two steps; what any backup needs stays, whoever works meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safehaul.errors import IntegrityError, NotFoundError, StaleLeaseError
from safehaul.media.canonical import canonical_json
from safehaul.media.collection import Generation, put_generation, read_generations
from safehaul.media.envelope import Kind
from safehaul.media.forgotten import RECOVERABLE_S, Forgotten, forget, list_forgotten, purge, recover
from safehaul.media.garbage import CollectOptions, CollectReport, collect
from safehaul.media.manifest import BackupRef, forgotten_name, list_backups, read_manifest
from safehaul.media.outcome import fence, read_outcome
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import find_session
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from tests.property.watched_store import Clock, WatchedStore
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    KEY_FILE,
    PACK,
    VM,
    back_up,
    contents,
    flip,
    new_session,
    pack_paths,
    restore,
    write_disk,
)

DAY_S = 86400.0
OPTIONS = CollectOptions()


class Site:
    """A repository and its clock."""

    def __init__(self, folder: Path, *, encrypted: bool = True) -> None:
        self.folder = folder / "repository"
        self.clock = Clock()
        self.secret = KEY_FILE if encrypted else None
        Repository.init(
            self.store(), chunk_size_bytes=CHUNK, pack_size_bytes=PACK, secret=self.secret
        ).close()

    def store(self) -> WatchedStore:
        return WatchedStore(self.folder, self.clock)

    def open(self) -> Repository:
        """The repository as another process opens it."""
        return Repository.open(self.store(), secret=self.secret)

    def collect(self, options: CollectOptions = OPTIONS) -> CollectReport:
        return collect(self.open(), self.store(), options)

    def pass_days(self, days: float) -> None:
        self.clock.now += days * DAY_S

    def packs(self) -> int:
        return len(pack_paths(self.open()))

    def give_up(self, ref: BackupRef) -> None:
        """Forget a backup and purge it when its time has come."""
        forget(self.open(), self.store(), ref, "the test wants it")
        self.pass_days(RECOVERABLE_S / DAY_S)
        assert purge(self.open(), self.store()) == [ref]


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    return Site(tmp_path, encrypted=request.param)


def image(seed: int, chunks: int = 12) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK)


def test_what_no_backup_needs_goes_after_a_day_and_two_looks(site: Site) -> None:
    first = back_up(site.open(), "run-1", image(1))
    second = back_up(site.open(), "run-2", image(2), "20260102T000000Z")
    site.give_up(first)
    packs = site.packs()
    condemned = site.collect()
    assert condemned.packs_condemned == packs // 2
    assert condemned.pages_condemned == 1
    assert (site.packs(), condemned.packs_deleted) == (packs, 0)
    assert site.collect().packs_waiting == packs // 2, "a day has not passed"
    site.pass_days(1)
    deleted = site.collect()
    assert (deleted.packs_deleted, deleted.pages_deleted) == (packs // 2, 1)
    assert site.packs() == packs - packs // 2
    assert restore(site.open(), second) == image(2)
    assert verify(site.open(), full=True).sound
    after = site.collect()
    assert (after.packs_condemned, after.packs_waiting, after.packs_deleted, after.lists_merged) == (
        0,
        0,
        0,
        0,
    )
    assert len(read_generations(site.open())) == 1, "the last one stays, it counts"


def test_a_dry_run_changes_nothing(site: Site) -> None:
    first = back_up(site.open(), "run-1", image(1))
    site.give_up(first)
    before = dict(site.clock.stored)
    report = site.collect(CollectOptions(dry_run=True, grace_s=0))
    assert report.packs_condemned == site.packs()
    assert site.clock.stored == before


def test_a_forgotten_backup_keeps_everything_until_it_is_purged(site: Site) -> None:
    ref = back_up(site.open(), "run-1", image(1))
    forget(site.open(), site.store(), ref, "daily 7")
    forget(site.open(), site.store(), ref, "a second time")
    assert list(list_backups(site.open())) == []
    for _ in range(6):
        site.pass_days(1)
        assert purge(site.open(), site.store()) == []
        assert site.collect().packs_condemned == 0
    assert [found.ref for found in list_forgotten(site.open())] == [ref]
    recover(site.open(), site.store(), ref)
    assert restore(site.open(), ref) == image(1)
    assert list(list_forgotten(site.open())) == []
    with pytest.raises(NotFoundError, match="not among the forgotten"):
        recover(site.open(), site.store(), ref)


def test_a_recovered_backup_that_is_forgotten_again_has_its_seven_days(site: Site) -> None:
    ref = back_up(site.open(), "run-1", image(1))
    forget(site.open(), site.store(), ref, "once")
    site.pass_days(6)
    recover(site.open(), site.store(), ref)
    forget(site.open(), site.store(), ref, "twice")
    site.pass_days(6)
    assert purge(site.open(), site.store()) == []
    recover(site.open(), site.store(), ref)
    assert restore(site.open(), ref) == image(1)


def test_a_planted_forgotten_backup_takes_no_session_with_it(site: Site) -> None:
    """Whoever may write can write that a backup was forgotten, made by the session of another one."""
    session = new_session(site.open(), "run-1")
    write_disk(session, image(1))
    verify_session(session)
    planted = BackupRef(VM, "20250101T000000Z-0000000000000000")
    made = back_up(site.open(), "run-2", image(2), "20260102T000000Z")
    manifest = read_manifest(site.open(), made).model_copy(
        update={"backup_id": planted.backup_id, "session_id": "run-1"}
    )
    body = Forgotten(forgotten="20250101T000000Z", reason="planted", manifest=manifest).model_dump()
    site.open().put(Kind.FORGOTTEN, forgotten_name(planted), canonical_json(body))
    site.pass_days(8)
    assert purge(site.open(), site.store()) == [planted]
    ref = commit(session, contents(image(1)))
    assert restore(site.open(), ref) == image(1)


def test_packs_that_are_mostly_garbage_are_copied_together(site: Site) -> None:
    old = image(1)
    first = back_up(site.open(), "run-1", old)
    # One chunk of each pack (they hold three) is needed by the second backup.
    kept = b"".join(old[at : at + CHUNK] for at in range(0, len(old), 4 * CHUNK))
    second = back_up(site.open(), "run-2", kept, "20260102T000000Z")
    site.give_up(first)
    before = site.packs()
    report = site.collect()
    assert report.packs_repacked == before
    assert report.bytes_copied < report.bytes_condemned
    site.pass_days(1)
    assert site.collect().packs_deleted == before
    assert site.packs() == 1
    assert restore(site.open(), second) == kept
    assert verify(site.open(), full=True).sound


def test_a_reader_that_began_before_finds_what_was_copied_meanwhile(site: Site) -> None:
    old = image(1)
    first = back_up(site.open(), "run-1", old)
    kept = b"".join(old[at : at + CHUNK] for at in range(0, len(old), 4 * CHUNK))
    second = back_up(site.open(), "run-2", kept, "20260102T000000Z")
    reading = site.open()
    assert restore(reading, second) == kept
    site.give_up(first)
    site.collect()
    site.pass_days(1)
    assert site.collect().packs_deleted
    assert restore(reading, second) == kept


def test_a_backup_under_way_keeps_what_it_counts_on(site: Site) -> None:
    """Its disk was deduplicated against packs that lose their last backup meanwhile."""
    first = back_up(site.open(), "run-1", image(1))
    session = new_session(site.open(), "run-2", "20260102T000000Z")
    write_disk(session, image(1))
    forget(site.open(), site.store(), first, "now")
    # As if the seven days had passed: the session stays alive all the same.
    assert purge(site.open(), site.store(), older_than_s=0) == [first]
    quick = CollectOptions(grace_s=0)
    for _ in range(3):
        site.collect(quick)
    verify_session(session)
    ref = commit(session, contents(image(1)))
    for _ in range(3):
        site.collect(quick)
    assert restore(site.open(), ref) == image(1)


def test_a_commit_copies_what_was_condemned_after_its_look(site: Site) -> None:
    """The chunks are known to the writer, but not recorded yet, when the collection looks for what is needed."""
    first = back_up(site.open(), "run-1", image(1))
    session = new_session(site.open(), "run-2", "20260102T000000Z")
    with DiskWriter(session, DISK, len(image(1))) as writer:
        writer.write(image(1)[: 5 * CHUNK], 0)
        forget(site.open(), site.store(), first, "now")
        purge(site.open(), site.store(), older_than_s=0)
        quick = CollectOptions(grace_s=0)
        assert site.collect(quick).packs_condemned
        assert site.collect(quick).packs_waiting, "the session was open when they were condemned"
        writer.write(image(1)[5 * CHUNK :], 5 * CHUNK)
        writer.finish()
    verify_session(session)
    ref = commit(session, contents(image(1)))
    for _ in range(3):
        site.collect(quick)
    assert restore(site.open(), ref) == image(1)
    assert verify(site.open(), full=True).sound


def test_what_was_released_is_not_deleted_by_the_older_condemnation(site: Site) -> None:
    """A session that was opened after the release counts on it, and only the newer condemnation observes it."""
    quick = CollectOptions(grace_s=0)
    first = back_up(site.open(), "run-1", image(1))
    session = new_session(site.open(), "run-2", "20260102T000000Z")
    with DiskWriter(session, DISK, len(image(1))) as writer:
        writer.write(image(1)[: 5 * CHUNK], 0)
        forget(site.open(), site.store(), first, "now")
        purge(site.open(), site.store(), older_than_s=0)
        assert site.collect(quick).packs_condemned
        writer.write(image(1)[5 * CHUNK :], 5 * CHUNK)
        writer.finish()
    released = site.collect(quick)
    assert released.packs_waiting
    fence(session, "the test ends it")
    # The condemned packs are needed by no backup; another collector still thinks so of its own look, and releases them.
    packs = [bytes.fromhex(path.name).hex() for path in pack_paths(site.open())]
    put_generation(site.open(), Generation(released=packs))
    counting = new_session(site.open(), "run-3", "20260103T000000Z")
    with DiskWriter(counting, DISK, len(image(1))) as writer:
        writer.write(image(1), 0)
        put_generation(site.open(), Generation(condemned=packs))
        site.collect(quick)
        writer.finish()
    verify_session(counting)
    ref = commit(counting, contents(image(1)))
    assert restore(site.open(), ref) == image(1)


def test_a_dead_session_is_fenced_and_its_packs_go(site: Site) -> None:
    session = new_session(site.open(), "run-1")
    with DiskWriter(session, DISK, len(image(1, 40))) as writer:
        writer.write(image(1, 40)[: 30 * CHUNK], 0)
    assert site.packs()
    assert site.collect().sessions_open == 1
    site.pass_days(2)
    assert site.collect().sessions_fenced == 1
    late = find_session(site.open(), "run-1")
    with pytest.raises(StaleLeaseError):
        write_disk(late, image(1, 40))
    verify_session(late)
    with pytest.raises(StaleLeaseError, match="nothing was written to it for 48 hours"):
        commit(late, contents(image(1, 40)))
    site.collect()
    site.pass_days(2)
    site.collect()
    assert site.packs() == 0
    outcome = read_outcome(site.open(), session.prefix)
    assert outcome is not None
    assert outcome.fenced, "a fence outlives its session's other objects"
    assert [name for name in site.clock.stored if name.startswith("sessions/")] == [
        f"{session.prefix}{name}" for name in ("sealed", "outcome")
    ]
    site.pass_days(91)
    site.collect()
    assert not [name for name in site.clock.stored if name.startswith("sessions/")]


def test_a_commit_that_died_before_its_manifest_is_completed(site: Site) -> None:
    session = new_session(site.open(), "run-1")
    write_disk(session, image(1))
    verify_session(session)
    ref = commit(session, contents(image(1)))
    (site.folder / "manifests" / VM / ref.backup_id).unlink()
    site.pass_days(3)
    site.collect()
    assert read_manifest(site.open(), ref).session_id == "run-1"
    assert restore(site.open(), ref) == image(1)


def test_nothing_is_collected_while_a_backup_cannot_be_read(site: Site) -> None:
    first = back_up(site.open(), "run-1", image(1))
    second = back_up(site.open(), "run-2", image(2), "20260102T000000Z")
    site.give_up(first)
    flip(site.folder / "manifests" / VM / second.backup_id, 40)
    before = site.packs()
    with pytest.raises(IntegrityError, match=r"nothing was collected.*safehaul repo repair"):
        site.collect()
    assert site.packs() == before


def test_a_pack_that_no_list_names_is_known_by_its_trailer(site: Site) -> None:
    ref = back_up(site.open(), "run-1", image(1))
    for path in (site.folder / "idx").iterdir():
        path.unlink()
    with pytest.raises(IntegrityError, match="no pack holds"):
        restore(site.open(), ref)
    site.pass_days(3)
    report = site.collect()
    assert (report.packs_condemned, report.packs_listed) == (0, site.packs())
    assert restore(site.open(), ref) == image(1)


def test_a_damaged_pack_goes_when_its_chunks_are_stored_again(site: Site) -> None:
    first = back_up(site.open(), "run-1", image(1))
    flip(pack_paths(site.open())[0], 300)
    assert not verify(site.open(), full=True, note_damage=True).sound
    site.pass_days(3)
    assert site.collect().packs_condemned == 0, "parts of it may be all that is left"
    back_up(site.open(), "run-2", image(1), "20260102T000000Z")
    site.pass_days(3)
    assert site.collect().packs_condemned == 1
    site.pass_days(1)
    assert site.collect().packs_deleted == 1
    assert restore(site.open(), first) == image(1)
    assert verify(site.open(), full=True).sound


def test_many_short_lists_become_one(site: Site) -> None:
    refs = [back_up(site.open(), f"run-{n}", image(n, 2), f"202601{n + 1:02d}T000000Z") for n in range(31)]
    assert site.collect().lists_merged == 0
    refs.append(back_up(site.open(), "run-32", image(32, 2), "20260201T000000Z"))
    before = site.open()
    before.refresh_index()
    assert site.collect().lists_merged == 32
    assert len(list((site.folder / "idx").iterdir())) == 1
    assert restore(site.open(), refs[0]) == image(0, 2)
    assert restore(before, refs[1]) == image(1, 2)
    assert verify(site.open(), full=True).sound
