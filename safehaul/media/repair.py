"""Makes `idx/` whole again from the packs alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from safehaul.media.locations import PackListing
from safehaul.media.pack import SealedPack, pack_name
from safehaul.media.pack_check import PackChecker
from safehaul.media.pack_lists import put_lists
from safehaul.media.repository import Repository

_PACK_NAME = re.compile(r"packs/[0-9a-f]{2}/[0-9a-f]{64}")


def repair_index(repository: Repository, heartbeat: Callable[[str], None] = lambda _: None) -> int:
    """List every sound pack that no sound `idx/` object lists; returns how many packs were added.

    Each such pack is read completely first, because later backups will rely on it. Damaged packs are left
    out (`verify` names them). Nothing is deleted or overwritten; a second run adds nothing.
    """
    repository.refresh_index()
    known = {pack_name(pack.pack_id) for pack in repository.index.packs()}
    checker = PackChecker(repository)
    added = 0

    def sound_packs() -> Iterator[PackListing]:
        nonlocal added
        for found in repository.store.list("packs/"):
            if found.name in known or not _PACK_NAME.fullmatch(found.name):
                continue
            heartbeat(f"reading {found.name}")
            pack = SealedPack(bytes.fromhex(found.name.rpartition("/")[2]), found.size_bytes)
            findings = checker.check(pack)
            if findings.sound:
                added += 1
                yield PackListing(pack, findings.entries)

    put_lists(repository, sound_packs())
    repository.refresh_index()
    return added
