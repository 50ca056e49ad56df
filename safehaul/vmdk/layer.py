"""One layer of a chain: a descriptor and its extents, opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safehaul.errors import IntegrityError
from safehaul.vmdk.cowd import CowdExtent
from safehaul.vmdk.descriptor import (
    MAX_DESCRIPTOR_BYTES,
    Descriptor,
    DiskFormat,
    ExtentLine,
    parse_descriptor,
)
from safehaul.vmdk.extents import Extent, FlatExtent, Interval, Piece, ZeroExtent, subtract
from safehaul.vmdk.files import SECTOR_BYTES, DiskFiles


@dataclass(frozen=True, slots=True)
class ExtentFacts:
    """One extent as it was found."""

    path: str
    """Empty for a hole without a file."""
    type: str
    length_bytes: int
    """How much of the disk it covers."""
    size_bytes: int
    """Of the file."""


class Layer:
    """A disk image of the chain. Offsets count bytes of the disk."""

    def __init__(self, files: DiskFiles, path: str) -> None:
        """Read the descriptor and open every extent.

        Raises UnsupportedError, IntegrityError, or what opening the files raises; nothing stays open then.
        """
        self.path = path
        self.descriptor: Descriptor = read_descriptor(files, path)
        self.facts: list[ExtentFacts] = []
        self._extents: list[tuple[int, Extent]] = []
        """With the offset on the disk at which each begins."""
        position = 0
        try:
            for line in self.descriptor.extents:
                extent, facts = _open_extent(files, path, line)
                self._extents.append((position, extent))
                self.facts.append(facts)
                position += extent.length_bytes
        except BaseException:
            self.close()
            raise
        self.length_bytes = position

    @property
    def opaque(self) -> bool:
        """True if nothing below this layer shows through."""
        return self.descriptor.format is DiskFormat.FLAT

    @property
    def paths(self) -> list[str]:
        """The descriptor and every extent's file."""
        return [self.path, *(facts.path for facts in self.facts if facts.path)]

    @property
    def unclean(self) -> bool:
        """True if a redo log was not closed by its host."""
        return any(isinstance(extent, CowdExtent) and extent.unclean for _, extent in self._extents)

    def claim(self, wanted: Sequence[Interval]) -> tuple[list[Piece], list[Interval]]:
        """Split ordered intervals into what this layer stores and what it leaves to the layers below."""
        owned: list[Piece] = []
        left: list[Interval] = []
        for interval in wanted:
            pieces: list[Piece] = []
            for position, extent in self._extents:
                start = max(interval[0], position)
                end = min(interval[1], position + extent.length_bytes)
                if start < end:
                    pieces += [
                        Piece(piece.start + position, piece.end + position, piece.file_offset)
                        for piece in extent.pieces(start - position, end - position)
                    ]
            owned += pieces
            left += subtract(interval, pieces)
        return owned, left

    def read(self, pieces: Sequence[Piece], buffer: memoryview, origin: int) -> None:
        """Read claimed pieces; byte n of the disk goes to buffer[n - origin].

        A flat layer may also fill small gaps between the pieces: lower layers must be read first.
        """
        for position, extent in self._extents:
            end = position + extent.length_bytes
            mine = [
                Piece(piece.start - position, piece.end - position, piece.file_offset)
                for piece in pieces
                if position <= piece.start < end
            ]
            if mine:
                extent.read(mine, buffer, origin - position)

    def probe(self) -> None:
        """Read one sector of every flat extent: opening one needs no READ, which is what a filer refuses.

        A redo log has been read when it was opened. Raises what reading raises.
        """
        buffer = memoryview(bytearray(SECTOR_BYTES))
        for _, extent in self._extents:
            if isinstance(extent, FlatExtent) and extent.length_bytes:
                extent.read(extent.pieces(0, SECTOR_BYTES), buffer, 0)

    def allocated_ranges(self) -> list[Interval] | None:
        """What a redo log stores, merged, in bytes of the disk; None for a flat layer, which stores all."""
        if self.opaque:
            return None
        return [
            (start + position, end + position)
            for position, extent in self._extents
            if isinstance(extent, CowdExtent)
            for start, end in extent.allocated_ranges()
        ]

    def close(self) -> None:
        """Close every extent, also when one fails to close."""
        errors: list[Exception] = []
        for _, extent in self._extents:
            try:
                extent.close()
            except Exception as error:  # noqa: BLE001 - the other handles must be released too; raised below
                errors.append(error)
        self._extents.clear()
        if errors:
            raise errors[0]


def read_descriptor(files: DiskFiles, path: str) -> Descriptor:
    """Read and parse the descriptor at the path; at most 64 KiB are read."""
    file = files.open_read(path)
    try:
        raw = bytearray(min(file.size_bytes, MAX_DESCRIPTOR_BYTES + 1))
        file.read_into(0, raw)
    finally:
        file.close()
    return parse_descriptor(bytes(raw), path)


def _open_extent(files: DiskFiles, descriptor_path: str, line: ExtentLine) -> tuple[Extent, ExtentFacts]:
    length = line.sectors * SECTOR_BYTES
    if line.type == "ZERO":
        return ZeroExtent(length), ExtentFacts("", line.type, length, 0)
    path = files.sibling(descriptor_path, line.name)
    file = files.open_read(path)
    try:
        facts = ExtentFacts(path, line.type, length, file.size_bytes)
        if line.type == "VMFSSPARSE":
            return CowdExtent(file, path, line.sectors), facts
        _check_flat_size(facts, line, descriptor_path)
        return FlatExtent(file, length, line.offset_sectors * SECTOR_BYTES), facts
    except BaseException:
        file.close()
        raise


def _check_flat_size(facts: ExtentFacts, line: ExtentLine, descriptor_path: str) -> None:
    # The size alone: a flat extent's content is the guest's, and never looked at to tell what the file is.
    declared = (line.offset_sectors + line.sectors) * SECTOR_BYTES
    if facts.size_bytes != declared:
        raise IntegrityError(
            f"extent {facts.path!r} has {facts.size_bytes} bytes; its descriptor {descriptor_path!r} "
            f"declares {declared}"
        )
