"""Which chunks need not be stored again: those of this writer, and those in packs that a backup may rely on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from safehaul.media.repository import Repository

SEEN_LIMIT = 1 << 17
"""Ids that are kept in memory (about 20 MiB); a miss costs a duplicate."""


class KnownChunks:
    """The chunks that one writer has stored, and those that its repository has. One thread adds, any may ask."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def add(self, chunk_ids: Iterable[bytes]) -> None:
        """Remember what this writer has stored."""
        for chunk_id in chunk_ids:
            self._seen[chunk_id] = None
            if len(self._seen) > SEEN_LIMIT:
                self._seen.popitem(last=False)

    def __contains__(self, chunk_id: bytes) -> bool:
        """Whether this writer has stored it, as far as it remembers."""
        return chunk_id in self._seen

    def at_once(self, chunk_id: bytes) -> bool | None:
        """Whether it is stored; None: the store has to be asked, which may take long."""
        return True if chunk_id in self._seen else self._repository.usable_at_once(chunk_id)

    def asked(self, chunk_id: bytes) -> bool:
        """Whether it is stored. Raises what the store raises."""
        return chunk_id in self._seen or self._repository.usable(chunk_id) is not None
