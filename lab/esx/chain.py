"""Reading and writing a disk's chain of extents: a flat base below redo logs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from lab.esx.cowd import CowdExtent
from lab.esx.objects import SECTOR_BYTES, Disk

WINDOW_BYTES = 1024 * 1024
Resolve = Callable[[str], Path]


class FlatExtent:
    """An open flat extent: byte n of the file is byte n of the disk."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.capacity_sectors = path.stat().st_size // SECTOR_BYTES
        self._handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)

    def close(self) -> None:
        """Close. Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write within the disk. Errors: ValueError outside it, OSError (EBADF when read-only)."""
        if offset_bytes < 0 or offset_bytes + len(data) > self.capacity_sectors * SECTOR_BYTES:
            message = f"{self.path}: write of {len(data)} bytes at {offset_bytes} is outside the disk"
            raise ValueError(message)
        os.pwrite(self._handle, data, offset_bytes)

    def overlay(self, buffer: bytearray, offset_bytes: int) -> None:
        """Fill `buffer` with the disk's content from `offset_bytes`."""
        data = os.pread(self._handle, len(buffer), offset_bytes)
        if len(data) != len(buffer):
            message = f"{self.path} ends at {offset_bytes + len(data)}, inside the disk"
            raise OSError(message)
        buffer[:] = data


Extent = FlatExtent | CowdExtent


def open_extent(path: Path, kind: str, *, writable: bool) -> Extent:
    """Open one link's data file. Errors: OSError, CowdError."""
    if kind == "cowd":
        return CowdExtent(path, writable=writable)
    return FlatExtent(path, writable=writable)


class ChainReader:
    """A disk as its chain shows it, opened read-only all at once. Use as a context manager."""

    def __init__(self, disk: Disk, resolve: Resolve) -> None:
        self.capacity_bytes = disk.capacity_bytes
        self._extents: list[Extent] = []
        try:
            for link in reversed(disk.chain):
                self._extents.append(open_extent(resolve(link.extent_path), link.kind, writable=False))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for extent in self._extents:
            extent.close()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """`length_bytes` from `offset_bytes`, both multiples of 512, within the disk."""
        buffer = bytearray(length_bytes)
        for extent in self._extents:
            extent.overlay(buffer, offset_bytes)
        return bytes(buffer)

    def windows(self) -> Iterator[bytes]:
        """The whole disk, in pieces of at most 1 MiB."""
        for offset in range(0, self.capacity_bytes, WINDOW_BYTES):
            yield self.read(offset, min(WINDOW_BYTES, self.capacity_bytes - offset))

    def digest(self, export: Path | None = None) -> str:
        """SHA-256 (hex) of the whole disk; with `export` the content also goes there as a raw image."""
        found = hashlib.sha256()
        if export is None:
            for window in self.windows():
                found.update(window)
            return found.hexdigest()
        with export.open("xb") as file:
            for window in self.windows():
                found.update(window)
                file.write(window)
        return found.hexdigest()
