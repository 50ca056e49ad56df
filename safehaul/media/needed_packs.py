"""Which packs a backup needs, found chunk by chunk at its commit; and what becomes of those that will not stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError
from safehaul.media.chunk_copier import ChunkCopier
from safehaul.media.codec import HOLE
from safehaul.media.pack import SealedPack, pack_name
from safehaul.media.repository import Repository

_ROUNDS = 5
"""Looks at all chunks in one commit: each after the first answers a collection that condemned something meanwhile."""


class NeededChunk(NamedTuple):
    """A chunk of a backup, and where it stands in it."""

    chunk_id: bytes
    raw_length: int
    part: str
    """`disk LABEL` or `file NAME`."""
    offset_bytes: int


class NeededPacks:
    """The packs of one backup. `chunks` gives its chunks, as often as it is asked."""

    def __init__(
        self,
        repository: Repository,
        chunks: Callable[[], Iterator[NeededChunk]],
        heartbeat: Callable[[str], None],
    ) -> None:
        self._repository = repository
        self._chunks = chunks
        self._heartbeat = heartbeat
        self.packs: dict[bytes, SealedPack] = {}
        self.listed_in: set[str] = set()

    def find(self) -> None:
        """Find every chunk in a pack that stays.

        Those that are only in packs that a collection has condemned meanwhile are copied into new ones: condemned packs
        are not deleted before this session has ended. Raises IntegrityError, naming the place, for a chunk that is
        nowhere any more.
        """
        for round_ in range(_ROUNDS):
            self._repository.refresh_index()
            try:
                if not self._look():
                    return
            except IntegrityError:
                # A listing in several pages may miss a list that is merged meanwhile, under both of its names.
                if round_:
                    raise
        raise IntegrityError(
            f"packs were condemned {_ROUNDS} times during one commit: start a new session, and look at who collects"
        )

    def find_again(self) -> None:
        """Look once more, now, whether every pack is still there, and find what is not. Raises as `find`."""
        self._repository.refresh_index()
        if not all(self._repository.is_usable(pack) for pack in self.packs.values()):
            self.find()

    def _look(self) -> bool:
        """Go over all chunks; True when some had to be copied, and so must be looked for again."""
        self.packs.clear()
        self.listed_in.clear()
        copier = ChunkCopier(self._repository, self._heartbeat)
        try:
            for chunk in self._chunks():
                if chunk.chunk_id == HOLE:
                    continue
                location = self._repository.usable(chunk.chunk_id)
                if location is None or location.entry.raw_length != chunk.raw_length:
                    self._copy(copier, chunk)
                    continue
                self.packs[location.pack.pack_id] = location.pack
                self.listed_in.add(location.listed_in)
            return bool(copier.finish())
        finally:
            copier.abort()

    def _copy(self, copier: ChunkCopier, chunk: NeededChunk) -> None:
        self._heartbeat(f"copying chunk {chunk.chunk_id.hex()}")
        problem = "no pack holds it"
        for location in self._repository.index.lookup(chunk.chunk_id):
            if location.entry.raw_length != chunk.raw_length:
                continue
            try:
                copier.copy(location)
            except (NotFoundError, IntegrityError, UnreadableError) as error:
                # Gone or damaged there; another pack may hold it.
                problem = f"pack {pack_name(location.pack.pack_id)}: {error}"
                continue
            return
        raise IntegrityError(
            f"{chunk.part} at offset {chunk.offset_bytes}: chunk {chunk.chunk_id.hex()} was stored by an earlier "
            f"backup and is not there any more ({problem}); run `safehaul repo verify`, then start a new session, "
            "which stores it again"
        )
