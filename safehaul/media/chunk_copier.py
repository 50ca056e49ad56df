"""Copies chunks from packs that will not stay into new packs, each checked against its id on the way."""

from __future__ import annotations

from collections.abc import Callable

from safehaul.errors import BusyError, IntegrityError, NotFoundError
from safehaul.media.chunk_index import ChunkLocation
from safehaul.media.codec import Decompressor
from safehaul.media.pack import FRAME, MAX_CHUNKS, PackBuilder, SealedPack, decode_frame, pack_name
from safehaul.media.pack_check import PackChecker
from safehaul.media.pack_lists import put_lists, trailers
from safehaul.media.repository import Repository


class ChunkCopier:
    """Use it in one thread. What was copied counts after `finish`; `abort` drops the open pack."""

    def __init__(self, repository: Repository, heartbeat: Callable[[str], None]) -> None:
        self._repository = repository
        self._heartbeat = heartbeat
        self._decompressor = Decompressor(repository.keys.chunk)
        self._chunk = memoryview(bytearray(repository.config.chunk_size_bytes))
        self._pack: PackBuilder | None = None
        self._packs: list[SealedPack] = []
        self._copied: set[bytes] = set()

    def read(self, location: ChunkLocation) -> memoryview:
        """Read a chunk and check it against its id; returns the payload as a pack without encryption holds it.

        Raises NotFoundError when its pack is gone, IntegrityError when it is damaged.
        """
        keys, entry = self._repository.keys, location.entry
        if entry.raw_length > len(self._chunk):
            raise IntegrityError(f"chunk {entry.chunk_id.hex()} is larger than the chunk size")
        name = pack_name(location.pack.pack_id)
        frame = memoryview(self._repository.store.get_range(name, entry.offset, entry.end - entry.offset))
        cipher = keys.frames(location.pack.pack_id)
        decode_frame(self._decompressor, cipher, frame, entry, self._chunk[: entry.raw_length])
        payload = frame[FRAME.size :]
        return (
            payload
            if cipher is None
            else memoryview(cipher.open(entry.frame_header(), entry.offset, payload))
        )

    def copy(self, location: ChunkLocation) -> None:
        """Copy one chunk; a second time is nothing. Raises as `read`, and TransientError from the store."""
        entry = location.entry
        if entry.chunk_id in self._copied:
            return
        payload = self.read(location)
        if self._pack is None:
            self._pack = PackBuilder(self._repository.store, self._repository.keys)
        self._pack.add(entry.chunk_id, entry.raw_length, entry.flags, payload)
        self._copied.add(entry.chunk_id)
        full = self._pack.size_bytes >= self._repository.config.pack_size_bytes
        if full or self._pack.chunk_count >= MAX_CHUNKS:
            self._end_pack()

    def _end_pack(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            try:
                self._packs.append(pack.seal())
            finally:
                pack.abort()

    def finish(self) -> list[SealedPack]:
        """Make the copies durable, read them back, and list them in `idx/`; returns the new packs.

        Raises IntegrityError when one does not read back, BusyError when a collection has taken one away because this
        process stood still for days: nothing is listed then.
        """
        self._end_pack()
        try:
            self._read_back()
            listings = list(trailers(self._repository, self._packs))
        except NotFoundError as error:
            raise BusyError(
                "a pack that this process has just written is gone: it stood still for days, and another collection "
                f"took the pack for garbage; nothing is lost, the next try begins anew ({error})"
            ) from error
        put_lists(self._repository, listings)
        packs, self._packs = self._packs, []
        return packs

    def _read_back(self) -> None:
        checker = PackChecker(self._repository)
        for pack in self._packs:
            self._heartbeat(f"reading back {pack_name(pack.pack_id)}")
            findings = checker.check(pack)
            if not findings.sound:
                raise IntegrityError(
                    f"pack {pack_name(pack.pack_id)} was written but does not read back: check the repository's disk"
                )

    def abort(self) -> None:
        """Throw the open pack away. Harmless after `finish`."""
        pack, self._pack = self._pack, None
        if pack is not None:
            pack.abort()
