"""Whatever a disk holds, however often its backup is interrupted, and whichever byte rots: equal, or named."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.locations import PackListing, decode_locations, encode_locations
from safehaul.media.manifest import read_manifest
from safehaul.media.pack import HEADER_LENGTH, ChunkEntry, SealedPack
from safehaul.media.progress import DiskStats, ProgressRecord, decode_progress, encode_progress
from safehaul.media.reader import BackupReader
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import find_session
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    KEY_FILE,
    back_up,
    contents,
    flip,
    new_repository,
    new_session,
    pack_paths,
    restore,
)

SLOW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


Secret = RepositorySecret | None


@contextmanager
def scratch_repository(secret: Secret) -> Iterator[Repository]:
    with tempfile.TemporaryDirectory() as folder:
        repository = new_repository(Path(folder), secret=secret)
        try:
            yield repository
        finally:
            repository.close()


def reopened(repository: Repository) -> Repository:
    return Repository.open(repository.store, secret=KEY_FILE if repository.config.encrypted else None)


def chunk_content(kind: int) -> bytes:
    """0: zeros; 1: almost zeros; even: compressible; odd: not."""
    if kind == 0:
        return bytes(CHUNK)
    if kind == 1:
        return bytes(CHUNK - 1) + b"\1"
    if kind % 2 == 0:
        return (b"line %d\n" % kind * CHUNK)[:CHUNK]
    # A multiplicative generator (Lehmer, 1951): reproducible and incompressible.
    state, out = kind, bytearray()
    while len(out) < CHUNK:
        state = state * 48271 % 2147483647
        out += state.to_bytes(4, "little")
    return bytes(out[:CHUNK])


suites = st.sampled_from([None, KEY_FILE])


@st.composite
def images(draw: st.DrawFn) -> bytes:
    kinds = draw(st.lists(st.integers(0, 12), min_size=1, max_size=24))
    image = b"".join(map(chunk_content, kinds))
    return image[: len(image) - draw(st.integers(0, CHUNK - 1))]


@SLOW
@given(
    secret=suites,
    image=images(),
    tries=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3 * CHUNK)), max_size=5),
)
def test_any_disk_interrupted_anywhere_is_restored_equal(
    secret: Secret, image: bytes, tries: list[tuple[int, int]]
) -> None:
    with scratch_repository(secret) as repository:
        session = new_session(repository, "run")
        reached = 0
        for pieces, length in tries:
            # Each try is another node: nothing but the store is shared.
            mine = reopened(repository)
            with DiskWriter(find_session(mine, "run"), DISK, len(image)) as writer:
                offset = writer.resume_offset_bytes
                assert offset >= reached, "progress is never lost"
                for _ in range(pieces):
                    writer.write(image[offset : offset + length], offset)
                    offset = min(offset + length, len(image))
                reached = writer.durable_bytes
            mine.close()
        with DiskWriter(session, DISK, len(image)) as writer:
            writer.write(image[writer.resume_offset_bytes :], writer.resume_offset_bytes)
            stats = writer.finish().stats
        assert stats.bytes_read == len(image)
        assert stats.bytes_zero + stats.bytes_new + stats.bytes_deduplicated == len(image)
        verify_session(session)
        ref = commit(session, contents(image))
        assert restore(reopened(repository), ref) == image
        assert verify(repository, full=True).sound


@SLOW
@given(secret=suites, versions=st.lists(images(), min_size=2, max_size=4))
def test_every_backup_of_a_series_stays_equal(secret: Secret, versions: list[bytes]) -> None:
    with scratch_repository(secret) as repository:
        refs = [
            back_up(repository, f"run-{number}", image, f"202601{number + 1:02d}T000000Z")
            for number, image in enumerate(versions)
        ]
        for ref, image in zip(refs, versions, strict=True):
            assert restore(reopened(repository), ref) == image
        assert verify(repository, full=True).sound


@SLOW
@given(
    secret=suites,
    image=images(),
    changed=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 12)), max_size=6),
    grown=st.integers(0, 2 * CHUNK),
    condemned=st.booleans(),
)
def test_an_increment_by_known_changes_is_restored_equal(
    secret: Secret, image: bytes, changed: list[tuple[int, int]], grown: int, condemned: bool
) -> None:
    """Only the changed chunks are given; what no sound pack holds any more is asked for again."""
    with scratch_repository(secret) as repository:
        first = back_up(repository, "day-1", image)
        second = bytearray(image + bytes(grown))
        touched = set(range(len(image) // CHUNK, -(-len(second) // CHUNK)))
        for number, kind in changed:
            if (number + 1) * CHUNK <= len(image):
                second[number * CHUNK : (number + 1) * CHUNK] = chunk_content(kind)
                touched.add(number)
        if condemned:
            for path in pack_paths(repository)[:1]:
                path.unlink()
        mine = reopened(repository)
        previous = read_manifest(mine, first).disk_map(mine, DISK)
        given_bytes = 0
        with DiskWriter(
            new_session(mine, "day-2", "20260102T000000Z"), DISK, len(second), previous=previous
        ) as writer:
            position = 0
            while position < len(second):
                number = position // CHUNK
                length = min(CHUNK, len(second) - position)
                taken = 0 if number in touched else writer.skip_unchanged(length)
                if not taken:
                    writer.write(bytes(second[position : position + length]), position)
                    given_bytes += length
                position += length
            writer.finish()
        if not condemned:
            assert given_bytes <= len(touched) * CHUNK
        session = find_session(mine, "day-2")
        verify_session(session)
        ref = commit(session, contents(bytes(second)))
        assert restore(reopened(repository), ref) == bytes(second)


@SLOW
@given(
    secret=suites,
    image=images(),
    ranges=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=10),
)
def test_any_range_equals_the_disk(secret: Secret, image: bytes, ranges: list[tuple[float, float]]) -> None:
    with scratch_repository(secret) as repository:
        reader = BackupReader(repository, *back_up(repository, "run", image))
        for pair in ranges:
            start, end = sorted(int(part * len(image)) for part in pair)
            assert reader.read_range(DISK, start, end - start) == image[start:end]
        reader.close()


@SLOW
@given(secret=suites, data=st.data(), bits=st.integers(1, 255))
def test_any_changed_byte_of_a_pack_is_found_and_named(
    secret: Secret, data: st.DataObject, bits: int
) -> None:
    image = b"".join(map(chunk_content, (3, 4, 0, 5, 6, 7)))
    with scratch_repository(secret) as repository:
        ref = back_up(repository, "run", image)
        path = data.draw(st.sampled_from(pack_paths(repository)), label="pack")
        place = data.draw(st.integers(0, path.stat().st_size - 1), label="place")
        flip(path, place, bits)
        report = verify(reopened(repository), full=True)
        assert report.damaged_packs == [path.name]
        assert report.touched
        assert all(item.part == "disk Hard disk 1 (key 2000)" for item in report.touched)
        lost = {item.offset_bytes for item in report.touched if item.lost}
        problem, restored = "", b""
        try:
            restored = restore(reopened(repository), ref)
        except IntegrityError as error:
            problem = str(error)
        if problem:
            assert len(lost) == 1, "the one chunk that holds the byte"
            assert f"offset {lost.pop()}: chunk" in problem
        else:
            # A byte that no chunk depends on: trailer, footer, padding of a frame.
            assert restored == image


@SLOW
@given(secret=suites, data=st.data())
def test_any_cut_pack_is_found_and_named(secret: Secret, data: st.DataObject) -> None:
    image = b"".join(map(chunk_content, (3, 5, 7)))
    with scratch_repository(secret) as repository:
        ref = back_up(repository, "run", image)
        path = data.draw(st.sampled_from(pack_paths(repository)), label="pack")
        length = data.draw(st.integers(0, path.stat().st_size - 1), label="length")
        path.write_bytes(path.read_bytes()[:length])
        report = verify(reopened(repository))
        assert report.damaged_packs == [path.name]
        assert report.touched
        for place in report.touched:
            reader = BackupReader(reopened(repository), *ref)
            start, end = place.offset_bytes, place.offset_bytes + place.length_bytes
            try:
                # What is cut off is lost; what stands before it can be read, trailer or not.
                assert reader.read_range(DISK, start, end - start) == image[start:end]
                assert not place.lost
            except IntegrityError:
                assert place.lost
            finally:
                reader.close()


ids = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, 2**63 - 1)


@given(
    first=st.integers(0, 2**40),
    digests=st.lists(ids, min_size=1, max_size=5),
    packs=st.lists(st.tuples(ids, numbers), max_size=3),
    sums=st.tuples(*[numbers] * 6, st.integers(0, 2**32 - 1)),
    cut=st.integers(1, 40),
)
def test_a_progress_record_reads_back_and_a_cut_one_does_not(
    first: int,
    digests: list[bytes],
    packs: list[tuple[bytes, int]],
    sums: tuple[int, ...],
    cut: int,
) -> None:
    record = ProgressRecord(
        1 << 50,
        CHUNK,
        first,
        first + len(digests),
        b"".join(digests),
        DiskStats(*sums),
        [SealedPack(*pack) for pack in packs],
    )
    body = encode_progress(record)
    assert decode_progress(body, "x") == record
    with pytest.raises(IntegrityError):
        decode_progress(body[:-cut], "x")


@given(junk=st.binary(max_size=300))
def test_junk_is_refused_and_never_crashes(junk: bytes) -> None:
    for decode in (decode_progress, decode_locations):
        try:
            decode(junk, "x")
        except (IntegrityError, UnsupportedError):
            continue


@given(
    packs=st.lists(
        st.tuples(ids, st.lists(st.tuples(ids, st.integers(1, 2**20), st.integers(1, 2**20)), max_size=4)),
        max_size=3,
    ),
    variant=st.integers(0, 9),
)
def test_a_list_of_places_reads_back(
    packs: list[tuple[bytes, list[tuple[bytes, int, int]]]], variant: int
) -> None:
    listings = []
    for pack_id, chunks in packs:
        entries, offset = [], HEADER_LENGTH
        for chunk_id, stored, raw in chunks:
            entries.append(ChunkEntry(chunk_id, offset, stored, raw, stored % 2))
            offset = entries[-1].end
        listings.append(PackListing(SealedPack(pack_id, offset + 96), entries))
    assert decode_locations(encode_locations(listings, variant), "x") == listings
