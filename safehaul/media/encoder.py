"""From bytes in order to chunk ids and payloads in order, over as many threads as there are processors.

Threads test chunks for zeros, hash, look up whether the chunk is stored already, and compress; results come back in the
order of the disk, on the caller's thread. The C calls release the interpreter's lock. All streams of the process share
the threads, which take chunks in the order in which they come: more threads would only take each other's place in the
processors' caches. They never wait for a store: where one has to be asked, the caller's thread does, so that a slow
store holds up its own streams alone.

Whole chunks are used where they lie, if the caller lends his buffer; else they are copied. Memory: at most HELD_CHUNKS
chunks of lent buffers, or of our own, and as many compressed ones.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import NamedTuple

from safehaul.media.codec import HOLE, Compressor, Encoded, ZeroTest, chunk_id
from safehaul.media.known_chunks import KnownChunks

HELD_CHUNKS = 4
"""Chunks whose bytes are under way at once."""

_LINED_UP = 1024
"""Chunks that wait for their turn at most; of most of them, in an increment, only the id."""

_COMPRESSOR = Compressor()


@cache
def _threads() -> ThreadPoolExecutor:
    """Of the process: idle ones cost nothing, so nobody ends them."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="chunk")


class _Pending(NamedTuple):
    result: Encoded | Future[Encoded | None]
    data: memoryview = memoryview(b"")
    after: tuple[Callable[[], None], ...] = ()
    """Called when the result has been used, on the caller's thread."""

    def is_ready(self) -> bool:
        return self.result.done() if isinstance(self.result, Future) else True


class ChunkEncoder:
    """Feeds chunks to threads and hands the results to `on_chunk` in order, on the caller's thread."""

    def __init__(
        self,
        key: bytes,
        chunk_size_bytes: int,
        known: KnownChunks,
        on_chunk: Callable[[Encoded], None],
    ) -> None:
        self._key = key
        self._size = chunk_size_bytes
        self._known = known
        self._on_chunk = on_chunk
        self._is_zero = ZeroTest(chunk_size_bytes)
        self._free: list[memoryview] = []
        self._pending: deque[_Pending] = deque()
        self._held = 0
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
            self._pending.append(last._replace(after=(*last.after, give_back)))
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
        """Drop what is under way. No buffer is in use afterwards."""
        results = [pending.result for pending in self._pending if isinstance(pending.result, Future)]
        wait([result for result in results if not result.cancel()])
        self._pending.clear()
        self._held = 0

    def _submit(self, data: memoryview, *after: Callable[[], None]) -> None:
        self._make_room()
        self._held += 1
        result = _threads().submit(self._encode, data, self._known.at_once)
        self._pending.append(_Pending(result, data, after))

    def _append(self, encoded: Encoded) -> None:
        self._pending.append(_Pending(encoded))
        # Bytes that are still being encoded do not hold up what is known already.
        while self._pending and (self._pending[0].is_ready() or len(self._pending) > _LINED_UP):
            self._take_oldest()

    def _make_room(self) -> None:
        while self._held >= HELD_CHUNKS:
            self._take_oldest()

    def _take_oldest(self) -> None:
        result, data, after = self._pending.popleft()
        if isinstance(result, Future):
            self._held -= 1
            encoded = result.result()
        else:
            encoded = result
        if encoded is None:
            encoded = self._encode(data, self._known.asked)
            assert encoded is not None
        # The payload may be the chunk itself: its buffer is free only after the result has been used.
        self._on_chunk(encoded)
        for call in after:
            call()

    def _encode(self, data: memoryview, is_known: Callable[[bytes], bool | None]) -> Encoded | None:
        """None: `is_known` does not know."""
        length = len(data)
        if self._is_zero(data):
            return Encoded(HOLE, length)
        identity = chunk_id(self._key, data)
        known = is_known(identity)
        if known is None:
            return None
        if known:
            return Encoded(identity, length)
        flags, payload = _COMPRESSOR.compress(data)
        return Encoded(identity, length, flags, payload)
