"""From bytes in order to chunk ids and payloads in order, over a few threads.

The caller's thread copies bytes into one of a fixed number of chunk buffers; threads test for zeros, hash, ask
whether the chunk is stored already, and compress; results come back in the order of the disk. The C calls
release the interpreter's lock. Memory: SLOTS buffers of one chunk and as many compressed ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from safehaul.media.codec import HOLE, Compressor, Encoded, ZeroTest, chunk_id

SLOTS = 8
"""Chunks under way at once."""

THREADS = 2


class _Slot(NamedTuple):
    buffer: bytearray
    view: memoryview


class ChunkEncoder:
    """Feeds chunks to threads and hands the results to `on_chunk` in order, on the caller's thread.

    `known` says whether an id is stored already; it is called from the threads.
    """

    def __init__(
        self,
        key: bytes,
        chunk_size_bytes: int,
        known: Callable[[bytes], bool],
        on_chunk: Callable[[Encoded], None],
        threads: int = THREADS,
    ) -> None:
        self._key = key
        self._size = chunk_size_bytes
        self._known = known
        self._on_chunk = on_chunk
        self._is_zero = ZeroTest(chunk_size_bytes)
        self._compressor = Compressor()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="chunk")
        self._free: deque[_Slot] = deque()
        for _ in range(SLOTS):
            buffer = bytearray(chunk_size_bytes)
            self._free.append(_Slot(buffer, memoryview(buffer)))
        self._pending: deque[tuple[Future[Encoded], _Slot | None]] = deque()
        self._slot: _Slot | None = None
        self._filled = 0

    def feed(self, data: memoryview) -> None:
        """Take bytes, which follow those of the last call. `data` may be reused after the call."""
        while data:
            if self._slot is None:
                while not self._free:
                    self._take_oldest()
                self._slot = self._free.popleft()
            count = min(len(data), self._size - self._filled)
            self._slot.view[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == self._size:
                self.end_chunk()

    def feed_hole(self) -> None:
        """Take one whole chunk that is known to be zero. Only at a chunk's start."""
        assert self._filled == 0, "a hole in the middle of a chunk is fed as zeros"
        self._append_done(Encoded(HOLE, self._size))

    def feed_stored(self, chunk_id: bytes, length: int) -> None:
        """Take one whole chunk that is stored already, by its id. Only at a chunk's start."""
        assert self._filled == 0, "a stored chunk in the middle of another one"
        self._append_done(Encoded(chunk_id, length))

    def _append_done(self, encoded: Encoded) -> None:
        done: Future[Encoded] = Future()
        done.set_result(encoded)
        self._pending.append((done, None))
        while len(self._pending) > SLOTS:
            self._take_oldest()

    def end_chunk(self) -> None:
        """Close the chunk that is being filled; it may be short (the last of a disk or a file)."""
        if self._slot is None:
            return
        slot, length = self._slot, self._filled
        self._slot, self._filled = None, 0
        self._pending.append((self._pool.submit(self._encode, slot, length), slot))

    def drain(self) -> None:
        """Hand over every result that is still under way."""
        while self._pending:
            self._take_oldest()

    def close(self) -> None:
        """Stop the threads; results under way are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take_oldest(self) -> None:
        future, slot = self._pending.popleft()
        # The payload may be the slot itself: it is free only after the result has been used.
        self._on_chunk(future.result())
        if slot is not None:
            self._free.append(slot)

    def _encode(self, slot: _Slot, length: int) -> Encoded:
        if length < self._size:
            slot.view[length:] = bytes(self._size - length)
        if self._is_zero(slot.buffer):
            return Encoded(HOLE, length)
        data = slot.view[:length]
        identity = chunk_id(self._key, data)
        if self._known(identity):
            return Encoded(identity, length)
        flags, payload = self._compressor.compress(data)
        return Encoded(identity, length, flags, payload)
