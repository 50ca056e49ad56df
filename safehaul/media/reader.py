"""Reads backups: any range of any disk, and whole disks in order. Every chunk's digest is verified."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from safehaul.direct_io import page_buffer
from safehaul.errors import IntegrityError, InvalidInputError, NotFoundError
from safehaul.media.chunk_reader import ChunkReader, Wanted
from safehaul.media.codec import HOLE
from safehaul.media.disk_map import DiskMap
from safehaul.media.manifest import BackupRef, ManifestDisk, read_manifest
from safehaul.media.repository import Repository
from safehaul.media.sessions import StoredFile

_WINDOW_BYTES = 4 << 20

_THREADS = 2
_WINDOWS_AHEAD = 4
"""Windows that are being decoded or wait decoded, while another one is with the caller."""


def window_chunks(chunk_size_bytes: int) -> int:
    """How many chunks of a disk are read and decoded at once, by one thread."""
    return max(1, _WINDOW_BYTES // chunk_size_bytes)


class Hole(NamedTuple):
    """A range of zeros that is not stored."""

    length_bytes: int


class _Piece(NamedTuple):
    """Bytes of a disk, or a hole in it; begin and end count from the disk's start."""

    begin: int
    end: int
    is_hole: bool


class _Window(NamedTuple):
    """Some chunks of a disk that follow each other, under way into a buffer."""

    offset: int
    """Of the window on the disk."""
    pieces: list[_Piece]
    """Neighbours of one kind are joined."""
    buffer: memoryview | None
    """None: the window is one hole."""
    reading: Future[None] | None


