"""Reads a disk ahead of whoever takes its bytes, with several reads under way, into buffers that are used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

# Two reads of 2 MiB at once were the fastest of 1 to 8 MiB and one to three reads from a filer over NFS v3, and the
# least CPU: what is small stays in the processor's cache between the socket and the hash.
READ_BYTES = 2 << 20
_READS = 2
_AHEAD = 4
"""Buffers that are read into or full, while others are with the taker."""


class Piece(NamedTuple):
    """Some bytes of the disk."""

    offset_bytes: int
    data: memoryview
    """At most READ_BYTES."""
    give_back: Callable[[], None]
    """To be called once, when `data` is no longer needed, on the thread that calls `take`."""


class ReadAhead:
    """Yields spans of a disk in order. A context manager; for one thread, its reads run on threads of its own."""

    def __init__(
        self,
        read_into: Callable[[int, memoryview], int],
        spans: Iterable[tuple[int, int]],
        held_pieces: int,
    ) -> None:
        """`read_into(offset, buffer)` fills the buffer; threads may share it. `spans`: (start, end), in order.

        `held_pieces`: of what was taken, the taker gives back all but this many before it takes more.
        """
        self._read_into = read_into
        self._units = _units(spans)
        self._free: list[memoryview] = []
        # Only a limit: a buffer is made when none is free.
        self._to_make = _AHEAD + 1 + held_pieces
        self._under_way: deque[tuple[int, memoryview, memoryview, Future[int]]] = deque()
        self._pool = ThreadPoolExecutor(_READS, thread_name_prefix="read-ahead")

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the reads under way, and stop."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self) -> Piece | None:
        """Return the next bytes, or None at the end. Raises what reading raises."""
        self._read_on()
        if not self._under_way:
            assert self._free or self._to_make, "the taker keeps more than it said"
            return None
        offset, data, buffer, reading = self._under_way.popleft()
        reading.result()
        self._read_on()
        return Piece(offset, data, lambda: self._free.append(buffer))

    def _read_on(self) -> None:
        while len(self._under_way) < _AHEAD and (self._free or self._to_make):
            unit = next(self._units, None)
            if unit is None:
                return
            offset, length = unit
            if not self._free:
                self._to_make -= 1
                self._free.append(memoryview(bytearray(READ_BYTES)))
            buffer = self._free.pop()
            data = buffer[:length]
            self._under_way.append((offset, data, buffer, self._pool.submit(self._read_into, offset, data)))


def _units(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut spans into (offset, length) of at most READ_BYTES."""
    for start, end in spans:
        for offset in range(start, end, READ_BYTES):
            yield offset, min(READ_BYTES, end - offset)
