"""Extents: the files (and holes) that hold a layer's sectors, and reading pieces of them into one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from safehaul.vmdk.files import OpenFile

MAX_GAP_BYTES = 32 * 1024
"""Reading on over a gap of this size is cheaper than another request to the filer."""
MAX_GROUP_BYTES = 1024 * 1024
"""Bounds the memory of one scattered read."""

Interval = tuple[int, int]
"""Bytes of an extent or disk: (start, end), end excluded."""


class Piece(NamedTuple):
    """Bytes start to end of an extent, stored in its file from `file_offset`."""

    start: int
    end: int
    file_offset: int


class Extent(Protocol):
    """A contiguous part of a layer. Offsets count bytes from the extent's own start."""

    @property
    def length_bytes(self) -> int:
        """How much of the disk it covers."""

    def pieces(self, start: int, end: int) -> list[Piece]:
        """What of start to end this extent stores: in order, without overlap."""

    def read(self, pieces: Sequence[Piece], buffer: memoryview, origin: int) -> None:
        """Read pieces; byte n of the extent goes to buffer[n - origin].

        An extent that stores all of its bytes may also fill the gaps between pieces.
        """

    def close(self) -> None:
        """Close the file."""


@dataclass(slots=True)
class FlatExtent:
    """Byte n of the extent is byte n + `file_offset` of the file."""

    file: OpenFile
    length_bytes: int
    file_offset: int

    def pieces(self, start: int, end: int) -> list[Piece]:
        """See `Extent.pieces`: everything."""
        return [Piece(start, end, self.file_offset + start)]

    def read(self, pieces: Sequence[Piece], buffer: memoryview, origin: int) -> None:
        """See `Extent.read`: straight into the buffer; small gaps are read too, for a later layer to fill."""
        index = 0
        while index < len(pieces):
            start, end, offset = pieces[index]
            index += 1
            while index < len(pieces) and pieces[index].start - end <= MAX_GAP_BYTES:
                end = pieces[index].end
                index += 1
            self.file.read_into(offset, buffer[start - origin : end - origin])

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@dataclass(slots=True)
class ZeroExtent:
    """A part of the disk that is all zeros and has no file."""

    length_bytes: int

    def pieces(self, start: int, end: int) -> list[Piece]:
        """See `Extent.pieces`: everything."""
        return [Piece(start, end, 0)]

    def read(self, pieces: Sequence[Piece], buffer: memoryview, origin: int) -> None:
        """See `Extent.read`."""
        for start, end, _ in pieces:
            fill_zeros(buffer[start - origin : end - origin])

    def close(self) -> None:
        """Nothing to close."""


def fill_zeros(buffer: memoryview) -> None:
    """Set all bytes of the buffer to zero."""
    buffer[:] = bytes(len(buffer))


def read_scattered(file: OpenFile, pieces: Sequence[Piece], buffer: memoryview, origin: int) -> None:
    """Read pieces that lie anywhere in the file, with few requests and at most MAX_GROUP_BYTES of scratch.

    Neighbours in the file are read together. What lies between them is read and dropped, never shown.
    """
    ordered = sorted(pieces, key=lambda piece: piece.file_offset)
    index = 0
    while index < len(ordered):
        first = ordered[index]
        group = [first]
        end = first.file_offset + first.end - first.start
        index += 1
        while index < len(ordered):
            piece = ordered[index]
            piece_end = piece.file_offset + piece.end - piece.start
            if (
                piece.file_offset - end > MAX_GAP_BYTES
                or max(piece_end, end) - first.file_offset > MAX_GROUP_BYTES
            ):
                break
            group.append(piece)
            end = max(end, piece_end)
            index += 1
        _read_group(file, group, end, buffer, origin)


def _read_group(file: OpenFile, group: Sequence[Piece], end: int, buffer: memoryview, origin: int) -> None:
    offset = group[0].file_offset
    if len(group) == 1:
        piece = group[0]
        file.read_into(offset, buffer[piece.start - origin : piece.end - origin])
        return
    scratch = memoryview(bytearray(end - offset))
    file.read_into(offset, scratch)
    for start, stop, file_offset in group:
        source = file_offset - offset
        buffer[start - origin : stop - origin] = scratch[source : source + stop - start]


def subtract(interval: Interval, pieces: Sequence[Piece]) -> list[Interval]:
    """What of the interval the ordered pieces leave uncovered."""
    left: list[Interval] = []
    position, end = interval
    for piece in pieces:
        if piece.start > position:
            left.append((position, piece.start))
        position = max(position, piece.end)
    if position < end:
        left.append((position, end))
    return left
