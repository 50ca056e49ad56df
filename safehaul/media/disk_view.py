"""Any byte range of a disk in a backup, without reading the rest: for tools that read here and there.

A read fetches and checks only the chunks that it touches; those are kept for the next read, up to a bound. File-level
restore and live mount stand on this.
"""

from __future__ import annotations

from collections import OrderedDict

from safehaul.errors import InvalidInputError
from safehaul.media.reader import BackupReader, Hole

DEFAULT_CACHE_BYTES = 32 << 20


class DiskView:
    """One disk as a file that can be read at any place. For one thread.

    Args:
        reader: the backup's; it stays the caller's to close.
        disk_key: the disk.
        cache_bytes: decoded chunks that are kept, at most; at least one always is.
    """

    def __init__(self, reader: BackupReader, disk_key: int, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._reader = reader
        self._disk = reader.manifest.disk(disk_key)
        self._chunk_size = self._disk.chunk_size_bytes
        self._keep = max(1, cache_bytes // self._chunk_size)
        self._chunks: OrderedDict[int, bytes | None] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """The disk's capacity."""
        return self._disk.capacity_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return a range of the disk; less than asked for only at the disk's end, as a file does.

        Raises InvalidInputError for a range that begins before or beyond the disk, IntegrityError naming disk, offset,
        chunk and pack.
        """
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes > self.size_bytes:
            raise InvalidInputError(
                f"disk {self._disk.label} has {self.size_bytes} bytes; {offset_bytes}+{length_bytes} is beyond"
            )
        end = min(offset_bytes + length_bytes, self.size_bytes)
        size = self._chunk_size
        pieces = []
        for number in range(offset_bytes // size, -(-end // size)):
            start = max(offset_bytes - number * size, 0)
            stop = min(end - number * size, size)
            chunk = self._chunk(number)
            pieces.append(bytes(stop - start) if chunk is None else chunk[start:stop])
        return b"".join(pieces)

    def _chunk(self, number: int) -> bytes | None:
        """A whole chunk; None for a hole, which costs nothing to keep."""
        if number in self._chunks:
            self._chunks.move_to_end(number)
            return self._chunks[number]
        start = number * self._chunk_size
        end = min(start + self._chunk_size, self.size_bytes)
        found = None
        for _, piece in self._reader.iter_disk(self._disk.key, start, end):
            found = None if isinstance(piece, Hole) else bytes(piece)
        self._chunks[number] = found
        while len(self._chunks) > self._keep:
            self._chunks.popitem(last=False)
        return found
