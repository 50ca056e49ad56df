"""Writes `idx/` objects: which chunks lie where in packs that are durable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.collection import Generation, put_generation
from safehaul.media.envelope import Kind
from safehaul.media.locations import PackListing, batches, decode_locations, encode_locations
from safehaul.media.pack import SealedPack, pack_name, read_trailer
from safehaul.media.repository import Repository

PREFIX = "idx/"
_VARIANTS = 100


def put_lists(repository: Repository, listings: Iterable[PackListing]) -> list[str]:
    """List packs in as few objects as their bounds allow; returns the names. The same packs again are fine.

    Of a process that stood still for days a collection may have deleted packs before they were listed here. They are
    condemned, lest a verification takes them for lost ones for ever: the next collection drops them from the lists.
    """
    names = []
    for batch in batches(listings):
        names.append(_put_list(repository, batch))
        gone = [listing.pack.pack_id.hex() for listing in batch if not _is_there(repository, listing.pack)]
        if gone:
            put_generation(repository, Generation(condemned=gone))
    return names


def _is_there(repository: Repository, pack: SealedPack) -> bool:
    try:
        repository.store.size(pack_name(pack.pack_id))
    except NotFoundError:
        return False
    return True


def read_list(repository: Repository, name: str) -> list[PackListing] | None:
    """Return what a list names; None when it is damaged, or was merged into another one since it was listed."""
    try:
        return decode_locations(repository.get(Kind.LOCATIONS, name), name)
    except (IntegrityError, UnsupportedError, NotFoundError):
        # A verification names what is damaged; the packs' trailers, or the list that it went into, say the same.
        return None


def trailers(repository: Repository, packs: Iterable[SealedPack]) -> Iterator[PackListing]:
    """Yield what the packs' trailers list. Raises NotFoundError, IntegrityError."""
    for pack in packs:
        yield PackListing(pack, read_trailer(repository.store, repository.keys, pack).entries)


def _put_list(repository: Repository, batch: list[PackListing]) -> str:
    """Write one list; when a damaged object has its name already, write a variant under another name."""
    for variant in range(_VARIANTS):
        body = encode_locations(batch, variant)
        name = f"{PREFIX}{repository.content_name(body)}"
        try:
            repository.put_same(Kind.LOCATIONS, name, body)
        except IntegrityError:
            # A damaged object cannot be overwritten, so another name takes its place.
            continue
        return name
    raise IntegrityError(
        f"idx/ holds {_VARIANTS} damaged objects of one content: the store loses what it is given"
    )
