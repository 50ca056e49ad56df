"""`gc/`: what must not be relied on any more, and what a collection waits for before it deletes.

Each object `gc/NNNNNNNNNN` is one generation, put-if-absent, counted from 1. Whoever writes a backup reads them all
after its session was opened, and again before the commit, and relies on nothing that is condemned. What they say:

    condemned, pages   packs and map pages that no backup needs; they are deleted later, or released
    observes, sessions the sessions that were open when generation `observes` could already be seen: its packs and pages
                       stay until each of those has ended
    released           packs, and pages, of earlier generations that are needed after all
    damaged            packs in which a verification found damage

Why nothing is lost, whatever a collection meets and whenever it stops: docs/adr/0008-collection-without-locks.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple, Protocol

from pydantic import Field

from safehaul.errors import AlreadyExistsError, BusyError, IntegrityError, NotFoundError
from safehaul.media.envelope import OBJECT_LIMIT_BYTES, Kind
from safehaul.media.object_store import ObjectStore
from safehaul.messages.base import Message

PREFIX = "gc/"
NAMES_LIMIT = 100_000
"""Packs and pages that one generation names: some megabytes."""

_ATTEMPTS = 20


class Generation(Message):
    """One object of `gc/`; packs and pages in hexadecimal."""

    version: int = 1
    condemned: list[str] = Field(default_factory=list)
    pages: list[str] = Field(default_factory=list)
    damaged: list[str] = Field(default_factory=list)
    released: list[str] = Field(default_factory=list)
    released_pages: list[str] = Field(default_factory=list)
    observes: int = 0
    """Number of the generation whose sessions are listed; 0: none."""
    sessions: list[str] = Field(default_factory=list)
    """Folders of `sessions/`, as they are named there."""


class NumberedGeneration(NamedTuple):
    """A generation as it was found."""

    number: int
    modified: float
    """By the store's clock."""
    content: Generation

    @property
    def name(self) -> str:
        """Its object."""
        return generation_name(self.number)


class Condemnations(NamedTuple):
    """The sum of all generations."""

    generation: int
    packs: frozenset[bytes]
    """Ids of packs that are condemned or damaged."""
    pages: frozenset[str]
    """Roots of pages that are condemned."""
    damaged: frozenset[bytes]
    """Those packs that are damaged."""


NOTHING_CONDEMNED = Condemnations(0, frozenset(), frozenset(), frozenset())


class _Wrapping(Protocol):
    """What this module needs of a repository."""

    @property
    def store(self) -> ObjectStore: ...

    def wrap(self, kind: Kind, name: str, body: bytes) -> bytes: ...

    def unwrap(self, kind: Kind, name: str, data: bytes) -> bytes: ...


def generation_name(number: int) -> str:
    """Return the object name of a generation."""
    return f"{PREFIX}{number:010d}"


def read_generations(repository: _Wrapping) -> list[NumberedGeneration]:
    """Read every generation, oldest first. Raises IntegrityError when one is damaged: a guess could lose data."""
    found = []
    for info in repository.store.list(PREFIX):
        number = info.name.removeprefix(PREFIX)
        if not number.isdecimal():
            raise IntegrityError(f"object {info.name} does not belong into {PREFIX}")
        try:
            data = repository.store.get(info.name, OBJECT_LIMIT_BYTES)
        except NotFoundError:
            # Spent: what it condemned is deleted or released, and a collection has taken the object away.
            continue
        try:
            content = Generation.model_validate_json(repository.unwrap(Kind.COLLECTION, info.name, data))
            for pack in (*content.condemned, *content.damaged, *content.released):
                bytes.fromhex(pack)
        except ValueError as error:
            raise IntegrityError(f"object {info.name} is damaged: {error}") from error
        found.append(NumberedGeneration(int(number), info.modified, content))
    return found


def sum_up(generations: Iterable[NumberedGeneration]) -> Condemnations:
    """What all generations, in their order, leave condemned."""
    condemned: set[str] = set()
    pages: set[str] = set()
    damaged: set[str] = set()
    last = 0
    for number, _, content in generations:
        condemned.update(content.condemned)
        condemned.difference_update(content.released)
        pages.update(content.pages)
        pages.difference_update(content.released_pages)
        damaged.update(content.damaged)
        last = number
    return Condemnations(
        last,
        frozenset(bytes.fromhex(pack) for pack in condemned | damaged),
        frozenset(pages),
        frozenset(bytes.fromhex(pack) for pack in damaged),
    )


def read_condemnations(repository: _Wrapping) -> Condemnations:
    """Read every generation and sum them up. Raises IntegrityError when one is damaged."""
    return sum_up(read_generations(repository))


def put_generation(repository: _Wrapping, content: Generation) -> int:
    """Write the next generation; returns its number. Raises BusyError when others are always faster."""
    for _ in range(_ATTEMPTS):
        numbers = [info.name.removeprefix(PREFIX) for info in repository.store.list(PREFIX)]
        number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=0)
        name = generation_name(number)
        body = content.model_dump_json(exclude_defaults=True).encode()
        try:
            repository.store.put_if_absent(name, repository.wrap(Kind.COLLECTION, name, body))
        except AlreadyExistsError:
            # Another process made this generation first: take the next number.
            continue
        return number
    raise BusyError("too many processes write to gc/ at once; try again")


def record_damaged(repository: _Wrapping, damaged: Collection[bytes]) -> int:
    """Note damaged packs, so that no later backup relies on them; returns the generation.

    A pack that is noted already is left out; with nothing new the current generation is returned.
    """
    known = read_condemnations(repository)
    fresh = sorted({pack.hex() for pack in damaged if pack not in known.damaged})
    if not fresh:
        return known.generation
    return put_generation(repository, Generation(damaged=fresh))
