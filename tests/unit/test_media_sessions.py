"""A backup that was interrupted goes on where it was durable, on any node; two tries at once harm nothing."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from safehaul.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    StaleLeaseError,
    TransientError,
)
from safehaul.media.manifest import (
    BackupIndex,
    BackupRef,
    Skipped,
    latest_manifest,
    list_backups,
    read_index,
    read_manifest,
    write_index,
)
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, session_backup, verify_session
from safehaul.media.sessions import find_session, open_session
from safehaul.media.store_local import LocalStore
from safehaul.media.writer import RECORD_PACKS, DiskWriter
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    PACK,
    SECRETS,
    VM,
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


@pytest.fixture(params=SECRETS)
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    return new_repository(tmp_path, secret=request.param)


def image_of(seed: int, chunks: int = 40) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK + 512)


def write_all(writer: DiskWriter, image: bytes) -> None:
    for offset in range(0, len(image), CHUNK):
        writer.write(image[offset : offset + CHUNK], offset)
    writer.finish()


def test_a_second_opening_finds_the_same_session_and_another_snapshot_is_refused(
    repository: Repository,
) -> None:
    first = new_session(repository, "run-1", "20260101T000000Z")
    assert new_session(repository, "run-1", "20270101T000000Z").info == first.info
    assert find_session(repository, "run-1").info == first.info
    with pytest.raises(InvalidInputError, match="point_in_time"):
        open_session(repository, "run-1", vc_guid=VM, vm_name="web 1", point_in_time="snapshot-8")
    with pytest.raises(NotFoundError, match="run-2"):
        find_session(repository, "run-2")


def test_an_abandoned_write_goes_on_and_reads_at_most_one_pack_of_new_data_again(
    repository: Repository,
) -> None:
    image = image_of(1)
    session = new_session(repository, "run-1")
    durable: list[int] = []
    with DiskWriter(session, DISK, len(image), on_durable=durable.append) as writer:
        writer.write(image[: 30 * CHUNK], 0)
    resumed = DiskWriter(find_session(repository, "run-1"), DISK, len(image))
    with resumed:
        assert 0 <= 30 * CHUNK - resumed.resume_offset_bytes <= PACK + resumed.held_buffers * CHUNK
        assert resumed.resume_offset_bytes >= durable[-1] > 0
        assert durable == sorted(durable)
        assert resumed.stats.bytes_read == resumed.resume_offset_bytes
    writer = write_disk(session, image)
    assert writer.resume_offset_bytes == resumed.resume_offset_bytes
    assert writer.stats.bytes_read == len(image) == writer.stats.bytes_new
    again = write_disk(session, image)
    assert again.resume_offset_bytes == len(image)


def test_progress_is_recorded_where_nothing_is_stored(repository: Repository) -> None:
    """A disk of zeros, and one with a single new chunk, must not be read again from the start."""
    capacity = 40 * CHUNK
    session = new_session(repository, "run-1")
    with DiskWriter(session, 1, capacity) as writer:
        writer.write_hole(0, 30 * CHUNK)
        writer._encoder.drain()
    with DiskWriter(session, 1, capacity) as writer:
        assert writer.resume_offset_bytes >= 30 * CHUNK - PACK
    with DiskWriter(session, 2, capacity) as writer:
        writer.write(b"new", 0)
        writer.write_hole(3, 39 * CHUNK - 3)
        writer._encoder.drain()
    with DiskWriter(session, 2, capacity) as writer:
        assert writer.resume_offset_bytes >= 39 * CHUNK - RECORD_PACKS * PACK


def test_holes_are_equal_to_written_zeros(repository: Repository) -> None:
    image = b"begin" + bytes(9 * CHUNK) + b"end"
    session = new_session(repository, "run-1")
    with DiskWriter(session, DISK, len(image)) as writer:
        writer.write(b"begin", 0)
        writer.write_hole(5, 9 * CHUNK)
        writer.write(b"end", 5 + 9 * CHUNK)
        stats = writer.finish().stats
    assert stats.bytes_zero == 8 * CHUNK
    verify_session(session)
    assert restore(repository, commit(session, contents(image))) == image


def test_bytes_out_of_order_or_beyond_the_disk_are_refused(repository: Repository) -> None:
    session = new_session(repository, "run-1")
    with DiskWriter(session, DISK, 10_000) as writer:
        with pytest.raises(InvalidInputError, match="0 is next"):
            writer.write(b"x", 1)
        with pytest.raises(InvalidInputError, match="ends at 10000"):
            writer.write(bytes(10_001), 0)
        writer.write(b"x", 0)
        with pytest.raises(InvalidInputError, match="not complete"):
            writer.finish()
    with pytest.raises(InvalidInputError, match="capacity"):
        DiskWriter(session, DISK, 0)


def test_a_session_of_another_capacity_is_not_continued(repository: Repository) -> None:
    session = new_session(repository, "run-1")
    write_disk(session, image_of(1))
    with pytest.raises(IntegrityError, match="new session"):
        DiskWriter(session, DISK, 7777)


def test_two_tries_at_once_make_one_backup(repository: Repository) -> None:
    """A zombie and its successor, with packs that end at different places."""
    image = image_of(2, 120) + bytes(20 * CHUNK) + image_of(3, 30)
    session = new_session(repository, "run-1")

    def run(piece: int) -> int:
        with DiskWriter(find_session(repository, "run-1"), DISK, len(image)) as writer:
            offset = writer.resume_offset_bytes
            while offset < len(image):
                writer.write(image[offset : offset + piece], offset)
                offset = min(offset + piece, len(image))
            return writer.finish().capacity_bytes

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, (CHUNK, 3 * CHUNK + 7, 50_000))) == [len(image)] * 3
    verify_session(session)
    assert restore(repository, commit(session, contents(image))) == image


def test_records_of_other_lengths_are_adopted(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor meets shorter, then longer records of a zombie than its own."""
    image = image_of(4, 60)
    session = new_session(repository, "run-1")
    with DiskWriter(session, DISK, len(image)) as late:
        late.write(image[: 2 * CHUNK], 0)
        late._encoder.drain()
        with monkeypatch.context() as patch:
            patch.setattr(DiskWriter, "_end_segment_if_due", lambda self: self._end_segment())
            with DiskWriter(session, DISK, len(image)) as zombie:
                zombie.write(image[: 9 * CHUNK], 0)
                zombie._encoder.drain()
        with DiskWriter(session, DISK, len(image)) as third:
            third.write(image[9 * CHUNK : 40 * CHUNK], 9 * CHUNK)
        offset = 2 * CHUNK
        late.write(image[offset:], offset)
        late.finish()
    verify_session(session)
    assert restore(repository, commit(session, contents(image))) == image


