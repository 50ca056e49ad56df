"""Finds chunks in packs, reads those that lie together at once, and decodes and checks each one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError, UnsupportedError
from safehaul.media.chunk_index import ChunkLocation
from safehaul.media.codec import Decompressor
from safehaul.media.pack import decode_frame, pack_name
from safehaul.media.repository import Repository

READ_BYTES = 4 << 20
"""Bytes of a pack that are read at once, at most; one frame may be longer."""

_GAP_BYTES = 64 << 10
"""Two frames of one pack are read at once when no more than this lies between them."""


class Wanted(NamedTuple):
    """One chunk that must be decoded into `out`, which has exactly its length."""

    offset: int
    """Of the chunk on the disk or in the file, for messages."""
    chunk_id: bytes
    out: memoryview


class _Found(NamedTuple):
    wanted: Wanted
    location: ChunkLocation


class ChunkReader:
    """Reads chunks of a repository. Threads may share it; each has a read buffer of its own."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._decompressor = Decompressor(repository.keys.chunk)
        self._local = threading.local()
        self._all_loaded = False

    def load_hinted(self, names: list[str]) -> None:
        """Load the `idx/` objects that a manifest names; when one is gone or damaged, all there are."""
        try:
            self._repository.load_index(names)
        except (NotFoundError, IntegrityError, UnsupportedError):
            # The list is a hint: others, or a repaired index, may name the same chunks.
            self._load_all()

    def read(self, where: str, wanted: Iterable[Wanted]) -> None:
        """Fill every chunk's buffer. Raises IntegrityError naming `where`, offset, chunk and pack."""
        for group in _runs([self._find(where, item) for item in wanted]):
            first, last = group[0].location.entry, group[-1].location.entry
            data = self._buffer(last.end - first.offset)
            try:
                name = pack_name(group[0].location.pack.pack_id)
                self._repository.store.read_into(name, first.offset, data)
            except (NotFoundError, IntegrityError, UnreadableError) as error:
                for item in group:
                    self._second_copy(where, item, error)
                continue
            # A second copy is read into the same buffer: only when all of these are decoded.
            damaged = [(item, self._decode(item, data, first.offset)) for item in group]
            for item, problem in damaged:
                if problem is not None:
                    self._second_copy(where, item, problem)

    def _buffer(self, length: int) -> memoryview:
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = memoryview(bytearray(max(length, READ_BYTES)))
        return buffer[:length]

    def _load_all(self) -> None:
        if not self._all_loaded:
            self._repository.refresh_index()
            self._all_loaded = True

    def _find(self, where: str, wanted: Wanted) -> _Found:
        identity, length = wanted.chunk_id, len(wanted.out)
        location = self._repository.usable(identity)
        if location is None:
            self._load_all()
            # A condemned or damaged pack may still hold this chunk intact: for reading it is better than nothing.
            known = self._repository.index.lookup(identity)
            location = self._repository.usable(identity) or (known[0] if known else None)
        if location is None:
            raise IntegrityError(
                f"{where}, offset {wanted.offset}: no pack holds chunk {identity.hex()}; the data is lost"
            )
        if not self._fits(location, length):
            raise IntegrityError(
                f"{where}, offset {wanted.offset}: chunk {identity.hex()} has another length in the index"
            )
        return _Found(wanted, location)

    def _fits(self, location: ChunkLocation, length: int) -> bool:
        """The index comes from the store, which need not be trusted: it must not make us read more than a chunk."""
        entry = location.entry
        return entry.raw_length == length and entry.stored_length <= length + self._repository.keys.overhead

    def _decode(self, item: _Found, data: memoryview, start: int) -> IntegrityError | None:
        entry = item.location.entry
        try:
            frame = data[entry.offset - start : entry.end - start]
            cipher = self._repository.keys.frames(item.location.pack.pack_id)
            decode_frame(self._decompressor, cipher, frame, entry, item.wanted.out)
        except IntegrityError as error:
            return error
        return None

    def _second_copy(self, where: str, item: _Found, problem: Exception) -> None:
        """Read a chunk from another pack that holds it too; raise IntegrityError when there is none."""
        # A collection may have copied it since the lists were read, and deleted the pack.
        for load in (self._load_all, self._repository.refresh_index):
            load()
            if self._read_elsewhere(item):
                return
        raise IntegrityError(
            f"{where}, offset {item.wanted.offset}: chunk {item.wanted.chunk_id.hex()} in pack "
            f"{pack_name(item.location.pack.pack_id)} is damaged: {problem}"
        ) from problem

    def _read_elsewhere(self, item: _Found) -> bool:
        for other in self._repository.index.lookup(item.wanted.chunk_id):
            if other.pack == item.location.pack or not self._fits(other, len(item.wanted.out)):
                continue
            data = self._buffer(other.entry.end - other.entry.offset)
            try:
                self._repository.store.read_into(pack_name(other.pack.pack_id), other.entry.offset, data)
            except (NotFoundError, IntegrityError, UnreadableError):
                # The search goes on; when no copy is sound, the first problem is reported.
                continue
            if self._decode(_Found(item.wanted, other), data, other.entry.offset) is None:
                return True
        return False


def _runs(found: list[_Found]) -> Iterator[list[_Found]]:
    """Group chunks that lie in order and close together in one pack."""
    run: list[_Found] = []
    for item in sorted(found, key=lambda item: (item.location.pack.pack_id, item.location.entry.offset)):
        if run:
            first, previous = run[0].location, run[-1].location
            near = 0 <= item.location.entry.offset - previous.entry.end <= _GAP_BYTES
            small = item.location.entry.end - first.entry.offset <= READ_BYTES
            if item.location.pack != first.pack or not near or not small:
                yield run
                run = []
        run.append(item)
    if run:
        yield run
