"""Goal: a disk is read ahead in order, in spans, with bounded memory, and a failed read is told where it belongs."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.read_ahead import READ_BYTES, ReadAhead
from safehaul.errors import ConnectionLostError

SIZE = 5 * READ_BYTES + 12_345
DISK = bytes(range(251)) * (SIZE // 251 + 1)

spans_of_a_disk = st.lists(st.integers(0, SIZE), max_size=8, unique=True).map(
    lambda cuts: list(zip(*[iter(sorted(cuts))] * 2, strict=False))
)


def read_into(offset: int, buffer: memoryview) -> int:
    buffer[:] = DISK[offset : offset + len(buffer)]
    return len(buffer)


@given(spans=spans_of_a_disk, held=st.integers(0, 3))
def test_spans_come_in_order_whatever_the_taker_keeps(spans: list[tuple[int, int]], held: int) -> None:
    kept: deque[tuple[int, memoryview, object]] = deque()
    position = [start for start, end in spans for start in range(start, end, READ_BYTES)]
    with ReadAhead(read_into, spans, held) as ahead:
        while (piece := ahead.take()) is not None:
            kept.append(piece)
            if len(kept) > held:
                offset, data, give_back = kept.popleft()
                assert offset == position.pop(0)
                assert data == DISK[offset : offset + len(data)]
                assert callable(give_back)
                give_back()
    for offset, data, _ in kept:
        assert offset == position.pop(0)
        assert data == DISK[offset : offset + len(data)]
    assert not position


def test_buffers_are_used_again() -> None:
    seen = set()
    with ReadAhead(read_into, [(0, SIZE), (0, SIZE), (0, SIZE)], 0) as ahead:
        while (piece := ahead.take()) is not None:
            seen.add(id(piece.data.obj))
            piece.give_back()
    assert len(seen) <= 5


def test_reads_overlap() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(offset: int, buffer: memoryview) -> int:
        if offset < 2 * READ_BYTES:
            both.wait()
        return read_into(offset, buffer)

    with ReadAhead(meet, [(0, 2 * READ_BYTES)], 0) as ahead:
        assert ahead.take() is not None


def test_a_failed_read_comes_after_what_was_read_before_it() -> None:
    def fail(offset: int, buffer: memoryview) -> int:
        if offset == READ_BYTES:
            raise ConnectionLostError("the filer is gone")
        return read_into(offset, buffer)

    with ReadAhead(fail, [(0, SIZE)], 1) as ahead:
        piece = ahead.take()
        assert piece is not None
        assert piece.offset_bytes == 0
        with pytest.raises(ConnectionLostError, match="gone"):
            ahead.take()
