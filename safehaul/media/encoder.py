"""From bytes in order to chunk ids and payloads in order, over a few threads.

Threads test chunks for zeros, hash, ask whether the chunk is stored already, and compress; results come back in the
order of the disk, on the caller's thread. The C calls release the interpreter's lock. Whole chunks are used where
they lie, if the caller lends his buffer; else they are copied. Memory: at most HELD_CHUNKS chunks of lent buffers,
or of our own, and as many compressed ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from safehaul.media.codec import HOLE, Compressor, Encoded, ZeroTest, chunk_id

HELD_CHUNKS = 8
"""Chunks under way at once."""

THREADS = 2


class _Pending(NamedTuple):
    result: Encoded | Future[Encoded]
    after: tuple[Callable[[], None], ...] = ()
    """Called when the result has been used, on the caller's thread."""


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
        self._free: list[memoryview] = []
        self._pending: deque[_Pending] = deque()
        self._slot: memoryview | None = None
        self._filled = 0

    def feed(self, data: memoryview, give_back: Callable[[], None] | None = None) -> None:
        """Take bytes, which follow those of the last call.

        Without `give_back`, `data` may be reused after the call; with it, when `give_back` has been called, on this
        thread and during this call or a later one. Of all lent buffers at most HELD_CHUNKS chunks are kept.
        """
        lent = False
        while data:
            if give_back is not None and self._slot is None and len(data) >= self._size:
                self._submit(data[: self._size])
                data, lent = data[self._size :], True
                continue
            if self._slot is None:
                # Before the buffer is taken: what is waited for may free one.
                self._make_room()
                self._slot = self._free.pop() if self._free else memoryview(bytearray(self._size))
            count = min(len(data), self._size - self._filled)
            self._slot[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == self._size:
                self.end_chunk()
        if give_back is None:
            return
        if lent and self._pending:
            last = self._pending.pop()
            self._pending.append(_Pending(last.result, (*last.after, give_back)))
        else:
            give_back()

    def feed_hole(self) -> None:
        """Take one whole chunk that is known to be zero. Only at a chunk's start."""
        assert self._filled == 0, "a hole in the middle of a chunk is fed as zeros"
        self._append(Encoded(HOLE, self._size))

    def feed_stored(self, chunk_id: bytes, length: int) -> None:
        """Take one whole chunk that is stored already, by its id. Only at a chunk's start."""
        assert self._filled == 0, "a stored chunk in the middle of another one"
        self._append(Encoded(chunk_id, length))

    def end_chunk(self) -> None:
        """Close the chunk that is being filled; it may be short (the last of a disk or a file)."""
        if self._slot is None:
            return
        slot, length = self._slot, self._filled
        self._slot, self._filled = None, 0
        self._submit(slot[:length], lambda: self._free.append(slot))

    def drain(self) -> None:
        """Hand over every result that is still under way."""
        while self._pending:
            self._take_oldest()

    def close(self) -> None:
        """Stop the threads; results under way are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, data: memoryview, *after: Callable[[], None]) -> None:
        self._make_room()
        self._pending.append(_Pending(self._pool.submit(self._encode, data), after))

    def _append(self, encoded: Encoded) -> None:
        self._make_room()
        self._pending.append(_Pending(encoded))

    def _make_room(self) -> None:
        while len(self._pending) >= HELD_CHUNKS:
            self._take_oldest()

    def _take_oldest(self) -> None:
        result, after = self._pending.popleft()
        # The payload may be the chunk itself: its buffer is free only after the result has been used.
        self._on_chunk(result.result() if isinstance(result, Future) else result)
        for call in after:
            call()

    def _encode(self, data: memoryview) -> Encoded:
        length = len(data)
        if self._is_zero(data):
            return Encoded(HOLE, length)
        identity = chunk_id(self._key, data)
        if self._known(identity):
            return Encoded(identity, length)
        flags, payload = self._compressor.compress(data)
        return Encoded(identity, length, flags, payload)
