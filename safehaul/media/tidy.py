"""Keeps `idx/` and `gc/` short: lists of packs that are gone, many short lists, generations without effect."""

from __future__ import annotations

from collections.abc import Callable

from safehaul.media.collection import NumberedGeneration, read_condemnations, read_generations
from safehaul.media.locations import BATCH_CHUNKS, PackListing
from safehaul.media.object_store import DeletingStore
from safehaul.media.pack_lists import PREFIX, put_lists, read_list
from safehaul.media.repository import Repository

SHORT_CHUNKS = BATCH_CHUNKS // 4
"""A list with fewer chunks is merged with others."""

MERGE_FROM = 32
"""So many short lists are worth merging."""


def merge_lists(repository: Repository, store: DeletingStore, heartbeat: Callable[[str], None]) -> int:
    """Write lists anew without packs that a collection has deleted, and short ones together; returns how many.

    The new lists come first: whoever reads meanwhile finds each pack in one or the other.
    """
    condemned = read_condemnations(repository).packs
    # Packs after lists: a list that is known here names only packs that were there before it.
    names = [info.name for info in repository.store.list(PREFIX)]
    there = _names(repository, "packs/")
    pending: dict[str, list[PackListing]] = {}
    chunks = replaced = 0
    outdated = False
    for name in names:
        heartbeat(f"reading {name}")
        listings = read_list(repository, name)
        if listings is None:
            continue
        kept = [
            item
            for item in listings
            if item.pack.pack_id not in condemned or item.pack.pack_id.hex() in there
        ]
        size = sum(len(item.entries) for item in kept)
        if len(kept) == len(listings) and size >= SHORT_CHUNKS:
            continue
        pending[name] = kept
        chunks += size
        outdated = outdated or len(kept) < len(listings)
        if chunks >= BATCH_CHUNKS:
            replaced += _replace(repository, store, pending)
            pending, chunks, outdated = {}, 0, False
    if outdated or len(pending) >= MERGE_FROM:
        replaced += _replace(repository, store, pending)
    return replaced


def _replace(repository: Repository, store: DeletingStore, lists: dict[str, list[PackListing]]) -> int:
    listings = {item.pack.pack_id: item for kept in lists.values() for item in kept}
    written = set(put_lists(repository, [listings[pack] for pack in sorted(listings)]))
    old = [name for name in lists if name not in written]
    for name in old:
        store.delete(name)
    return len(old)


def _names(repository: Repository, prefix: str) -> set[str]:
    return {info.name.rpartition("/")[2] for info in repository.store.list(prefix)}


def spent_generations(repository: Repository) -> list[str]:
    """Names of the generations that change nothing any more, oldest first. The last one is not among them: it counts.

    They may be deleted when the lists have been merged after this look: until then they say of packs that are gone
    and still listed that they were deleted, and not lost. Stopped anywhere, what is left says the same, or condemns
    something that was released, which costs a copy.
    """
    generations = read_generations(repository)
    if len(generations) < 2:
        return []
    there = _names(repository, "packs/") | _names(repository, "pages/")
    spent = _spent(generations, there)
    return [generation.name for generation in generations[:-1] if generation.number in spent]


def _spent(generations: list[NumberedGeneration], there: set[str]) -> set[int]:
    """Numbers of the generations without effect; `there`: the packs and pages that exist."""
    spent: set[int] = set()
    in_effect: set[str] = set()
    """Named by a condemning generation that stays."""
    judged_later: set[str] = set()
    unresolved: dict[int, bool] = {}
    numbers = {generation.number for generation in generations}
    for number, _, content in reversed(generations):
        condemned = {*content.condemned, *content.pages}
        unresolved[number] = bool((condemned & there) - judged_later)
        judged_later |= condemned | {*content.released, *content.released_pages}
    for number, _, content in generations:
        condemned = {*content.condemned, *content.pages}
        if unresolved[number]:
            in_effect |= condemned
            continue
        released = {*content.released, *content.released_pages}
        observed = content.observes in numbers - spent
        if observed or released & in_effect or there.intersection(content.damaged):
            in_effect |= condemned
            continue
        spent.add(number)
    return spent
