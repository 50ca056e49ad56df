"""What becomes of a session whose backup will not be finished: later backups find what it stored, or it is given up.

`idx/` names a pack when its backup is committed. What a cancelled or failed backup stored is in no list, and the VM's
next backup would store it again: so its packs are read back, as before a commit, and listed. The list is a hint as any
other; a collection ends the session after a while, and frees what no backup has come to need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from safehaul.errors import IntegrityError, NotFoundError
from safehaul.media.locations import PackListing
from safehaul.media.outcome import fence, read_outcome
from safehaul.media.pack import SealedPack
from safehaul.media.pack_check import PackChecker
from safehaul.media.pack_lists import put_lists, trailers
from safehaul.media.seal import session_packs
from safehaul.media.sessions import Session

_PACKS_AT_ONCE = 64
"""So many packs are read back before they are listed: whoever is stopped has listed the ones before."""


class Left(NamedTuple):
    """What is left of an unfinished session."""

    packs: int
    """That the session recorded."""
    listed: int
    """Of these, packs that later backups find."""


def list_unfinished(session: Session, heartbeat: Callable[[str], None]) -> Left:
    """Read the session's packs back and list those that are sound. A second call lists what the first one had not.

    Nothing is done for a session that has ended: a committed one is listed, a fenced one given up.
    """
    repository = session.repository
    if read_outcome(repository, session.prefix) is not None:
        return Left(0, 0)
    repository.refresh_index()
    packs = session_packs(session, session.counted())
    checker = PackChecker(repository)
    pending: list[PackListing] = []
    listed = 0
    for number, pack in enumerate(packs, start=1):
        heartbeat(f"reading back pack {number} of {len(packs)}")
        if _is_listed(session, pack):
            listed += 1
            continue
        try:
            findings = checker.check(pack)
        except NotFoundError:
            continue
        if findings.sound:
            pending.append(PackListing(pack, findings.entries))
        if len(pending) >= _PACKS_AT_ONCE:
            listed += _put(session, pending)
    return Left(len(packs), listed + _put(session, pending))


def give_up(session: Session, why: str) -> Left:
    """End the session: nothing can be committed any more, and the next collection finds its packs without use.

    Nothing is done for a session that has ended.
    """
    fence(session, why)
    return Left(0, 0)


def _is_listed(session: Session, pack: SealedPack) -> bool:
    repository = session.repository
    try:
        (listing,) = trailers(repository, [pack])
    except (NotFoundError, IntegrityError):
        return False
    return all(
        any(location.pack.pack_id == pack.pack_id for location in repository.index.lookup(entry.chunk_id))
        for entry in listing.entries[:1]
    )


def _put(session: Session, pending: list[PackListing]) -> int:
    put_lists(session.repository, pending)
    count = len(pending)
    pending.clear()
    return count
