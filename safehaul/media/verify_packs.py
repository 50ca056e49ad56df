"""Judges single packs: is every byte what it must be, does `idx/` say what is in it, was it collected meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError, UnsupportedError
from safehaul.media.envelope import Kind
from safehaul.media.locations import PackListing, decode_locations
from safehaul.media.pack import ChunkEntry, SealedPack, pack_name, read_trailer
from safehaul.media.pack_check import PackChecker, PackFindings
from safehaul.media.repository import Repository
from safehaul.media.verified import BadPack
from safehaul.media.verify_generations import read_noted

BROKEN = (IntegrityError, NotFoundError, UnsupportedError, UnreadableError)
"""What makes an object a damaged one to a verification."""


class PackJudge:
    """Judges packs one after the other, in the same buffers. For one thread."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._checker = PackChecker(repository)

    def by_trailer(self, listing: PackListing) -> BadPack | None:
        """Read a pack's footer and trailer, and compare them with what `idx/` lists. Raises NotFoundError."""
        repository, (pack, listed) = self._repository, listing
        try:
            found = read_trailer(repository.store, repository.keys, pack).entries
        except (IntegrityError, UnsupportedError, UnreadableError) as error:
            return self._in_pieces(pack, listed, str(error))
        return self._compared(pack, found, listed)

    def by_bytes(self, pack: SealedPack) -> tuple[BadPack | None, int]:
        """Read every byte of a pack; what is wrong with it, and how many chunks it has. Raises NotFoundError."""
        try:
            findings = self._checker.check(pack)
        except UnreadableError as error:
            # A bad sector: every chunk that stands elsewhere in the pack can still be read.
            findings = PackFindings(pack, [], damaged_pack=str(error))
        if findings.damaged_pack and not findings.entries:
            # Without its trailer the pack does not say what is in it; `idx/` does.
            entries = [entry for listing in self.listings({pack.pack_id}) for entry in listing.entries]
            return self._in_pieces(pack, entries, findings.damaged_pack), len(entries)
        chunks = {chunk.hex(): problem for chunk, problem in findings.damaged_chunks.items()}
        problem = findings.damaged_pack
        if not problem and not all(self._is_listed(pack, entry) for entry in findings.entries):
            problem = _other_chunks(pack)
        if problem or chunks:
            bad = BadPack(pack=pack.pack_id.hex(), size_bytes=pack.size_bytes, problem=problem, chunks=chunks)
            return bad, len(findings.entries)
        return None, len(findings.entries)

    def _is_listed(self, pack: SealedPack, entry: ChunkEntry) -> bool:
        places = self._repository.index.lookup(entry.chunk_id)
        return any(place.pack == pack and place.entry == entry for place in places)

    def not_there(self, pack: SealedPack) -> BadPack | None:
        """Look once more at a pack that a listing did not have, or had with another size; None: it is there."""
        name = pack_name(pack.pack_id)
        try:
            size = self._repository.store.size(name)
        except NotFoundError:
            return BadPack(
                pack=pack.pack_id.hex(),
                size_bytes=pack.size_bytes,
                problem=f"pack {name} is gone",
                gone=True,
            )
        if size == pack.size_bytes:
            return None
        entries = [entry for listing in self.listings({pack.pack_id}) for entry in listing.entries]
        return self._in_pieces(pack, entries, f"pack {name} has {size} bytes instead of {pack.size_bytes}")

    def _in_pieces(self, pack: SealedPack, entries: list[ChunkEntry], problem: str) -> BadPack:
        """A pack that is damaged as a whole: which of its chunks can be read all the same."""
        chunks = self._checker.check_frames(pack, entries)
        return BadPack(
            pack=pack.pack_id.hex(),
            size_bytes=pack.size_bytes,
            problem=problem,
            chunks={chunk.hex(): reason for chunk, reason in chunks.items()},
            gone=not entries,
        )

    def _compared(
        self, pack: SealedPack, found: list[ChunkEntry], listed: list[ChunkEntry]
    ) -> BadPack | None:
        if found == listed:
            return None
        missing = {entry.chunk_id.hex(): _other_chunks(pack) for entry in listed if entry not in found}
        return BadPack(
            pack=pack.pack_id.hex(), size_bytes=pack.size_bytes, problem=_other_chunks(pack), chunks=missing
        )

    def listings(self, wanted: set[bytes]) -> Iterator[PackListing]:
        """Yield what `idx/` lists of some packs, each once. Reads every `idx/` object: for what is rare."""
        left = set(wanted)
        for found in self._repository.store.list("idx/"):
            if not left:
                return
            try:
                listings = decode_locations(self._repository.get(Kind.LOCATIONS, found.name), found.name)
            except BROKEN:
                # Named by the check of the lists; another object may list the same packs.
                continue
            for listing in listings:
                if listing.pack.pack_id in left:
                    left.discard(listing.pack.pack_id)
                    yield listing

    def collected(self, gone: set[bytes]) -> set[bytes]:
        """Those packs that are gone because a collection deleted them. Reads `gc/`, and perhaps all of `idx/`."""
        collected = gone & read_noted(self._repository).condemned
        left = gone - collected
        # A collection that has come to its end drops its packs from `gc/` and from `idx/`.
        return gone - ({listing.pack.pack_id for listing in self.listings(left)} if left else set())


def _other_chunks(pack: SealedPack) -> str:
    return f"pack {pack_name(pack.pack_id)} holds other chunks than idx/ says"