class BackupReader:
    """Reads one committed backup; use it in one thread, and `close` it."""

    def __init__(self, repository: Repository, vc_guid: str, backup_id: str) -> None:
        self._repository = repository
        self.manifest = read_manifest(repository, BackupRef(vc_guid, backup_id))
        self._chunks = ChunkReader(repository)
        self._chunks.load_hinted(self.manifest.idx)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="restore")
        self._maps: dict[int, DiskMap] = {}

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def files(self) -> list[StoredFile]:
        """The VM's files."""
        return self.manifest.files

    def read_file(self, name: str) -> bytes:
        """Return a whole file of the VM (they are small). Raises NotFoundError, IntegrityError."""
        for stored in self.files:
            if stored.name == name:
                return self._read_stored(stored)
        raise NotFoundError(
            f"backup {self.manifest.backup_id} of VM {self.manifest.vm_name} has no file {name!r}"
        )

    def _read_stored(self, stored: StoredFile) -> bytes:
        size = self._repository.config.chunk_size_bytes
        if len(stored.chunks) != -(-stored.size_bytes // size):
            raise IntegrityError(f"file {stored.name}: its size does not agree with its chunks")
        content = bytearray(stored.size_bytes)
        view = memoryview(content)
        wanted = [
            Wanted(number * size, bytes.fromhex(text), view[number * size : (number + 1) * size])
            for number, text in enumerate(stored.chunks)
            if text != HOLE.hex()
        ]
        self._chunks.read(f"file {stored.name}", wanted)
        return bytes(content)

    def read_range(self, disk_key: int, offset_bytes: int, length_bytes: int) -> bytes:
        """Return a range of a disk. Reads only the chunks that it touches.

        Raises InvalidInputError for a range beyond the disk, IntegrityError naming disk, offset, chunk and pack.
        """
        disk = self.manifest.disk(disk_key)
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > disk.capacity_bytes:
            raise InvalidInputError(
                f"disk {disk.label} has {disk.capacity_bytes} bytes; {offset_bytes}+{length_bytes} is beyond"
            )
        pieces: list[bytes] = []
        for _, piece in self.iter_disk(disk_key, offset_bytes, offset_bytes + length_bytes):
            pieces.append(bytes(piece.length_bytes) if isinstance(piece, Hole) else bytes(piece))
        return b"".join(pieces)

    def iter_disk(
        self, disk_key: int, start_bytes: int = 0, end_bytes: int | None = None
    ) -> Iterator[tuple[int, memoryview | Hole]]:
        """Yield (offset, bytes or Hole) in order, without gaps, from `start_bytes` to before `end_bytes`.

        A memoryview is valid until the next step: its buffer is used again. Threads decode ahead of the caller. Memory:
        five windows of 4 MiB or one chunk, and a read of 4 MiB a thread. Errors as `read_range`.
        """
        disk = self.manifest.disk(disk_key)
        end = disk.capacity_bytes if end_bytes is None else min(end_bytes, disk.capacity_bytes)
        hole_start = hole_end = start_bytes
        for window in self._decoded(disk, start_bytes, end):
            for piece in window.pieces:
                begin, stop = max(piece.begin, start_bytes), min(piece.end, end)
                if piece.is_hole or window.buffer is None:
                    hole_end = stop
                    continue
                if hole_end > hole_start:
                    yield hole_start, Hole(hole_end - hole_start)
                yield begin, window.buffer[begin - window.offset : stop - window.offset]
                hole_start = hole_end = stop
        if hole_end > hole_start:
            yield hole_start, Hole(hole_end - hole_start)

    def _decoded(self, disk: ManifestDisk, start: int, end: int) -> Iterator[_Window]:
        """Yield a range's windows in order, while others are decoded; each is valid until the next one."""
        wanted = self._windows(disk, start, end)
        under_way: deque[_Window] = deque()
        free: list[memoryview] = []
        try:
            while True:
                while len(under_way) < _WINDOWS_AHEAD and (chunks := next(wanted, None)) is not None:
                    under_way.append(self._begin(disk, *chunks, free))
                if not under_way:
                    return
                window = under_way.popleft()
                if window.reading is not None:
                    window.reading.result()
                yield window
                if window.buffer is not None:
                    free.append(window.buffer)
        finally:
            # A caller that stops early, or an error: no thread may be left behind that writes into a buffer.
            for window in under_way:
                if window.reading is not None and not window.reading.cancel():
                    window.reading.exception()

    def _windows(self, disk: ManifestDisk, start: int, end: int) -> Iterator[tuple[int, list[bytes]]]:
        """Cut the chunks that a range touches into windows: first chunk, ids."""
        if start >= end:
            return
        disk_map = self._map(disk.key)
        last = -(-end // disk.chunk_size_bytes)
        count = window_chunks(disk.chunk_size_bytes)
        for first in range(start // disk.chunk_size_bytes, last, count):
            yield first, list(disk_map.chunk_ids(first, min(first + count, last)))

    def _map(self, disk_key: int) -> DiskMap:
        """The map of a disk, kept: it holds the page that was read last, and many ranges may be asked for."""
        if disk_key not in self._maps:
            self._maps[disk_key] = self.manifest.disk_map(self._repository, disk_key)
        return self._maps[disk_key]

    def _begin(self, disk: ManifestDisk, first: int, ids: list[bytes], free: list[memoryview]) -> _Window:
        """Let a thread fill a buffer with some chunks, or a new one when none is free."""
        size = disk.chunk_size_bytes
        offset = first * size
        pieces: list[_Piece] = []
        for number, identity in enumerate(ids, first):
            piece = _Piece(number * size, min((number + 1) * size, disk.capacity_bytes), identity == HOLE)
            if pieces and pieces[-1].is_hole == piece.is_hole:
                piece = piece._replace(begin=pieces.pop().begin)
            pieces.append(piece)
        if all(piece.is_hole for piece in pieces):
            return _Window(offset, pieces, None, None)
        buffer = free.pop() if free else page_buffer(len(ids) * size)
        wanted = []
        for number, identity in enumerate(ids, first):
            length = min(size, disk.capacity_bytes - number * size)
            if identity != HOLE:
                place = number * size - offset
                wanted.append(Wanted(number * size, identity, buffer[place : place + length]))
        where = f"disk {disk.label} (key {disk.key})"
        return _Window(offset, pieces, buffer, self._pool.submit(self._chunks.read, where, wanted))
