"""Reads backups: any range of any disk, and whole disks in order. Every chunk's digest is verified."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from safehaul.errors import IntegrityError, InvalidInputError, NotFoundError
from safehaul.media.chunk_index import ChunkLocation
from safehaul.media.codec import HOLE, Decompressor
from safehaul.media.disk_map import DiskMap
from safehaul.media.manifest import BackupRef, ManifestDisk, read_manifest
from safehaul.media.pack import FRAME, decode_frame, pack_name
from safehaul.media.repository import Repository
from safehaul.media.sessions import StoredFile

WINDOW_CHUNKS = 16
"""Chunks that `iter_disk` decodes ahead into its reused buffers."""

_GAP_BYTES = 64 << 10
"""Two frames of one pack are read at once when no more than this lies between them."""

_READ_BYTES = 8 << 20
"""Bytes of a pack that are read at once, at most."""

_THREADS = 2


class Hole(NamedTuple):
    """A range of zeros that is not stored."""

    length_bytes: int


class _Wanted(NamedTuple):
    """One chunk that must be decoded into `out`."""

    offset: int
    """Of the chunk on the disk or in the file, for messages."""
    location: ChunkLocation
    out: memoryview


class BackupReader:
    """Reads one committed backup; use it in one thread, and `close` it."""

    def __init__(self, repository: Repository, vc_guid: str, backup_id: str) -> None:
        self._repository = repository
        self.manifest = read_manifest(repository, BackupRef(vc_guid, backup_id))
        self._decompressor = Decompressor(repository.keys.chunk)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="restore")
        chunk_size = repository.config.chunk_size_bytes
        self._read_buffer = memoryview(
            bytearray(max(_READ_BYTES, FRAME.size + chunk_size + repository.keys.overhead))
        )
        self._all_loaded = False
        self._maps: dict[int, DiskMap] = {}
        self._load_hinted()

    def _load_hinted(self) -> None:
        """Load the `idx/` objects that the manifest names; when one is gone or damaged, all there are."""
        try:
            self._repository.load_index(self.manifest.idx)
        except (NotFoundError, IntegrityError):
            # The list is a hint: others, or a repaired index, may name the same chunks.
            self._load_all()

    def _load_all(self) -> None:
        if not self._all_loaded:
            self._repository.refresh_index()
            self._all_loaded = True

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
        where = f"file {stored.name}"
        wanted = [
            self._want(where, number * size, bytes.fromhex(text), view[number * size : (number + 1) * size])
            for number, text in enumerate(stored.chunks)
            if text != HOLE.hex()
        ]
        self._decode_all(where, wanted)
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

        A memoryview is valid until the next step: its buffer is used again. Memory: WINDOW_CHUNKS chunks
        and one read of 8 MiB. Errors as `read_range`.
        """
        disk = self.manifest.disk(disk_key)
        disk_map = self._map(disk_key)
        end = disk.capacity_bytes if end_bytes is None else min(end_bytes, disk.capacity_bytes)
        if start_bytes >= end:
            return
        size = disk.chunk_size_bytes
        last = -(-end // size)
        buffer = memoryview(bytearray(min(WINDOW_CHUNKS, last - start_bytes // size) * size))
        hole_start = hole_end = start_bytes
        for first in range(start_bytes // size, last, WINDOW_CHUNKS):
            window = range(first, min(first + WINDOW_CHUNKS, last))
            for number, piece in self._decode_window(disk, disk_map, window, buffer):
                begin, stop = (
                    max(number * size, start_bytes),
                    min(number * size + disk_map.length_of(number), end),
                )
                if piece is None:
                    hole_end = stop
                    continue
                if hole_end > hole_start:
                    yield hole_start, Hole(hole_end - hole_start)
                yield begin, piece[begin - number * size : stop - number * size]
                hole_start = hole_end = stop
        if hole_end > hole_start:
            yield hole_start, Hole(hole_end - hole_start)

    def _map(self, disk_key: int) -> DiskMap:
        """The map of a disk, kept: it holds the page that was read last, and many ranges may be asked for."""
        if disk_key not in self._maps:
            self._maps[disk_key] = self.manifest.disk_map(self._repository, disk_key)
        return self._maps[disk_key]

    def _decode_window(
        self, disk: ManifestDisk, disk_map: DiskMap, window: range, buffer: memoryview
    ) -> list[tuple[int, memoryview | None]]:
        """Decode some chunks of a disk into `buffer`; None stands for a hole."""
        where = f"disk {disk.label} (key {disk.key})"
        size = disk.chunk_size_bytes
        pieces: list[tuple[int, memoryview | None]] = []
        wanted = []
        for place, number in enumerate(window):
            identity = disk_map.chunk_id(number)
            if identity == HOLE:
                pieces.append((number, None))
                continue
            out = buffer[place * size : place * size + disk_map.length_of(number)]
            wanted.append(self._want(where, number * size, identity, out))
            pieces.append((number, out))
        self._decode_all(where, wanted)
        return pieces

    def _want(self, where: str, offset: int, identity: bytes, out: memoryview) -> _Wanted:
        location = self._repository.usable(identity)
        if location is None:
            self._load_all()
            # A condemned or damaged pack may still hold this chunk intact: for reading it is better than nothing.
            known = self._repository.index.lookup(identity)
            location = self._repository.usable(identity) or (known[0] if known else None)
        if location is None:
            raise IntegrityError(
                f"{where}, offset {offset}: no pack holds chunk {identity.hex()}; the data is lost"
            )
        entry = location.entry
        if entry.raw_length != len(out) or entry.stored_length > len(out) + self._repository.keys.overhead:
            raise IntegrityError(
                f"{where}, offset {offset}: chunk {identity.hex()} has another length in the index"
            )
        return _Wanted(offset, location, out)

    def _decode_all(self, where: str, wanted: list[_Wanted]) -> None:
        """Read and decode chunks, those that lie together with one read, over the threads."""
        for group in _runs(wanted):
            start, end = group[0].location.entry.offset, group[-1].location.entry.end
            data = self._read_buffer[: end - start]
            try:
                name = pack_name(group[0].location.pack.pack_id)
                self._repository.store.read_into(name, start, data)
            except (NotFoundError, IntegrityError) as error:
                for item in group:
                    self._second_copy(where, item, error)
                continue
            tasks = [self._pool.submit(self._decode, item, data, start) for item in group]
            # All must be done before anything else uses the buffer, whatever the first of them says.
            problems = [task.result() for task in tasks]
            for item, problem in zip(group, problems, strict=True):
                if problem is not None:
                    self._second_copy(where, item, problem)

    def _decode(self, item: _Wanted, data: memoryview, start: int) -> IntegrityError | None:
        entry = item.location.entry
        try:
            frame = data[entry.offset - start : entry.end - start]
            cipher = self._repository.keys.frames(item.location.pack.pack_id)
            decode_frame(self._decompressor, cipher, frame, entry, item.out)
        except IntegrityError as error:
            return error
        return None

    def _second_copy(self, where: str, item: _Wanted, problem: Exception) -> None:
        """Read a chunk from another pack that holds it too; raise IntegrityError when there is none."""
        # A collection may have copied it since the lists were read, and deleted the pack.
        for load in (self._load_all, self._repository.refresh_index):
            load()
            if self._read_elsewhere(item):
                return
        raise IntegrityError(
            f"{where}, offset {item.offset}: chunk {item.location.entry.chunk_id.hex()} in pack "
            f"{pack_name(item.location.pack.pack_id)} is damaged: {problem}"
        ) from problem

    def _read_elsewhere(self, item: _Wanted) -> bool:
        entry = item.location.entry
        for other in self._repository.index.lookup(entry.chunk_id):
            longest = other.entry.raw_length + self._repository.keys.overhead
            usable = len(item.out) == other.entry.raw_length and other.entry.stored_length <= longest
            if other.pack == item.location.pack or not usable:
                continue
            data = self._read_buffer[: other.entry.end - other.entry.offset]
            try:
                self._repository.store.read_into(pack_name(other.pack.pack_id), other.entry.offset, data)
            except (NotFoundError, IntegrityError):
                # The search goes on; when no copy is sound, the first problem is reported below.
                continue
            if self._decode(_Wanted(item.offset, other, item.out), data, other.entry.offset) is None:
                return True
        return False


def _runs(wanted: list[_Wanted]) -> Iterator[list[_Wanted]]:
    """Group chunks that lie in order and close together in one pack."""
    run: list[_Wanted] = []
    for item in sorted(wanted, key=lambda item: (item.location.pack.pack_id, item.location.entry.offset)):
        if run:
            first, previous = run[0].location, run[-1].location
            near = 0 <= item.location.entry.offset - previous.entry.end <= _GAP_BYTES
            small = item.location.entry.end - first.entry.offset <= _READ_BYTES
            if item.location.pack != first.pack or not near or not small:
                yield run
                run = []
        run.append(item)
    if run:
        yield run
