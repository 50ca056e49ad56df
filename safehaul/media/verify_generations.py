"""`gc/` as a verification reads it: what is condemned and what is damaged, also when one of its objects is damaged."""

from __future__ import annotations

from typing import NamedTuple

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError, UnsupportedError
from safehaul.media.canonical import parse_object
from safehaul.media.collection import PREFIX, Generation
from safehaul.media.envelope import Kind
from safehaul.media.repository import Repository


class Noted(NamedTuple):
    """What the readable generations say."""

    condemned: frozenset[bytes]
    damaged: frozenset[bytes]
    broken: dict[str, str]
    """Object → what is wrong with it."""


def read_noted(repository: Repository) -> Noted:
    """Read every object of `gc/`, and go on after a damaged one."""
    condemned: set[bytes] = set()
    damaged: set[bytes] = set()
    broken: dict[str, str] = {}
    for found in repository.store.list(PREFIX):
        try:
            generation = parse_object(Generation, repository.get(Kind.COLLECTION, found.name), found.name)
            condemned.update(map(bytes.fromhex, generation.condemned))
            condemned.difference_update(map(bytes.fromhex, generation.released))
            damaged.update(map(bytes.fromhex, generation.damaged))
        except NotFoundError:
            # Spent: a collection has taken it away since the listing.
            continue
        except (IntegrityError, UnreadableError, UnsupportedError, ValueError) as error:
            broken[found.name] = str(error)
    return Noted(frozenset(condemned), frozenset(damaged), broken)