def test_two_tries_that_read_different_bytes_are_found(repository: Repository) -> None:
    session = new_session(repository, "run-1")
    one, two = image_of(5), image_of(6)
    with DiskWriter(session, DISK, len(one)) as late:
        write_disk(session, two)
        with pytest.raises(IntegrityError, match="different bytes of the frozen disk"):
            write_all(late, one)


def test_a_sealed_session_accepts_no_more(repository: Repository) -> None:
    image = image_of(7)
    session = new_session(repository, "run-1")
    late = DiskWriter(session, DISK, len(image))
    write_disk(session, image)
    verify_session(session)
    with late, pytest.raises(StaleLeaseError, match="sealed"):
        write_all(late, image)
    with pytest.raises(StaleLeaseError):
        DiskWriter(session, DISK, len(image))
    assert restore(repository, commit(session, contents(image))) == image


def test_a_store_that_fails_ends_the_try_and_the_next_one_goes_on(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(8, 60)
    session = new_session(repository, "run-1")
    puts = 0
    real = LocalStore.put_if_absent

    def failing(self: LocalStore, name: str, data: bytes) -> None:
        nonlocal puts
        puts += 1
        if puts > 4:
            raise TransientError("no space")
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put_if_absent", failing)
        with pytest.raises(TransientError):
            write_disk(session, image)
    temporary = list(repository_root(repository).rglob(".new-*"))
    assert temporary == []
    writer = write_disk(session, image)
    assert writer.resume_offset_bytes > 0
    verify_session(session)
    assert restore(repository, commit(session, contents(image))) == image


def repository_root(repository: Repository) -> Path:
    assert isinstance(repository.store, LocalStore)
    return repository.store.root


def test_nothing_is_committed_that_was_not_read_back(repository: Repository) -> None:
    image = image_of(9)
    session = new_session(repository, "run-1")
    write_disk(session, image)
    with pytest.raises(PolicyError, match="verify"):
        commit(session, contents(image))
    flip(pack_paths(repository)[0], 200)
    with pytest.raises(IntegrityError, match="does not read back"):
        verify_session(session)
    with pytest.raises(PolicyError, match="verify"):
        commit(session, contents(image))
    assert list(list_backups(repository)) == []


def test_a_commit_names_every_disk_once_and_only_complete_ones(repository: Repository) -> None:
    image = image_of(10)
    session = new_session(repository, "run-1")
    write_disk(session, image)
    with DiskWriter(session, 2001, len(image)) as half:
        half.write(image[: 30 * CHUNK], 0)
    verify_session(session)
    with pytest.raises(InvalidInputError, match="2001"):
        commit(session, contents(image))
    both = contents(image).model_copy(
        update={"disks": [*contents(image).disks, *contents(image, key=2001).disks]}
    )
    with pytest.raises(InvalidInputError, match="not complete"):
        commit(session, both)
    skipped = [Skipped(kind="disk", key=2001, label="Hard disk 2", reason="independent")]
    ref = commit(session, contents(image, skipped=skipped))
    assert read_manifest(repository, ref).skipped == skipped
    assert session_backup(session) == ref


def test_racing_committers_and_later_commits_give_one_backup(repository: Repository, tmp_path: Path) -> None:
    image = image_of(11)
    write_disk(new_session(repository, "run-1"), image)
    start = threading.Barrier(3)
    refs: list[BackupRef] = []

    def run() -> None:
        mine = reopen(tmp_path)
        session = find_session(mine, "run-1")
        start.wait()
        verify_session(session)
        refs.append(commit(session, contents(image)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 3
    assert (
        set(refs)
        == set(list_backups(repository))
        == {commit(find_session(repository, "run-1"), contents(image))}
    )
    assert restore(repository, refs[0]) == image


def test_an_interrupted_commit_is_invisible_and_can_be_repeated(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at every single write of the commit, one after the other."""
    image = image_of(12)
    session = new_session(repository, "run-1")
    write_disk(session, image)
    verify_session(session)
    real = LocalStore.put_if_absent
    for allowed in range(10):
        left = allowed

        def cut(self: LocalStore, name: str, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise TransientError("cut")
            left -= 1
            real(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "put_if_absent", cut)
            try:
                ref = commit(session, contents(image))
            except TransientError:
                assert list(list_backups(repository)) == []
                continue
        assert allowed == 4, "list of the packs, page, outcome, manifest"
        assert restore(repository, ref) == image
        return
    pytest.fail("the commit writes more objects than idx, page and manifest")


def test_the_index_comes_after_the_manifest_once(repository: Repository) -> None:
    ref = back_up(repository, "run-1", image_of(13))
    index = BackupIndex(
        backup_id=ref.backup_id, vc_guid=ref.vc_guid, status="Completed", removal={"gone": True}
    )
    assert read_index(repository, ref) is None
    write_index(repository, index)
    write_index(repository, index)
    assert read_index(repository, ref) == index
    with pytest.raises(AlreadyExistsError, match="another index"):
        write_index(repository, index.model_copy(update={"status": "Partial"}))
    with pytest.raises(NotFoundError, match="commit"):
        write_index(repository, index.model_copy(update={"backup_id": "20000101T000000Z-x"}))


def test_the_latest_backup_is_the_newest_by_time(repository: Repository) -> None:
    assert latest_manifest(repository, VM) is None
    back_up(repository, "b", image_of(14), "20260103T000000Z")
    back_up(repository, "a", image_of(14), "20260102T000000Z")
    latest = latest_manifest(repository, VM)
    assert latest is not None
    assert latest.session_id == "b"
    assert [ref.backup_id[:8] for ref in list_backups(repository, VM)] == ["20260102", "20260103"]
    assert list(list_backups(repository, "another.vm")) == []


@pytest.mark.parametrize("piece_bytes", [CHUNK, 3 * CHUNK, 5000])
def test_lent_buffers_are_given_back_in_time(repository: Repository, piece_bytes: int) -> None:
    # Repeated content and zeros too: whatever becomes of a chunk, its buffer comes back.
    image = image_of(3) + bytes(9 * CHUNK) + image_of(3) + bytes(100)
    lent: list[int] = []

    def take_back(buffer: bytearray) -> None:
        lent.remove(id(buffer))
        buffer[:] = b"x" * len(buffer)

    session = new_session(repository, "run-1")
    kept = []
    with DiskWriter(session, DISK, len(image)) as writer:
        for offset in range(0, len(image), piece_bytes):
            buffer = bytearray(image[offset : offset + piece_bytes])
            kept.append(buffer)
            lent.append(id(buffer))
            writer.write(buffer, offset, give_back=partial(take_back, buffer))
            assert len(lent) <= writer.held_buffers
        writer.finish()
        assert not lent
    verify_session(session)
    assert restore(repository, commit(session, contents(image))) == image
