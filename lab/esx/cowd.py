"""COWD: the extent of an ESXi redo log (`x-000001-delta.vmdk`), readable and writable.

Source: VMware "Virtual Disk Format 5.0", "ESX Server Sparse Extents"; libvmdk's format document; both agree
with what QEMU's vmdk driver reads. All numbers are little-endian u32, all offsets count 512-byte sectors.

    sector 0-3   header: 0 magic "COWD", 4 version 1, 8 flags 3, 12 capacity, 16 grain size (1 sector),
                 20 offset of the grain directory (4), 24 entries in it, 28 next free sector,
                 32 parent's file name (1024 bytes), 1056 parent's generation, 1060 generation,
                 1064 name (60 bytes), 1124 description (512 bytes), 1636 saved generation,
                 1648 unclean shutdown
    sector 4 …   grain directory: for each 4096 grains the sector of their grain table, 0 = none
    after it     grain tables (4096 entries = 16 KiB: a grain's sector, 0 = read the parent), and grains

New grains go to the end of the file. A write stores the grains first, then their table entries, then (for a
new table) the directory entry, so that a process killed between two of these leaves the old content.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

SECTOR_BYTES = 512
MAGIC = b"COWD"
HEADER_SECTORS = 4
TABLE_ENTRIES = 4096
TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR_BYTES
# Sector numbers are u32 and VMware stops at 2 TB (see "Virtual Disk Format 5.0").
MAX_SECTORS = 0xFFFFFFFF

_FIXED = struct.Struct("<4s7I")
_FREE_SECTOR_OFFSET = 28
_PARENT_OFFSET = 32
_PARENT_BYTES = 1024
_NAME_OFFSET = 1064


class CowdError(Exception):
    """The file is no COWD extent, or it contradicts itself."""


def create_cowd(path: Path, capacity_sectors: int, parent_name: str) -> None:
    """Make an empty extent (mode 0600). Errors: FileExistsError, CowdError when the disk is too large."""
    if not 0 < capacity_sectors <= MAX_SECTORS:
        message = f"{path}: {capacity_sectors} sectors do not fit a COWD extent"
        raise CowdError(message)
    tables = -(-capacity_sectors // TABLE_ENTRIES)
    directory_sectors = -(-tables * 4 // SECTOR_BYTES)
    header = bytearray(HEADER_SECTORS * SECTOR_BYTES)
    free = HEADER_SECTORS + directory_sectors
    _FIXED.pack_into(header, 0, MAGIC, 1, 3, capacity_sectors, 1, HEADER_SECTORS, tables, free)
    parent = parent_name.encode()[: _PARENT_BYTES - 1]
    header[_PARENT_OFFSET : _PARENT_OFFSET + len(parent)] = parent
    name = path.name.encode()[:59]
    header[_NAME_OFFSET : _NAME_OFFSET + len(name)] = name
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.pwrite(handle, bytes(header) + bytes(directory_sectors * SECTOR_BYTES), 0)
    finally:
        os.close(handle)


class CowdExtent:
    """An open COWD extent. Not thread-safe: the VM's lock guards it. `close()` it after use."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            self._load()
        except BaseException:
            os.close(self._handle)
            raise

    def _load(self) -> None:
        raw = os.pread(self._handle, _FIXED.size, 0)
        if len(raw) < _FIXED.size or raw[:4] != MAGIC:
            message = f"{self.path} does not begin with a COWD header"
            raise CowdError(message)
        _, version, _, capacity, grain, directory, tables, free = _FIXED.unpack(raw)
        if version != 1 or grain != 1 or tables != -(-capacity // TABLE_ENTRIES):
            message = f"{self.path}: version {version}, grain {grain}, {tables} tables: not supported"
            raise CowdError(message)
        self.capacity_sectors: int = capacity
        self._directory_sector = directory
        self._directory = _u32(os.pread(self._handle, tables * 4, directory * SECTOR_BYTES))
        if len(self._directory) != tables:
            message = f"{self.path} ends inside its grain directory"
            raise CowdError(message)
        self._tables: dict[int, array[int]] = {}
        size = os.fstat(self._handle).st_size
        # After a kill the header may lag behind the file; what lies beyond it is unused or referenced.
        self._free: int = max(free, -(-size // SECTOR_BYTES))

    def close(self) -> None:
        """Store the next free sector and close. Idempotent."""
        if self._handle < 0:
            return
        if self.writable:
            os.pwrite(self._handle, struct.pack("<I", self._free), _FREE_SECTOR_OFFSET)
        os.close(self._handle)
        self._handle = -1

    @property
    def size_bytes(self) -> int:
        """Bytes of the file that are in use."""
        return self._free * SECTOR_BYTES

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write whole sectors. Errors: ValueError outside the disk, OSError (EBADF when read-only)."""
        sector, rest = divmod(offset_bytes, SECTOR_BYTES)
        count, part = divmod(len(data), SECTOR_BYTES)
        if rest or part or sector < 0 or sector + count > self.capacity_sectors:
            message = f"{self.path}: write of {len(data)} bytes at {offset_bytes} is not within its sectors"
            raise ValueError(message)
        done = 0
        while done < count:
            table, entry = divmod(sector + done, TABLE_ENTRIES)
            part = min(count - done, TABLE_ENTRIES - entry)
            self._write_in_table(table, entry, data[done * SECTOR_BYTES : (done + part) * SECTOR_BYTES])
            done += part

    def _write_in_table(self, number: int, first: int, data: bytes) -> None:
        table = self._table(number)
        new_table = table is None
        if table is None:
            table = array("I", bytes(TABLE_ENTRIES * 4))
            table_sector = self._free
            self._free += TABLE_SECTORS
        else:
            table_sector = self._directory[number]
        count = len(data) // SECTOR_BYTES
        old = table[first : first + count]
        done = 0
        while done < count:
            length = _run_length(old, done)
            target = old[done]
            if target == 0:
                target = self._free
                self._free += length
                table[first + done : first + done + length] = array("I", range(target, target + length))
            part = data[done * SECTOR_BYTES : (done + length) * SECTOR_BYTES]
            os.pwrite(self._handle, part, target * SECTOR_BYTES)
            done += length
        if new_table:
            os.pwrite(self._handle, _bytes(table), table_sector * SECTOR_BYTES)
            self._tables[number] = table
            self._directory[number] = table_sector
            entry_offset = self._directory_sector * SECTOR_BYTES + number * 4
            os.pwrite(self._handle, struct.pack("<I", table_sector), entry_offset)
        elif 0 in old:
            offset = table_sector * SECTOR_BYTES + first * 4
            os.pwrite(self._handle, _bytes(table[first : first + count]), offset)

    def _table(self, number: int) -> array[int] | None:
        if self._directory[number] == 0:
            return None
        table = self._tables.get(number)
        if table is None:
            sector = self._directory[number]
            table = _u32(os.pread(self._handle, TABLE_ENTRIES * 4, sector * SECTOR_BYTES))
            if len(table) != TABLE_ENTRIES:
                message = f"{self.path} ends inside grain table {number}"
                raise CowdError(message)
            self._tables[number] = table
        return table

    def runs(self, first_sector: int = 0, end_sector: int | None = None) -> Iterator[tuple[int, int, int]]:
        """What this extent holds, in order: (sector of the disk, sectors, sector in the file)."""
        end = self.capacity_sectors if end_sector is None else min(end_sector, self.capacity_sectors)
        sector = first_sector
        while sector < end:
            number, entry = divmod(sector, TABLE_ENTRIES)
            count = min(end - sector, TABLE_ENTRIES - entry)
            table = self._table(number)
            if table is not None:
                entries = table[entry : entry + count]
                done = 0
                while done < count:
                    length = _run_length(entries, done)
                    if entries[done]:
                        yield sector + done, length, entries[done]
                    done += length
            sector += count

    def read_grains(self, place: int, count: int) -> bytes:
        """`count` sectors of the file from sector `place`, as `runs` told. Errors: CowdError when it ends
        before.
        """
        data = os.pread(self._handle, count * SECTOR_BYTES, place * SECTOR_BYTES)
        if len(data) != count * SECTOR_BYTES:
            message = f"{self.path} ends before its grain at sector {place}"
            raise CowdError(message)
        return data

    def overlay(self, buffer: bytearray, offset_bytes: int) -> None:
        """Put what this extent holds over `buffer`, which shows the disk from `offset_bytes` (sector-
        aligned).
        """
        first = offset_bytes // SECTOR_BYTES
        for sector, count, place in self.runs(first, first + len(buffer) // SECTOR_BYTES):
            start = (sector - first) * SECTOR_BYTES
            data = self.read_grains(place, count)
            buffer[start : start + len(data)] = data


def _run_length(entries: array[int], start: int) -> int:
    """Entries from `start` that are all unallocated, or lie one after another in the file."""
    first = entries[start]
    end = start + 1
    if first == 0:
        while end < len(entries) and entries[end] == 0:
            end += 1
    else:
        while end < len(entries) and entries[end] == first + end - start:
            end += 1
    return end - start


def _u32(raw: bytes) -> array[int]:
    values = array("I", raw[: len(raw) // 4 * 4])
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _bytes(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()
