"""All streams share the threads that hash and compress: none of them waits there for another one's store."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from unittest.mock import patch

import pytest

from safehaul.errors import TransientError
from safehaul.media.codec import Compressor, Encoded
from safehaul.media.encoder import HELD_CHUNKS, ChunkEncoder
from safehaul.media.known_chunks import KnownChunks
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from tests.unit.media_backup import (
    CHUNK,
    back_up,
    new_repository,
    new_session,
    pack_paths,
    reopen,
    write_disk,
)

CHUNKS = 40


def _image(seed: int) -> bytes:
    return random.Random(seed).randbytes(CHUNKS * CHUNK)


def _backed_up(folder: Path, image: bytes) -> Repository:
    """A repository that has the image's chunks, as a process opens it that has not asked for any pack yet."""
    back_up(new_repository(folder), "first", image)
    return reopen(folder)


def test_a_store_that_does_not_answer_holds_up_its_own_streams_only(tmp_path: Path) -> None:
    """Chunks that the index knows need the store's word on their packs; eight such streams wait for it here."""
    known = _image(1)
    slow = _backed_up(tmp_path / "slow", known)
    quick = new_repository(tmp_path / "quick")
    asked, answer = threading.Semaphore(0), threading.Event()
    size = LocalStore.size

    def late(store: LocalStore, name: str) -> int:
        if store is slow.store and name.startswith("packs/") and not answer.is_set():
            asked.release()
            assert answer.wait(60)
        return size(store, name)

    with patch.object(LocalStore, "size", late):
        sessions = [new_session(slow, f"slow-{number}") for number in range(8)]
        streams = [threading.Thread(target=write_disk, args=(session, known)) for session in sessions]
        for stream in streams:
            stream.start()
        try:
            assert all(asked.acquire(timeout=20) for _ in streams)
            written = write_disk(new_session(quick, "quick"), _image(2))
            assert written.stats.bytes_new == CHUNKS * CHUNK
            assert all(stream.is_alive() for stream in streams)
        finally:
            answer.set()
            for stream in streams:
                stream.join(60)
    for number in range(8):
        done = write_disk(new_session(slow, f"slow-{number}"), known)
        assert (done.stats.bytes_new, done.stats.bytes_deduplicated) == (0, CHUNKS * CHUNK)


def test_a_chunk_whose_pack_the_store_has_lost_is_stored_again(tmp_path: Path) -> None:
    image = _image(3)
    repository = _backed_up(tmp_path, image)
    for path in pack_paths(repository):
        path.unlink()
    assert write_disk(new_session(repository, "again"), image).stats.bytes_new == len(image)


def test_an_error_of_the_store_reaches_the_stream_that_asked(tmp_path: Path) -> None:
    image = _image(4)
    repository = _backed_up(tmp_path, image)
    with (
        patch.object(LocalStore, "size", side_effect=TransientError("the store is away")),
        pytest.raises(TransientError, match="the store is away"),
    ):
        write_disk(new_session(repository, "again"), image)
    assert write_disk(new_session(repository, "again"), image).stats.bytes_deduplicated == len(image)


def test_what_is_known_goes_on_while_bytes_are_encoded_and_comes_in_order(tmp_path: Path) -> None:
    """In an increment: a changed chunk, then many unchanged ones, then the next changed one."""
    repository, image = new_repository(tmp_path), _image(5)
    taken: list[Encoded] = []
    encoder = ChunkEncoder(b"k" * 32, CHUNK, KnownChunks(repository), taken.append)
    compress, go_on = Compressor.compress, threading.Event()

    def slow(compressor: Compressor, data: memoryview) -> tuple[int, bytes | memoryview]:
        assert go_on.wait(60)
        return compress(compressor, data)

    def increment() -> None:
        for number in range(HELD_CHUNKS):
            encoder.feed(memoryview(image)[number * CHUNK : (number + 1) * CHUNK])
            for unchanged in range(100):
                encoder.feed_stored(bytes([number, unchanged]) * 16, CHUNK)

    with patch.object(Compressor, "compress", slow):
        reading = threading.Thread(target=increment)
        reading.start()
        try:
            reading.join(20)
            assert not reading.is_alive(), "it waits for a chunk that is being compressed"
            assert not taken
        finally:
            go_on.set()
            reading.join(60)
    encoder.drain()
    expected = [bytes([number, unchanged]) * 16 for number in range(HELD_CHUNKS) for unchanged in range(100)]
    assert [chunk.chunk_id for chunk in taken if chunk.payload is None] == expected
    assert [at for at, chunk in enumerate(taken) if chunk.payload is not None] == [
        number * 101 for number in range(HELD_CHUNKS)
    ]
    encoder.close()
