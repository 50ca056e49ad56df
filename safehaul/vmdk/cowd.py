"""COWD: the extent of a redo log of type vmfsSparse (`x-000001-delta.vmdk`), read-only.

Source: VMware, Virtual Disk Format 5.0, "ESX Server Sparse Extents"; cross-checked with libvmdk's
format document and QEMU's vmdk driver. Little-endian 32-bit numbers; offsets and sizes count 512-byte sectors:

    header, 4 sectors:  0 "COWD"   4 version (1)   8 flags   12 capacity   16 sectors in a grain (1)
                        20 sector of the grain directory   24 entries in it   28 next free sector
                        1648 unclean shutdown
    grain directory:    an entry for each 4096 grains: the sector of their grain table; 0: none of them is here
    grain table:        4096 entries: the sector of the grain; 0: not here, ask the parent

Numbers in these files are untrusted: each is checked against the disk's declared size and the file's size
before anything is allocated or read by it.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.vmdk.extents import Interval, Piece, read_scattered
from safehaul.vmdk.files import SECTOR_BYTES, OpenFile

COWD_MAGIC = b"COWD"
SESPARSE_MAGIC = b"\xbe\xba\xfe\xca"
"""0xcafebabe, little-endian: seSparse's constant header (QEMU's vmdk driver)."""
HEADER_BYTES = 4 * SECTOR_BYTES
TABLE_ENTRIES = 4096
TABLE_BYTES = TABLE_ENTRIES * 4
MAX_GRAIN_SECTORS = 128
"""ESXi uses 1; 64 KiB is the largest that any VMDK format uses by default."""
MAX_SECTORS = 0xFFFFFFFF
"""Sector numbers are 32 bits: just under 2 TiB."""
CACHED_TABLES = 32
"""For each extent, about 48 KiB each when fully fragmented; 32 tables span 64 MiB of the disk."""

_HEADER = struct.Struct("<4s7I")
_UNCLEAN_OFFSET = 1648


class _Runs(NamedTuple):
    """The allocated runs of one grain table: first grain in the table, its sector in the file, grains."""

    firsts: array[int]
    sectors: array[int]
    counts: array[int]


_NO_RUNS = _Runs(array("I"), array("I"), array("I"))


class CowdExtent:
    """`Extent` over a COWD file. Holds the grain directory (4 bytes for 2 MiB of disk), reads tables lazily.

    Threads may share it.
    """

    def __init__(self, file: OpenFile, path: str, sectors: int) -> None:
        """`sectors` is the size that the descriptor declares.

        Raises UnsupportedError for seSparse or an unknown version, IntegrityError for impossible numbers.
        The file stays the caller's to close if this raises.
        """
        self._file = file
        self._path = path
        self.length_bytes = sectors * SECTOR_BYTES
        self._cache: OrderedDict[int, _Runs] = OrderedDict()
        self._lock = threading.Lock()
        self._load(sectors)

    def _load(self, sectors: int) -> None:
        if self._file.size_bytes < HEADER_BYTES:
            raise self._bad(f"it has {self._file.size_bytes} bytes, less than a header")
        header = bytearray(HEADER_BYTES)
        self._file.read_into(0, header)
        if header.startswith(SESPARSE_MAGIC):
            raise UnsupportedError(
                f"{self._path!r} is an seSparse redo log (magic 0xcafebabe), which this version cannot read"
            )
        magic, version, _flags, capacity, grain, directory, entries, _free = _HEADER.unpack_from(header)
        if magic != COWD_MAGIC:
            raise self._bad(f"it begins with {bytes(header[:4])!r}, not with 'COWD'")
        if version != 1:
            raise UnsupportedError(f"{self._path!r} is a COWD redo log of version {version}; only 1 is known")
        if capacity != sectors or not 0 < sectors <= MAX_SECTORS:
            raise self._bad(f"its header says {capacity} sectors, its descriptor {sectors}")
        if not 0 < grain <= MAX_GRAIN_SECTORS or grain & (grain - 1):
            raise self._bad(f"a grain of {grain} sectors is impossible")
        tables = -(-sectors // (grain * TABLE_ENTRIES))
        if entries < tables:
            raise self._bad(f"its grain directory has {entries} entries, the disk needs {tables}")
        self._data_sector = directory + -(-tables * 4 // SECTOR_BYTES)
        self._file_sectors = self._file.size_bytes // SECTOR_BYTES
        if directory < HEADER_BYTES // SECTOR_BYTES or self._data_sector > self._file_sectors:
            raise self._bad("its grain directory lies outside the file")
        self.grain_bytes = grain * SECTOR_BYTES
        self.unclean = header[_UNCLEAN_OFFSET : _UNCLEAN_OFFSET + 4] != b"\x00\x00\x00\x00"
        self._directory = self._numbers(directory, tables)
        self._check_places(self._directory, TABLE_BYTES // SECTOR_BYTES, "grain directory")

    def pieces(self, start: int, end: int) -> list[Piece]:
        """See `Extent.pieces`."""
        found: list[Piece] = []
        table_span = self.grain_bytes * TABLE_ENTRIES
        for number in range(start // table_span, -(-end // table_span)):
            if not self._directory[number]:
                continue
            runs = self._runs(number)
            origin = number * table_span
            at = max(bisect_right(runs.firsts, max(start - origin, 0) // self.grain_bytes) - 1, 0)
            for index in range(at, len(runs.firsts)):
                run_start = origin + runs.firsts[index] * self.grain_bytes
                if run_start >= end:
                    break
                piece_start = max(run_start, start)
                piece_end = min(run_start + runs.counts[index] * self.grain_bytes, end)
                if piece_start < piece_end:
                    offset = runs.sectors[index] * SECTOR_BYTES + piece_start - run_start
                    found.append(Piece(piece_start, piece_end, offset))
        return found

    def read(self, pieces: Sequence[Piece], buffer: memoryview, origin: int) -> None:
        """See `Extent.read`."""
        read_scattered(self._file, pieces, buffer, origin)

    def allocated_ranges(self) -> Iterator[Interval]:
        """What this redo log stores, merged, in order, in bytes of the extent; reads each table once."""
        table_span = self.grain_bytes * TABLE_ENTRIES
        pending: Interval | None = None
        for number, sector in enumerate(self._directory):
            if not sector:
                continue
            origin = number * table_span
            for start, end, _ in self.pieces(origin, min(origin + table_span, self.length_bytes)):
                if pending and pending[1] == start:
                    pending = (pending[0], end)
                    continue
                if pending:
                    yield pending
                pending = (start, end)
        if pending:
            yield pending

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _runs(self, number: int) -> _Runs:
        with self._lock:
            runs = self._cache.get(number)
            if runs is not None:
                self._cache.move_to_end(number)
                return runs
        # Read outside the lock: two threads may read the same table once each, none waits for the filer.
        runs = self._load_table(number)
        with self._lock:
            self._cache[number] = runs
            while len(self._cache) > CACHED_TABLES:
                self._cache.popitem(last=False)
        return runs

    def _load_table(self, number: int) -> _Runs:
        table = self._numbers(self._directory[number], TABLE_ENTRIES)
        if not any(table):
            return _NO_RUNS
        self._check_places(table, self.grain_bytes // SECTOR_BYTES, f"grain table {number}")
        return _to_runs(table, self.grain_bytes // SECTOR_BYTES)

    def _check_places(self, places: array[int], sectors: int, name: str) -> None:
        if not places or not any(places):
            return
        lowest = min(filter(None, places))
        highest = max(places)
        if lowest < self._data_sector or highest + sectors > self._file_sectors:
            wrong = lowest if lowest < self._data_sector else highest
            raise self._bad(
                f"its {name} points to sector {wrong}, outside the data (sectors {self._data_sector} to "
                f"{self._file_sectors - 1})"
            )

    def _numbers(self, sector: int, count: int) -> array[int]:
        raw = bytearray(count * 4)
        self._file.read_into(sector * SECTOR_BYTES, raw)
        numbers = array("I", bytes(raw))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def _bad(self, reason: str) -> IntegrityError:
        return IntegrityError(f"redo log {self._path!r} is damaged: {reason}")


def _to_runs(table: array[int], grain_sectors: int) -> _Runs:
    firsts, sectors, counts = array("I"), array("I"), array("I")
    expected = first = 0
    for index, sector in enumerate(table):
        if sector and sector == expected:
            expected += grain_sectors
            continue
        if expected:
            counts.append(index - first)
            expected = 0
        if sector:
            first = index
            firsts.append(index)
            sectors.append(sector)
            expected = sector + grain_sectors
    if expected:
        counts.append(len(table) - first)
    return _Runs(firsts, sectors, counts)
