"""`gc/`: which packs must not be relied on any more.

Each object `gc/NNNNNNNNNN` is one generation, put-if-absent: JSON with `condemned` (packs that a
collection will delete) and `damaged` (packs in which a verification found damage), each a list of pack ids. No
collection runs yet; writers and commits obey the lists all the same, so that one can be added without changing them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pydantic import Field

from safehaul.errors import AlreadyExistsError, BusyError, IntegrityError
from safehaul.media.envelope import OBJECT_LIMIT_BYTES, Kind
from safehaul.media.object_store import ObjectStore
from safehaul.messages.base import Message

PREFIX = "gc/"
_ATTEMPTS = 20


class Generation(Message):
    """One object of `gc/`."""

    version: int = 1
    condemned: list[str] = Field(default_factory=list)
    damaged: list[str] = Field(default_factory=list)


class Condemnations(NamedTuple):
    """The sum of all generations."""

    generation: int
    packs: frozenset[bytes]


class _Wrapping(Protocol):
    """What this module needs of a repository."""

    @property
    def store(self) -> ObjectStore: ...

    def wrap(self, kind: Kind, name: str, body: bytes) -> bytes: ...

    def unwrap(self, kind: Kind, name: str, data: bytes) -> bytes: ...


def read_condemnations(repository: _Wrapping) -> Condemnations:
    """Read every generation. Raises IntegrityError when one is damaged: a guess could lose data."""
    packs: set[bytes] = set()
    last = 0
    for info in repository.store.list(PREFIX):
        number = info.name.removeprefix(PREFIX)
        if not number.isdecimal():
            raise IntegrityError(f"object {info.name} does not belong into {PREFIX}")
        data = repository.store.get(info.name, OBJECT_LIMIT_BYTES)
        try:
            generation = Generation.model_validate_json(repository.unwrap(Kind.COLLECTION, info.name, data))
            packs.update(bytes.fromhex(pack) for pack in (*generation.condemned, *generation.damaged))
        except ValueError as error:
            raise IntegrityError(f"object {info.name} is damaged: {error}") from error
        last = max(last, int(number))
    return Condemnations(last, frozenset(packs))


def record_damaged(repository: _Wrapping, damaged: list[bytes]) -> int:
    """Note damaged packs, so that no later backup relies on them; returns the generation.

    A pack that is listed already is left out; with nothing new the current generation is returned.
    """
    for _ in range(_ATTEMPTS):
        known = read_condemnations(repository)
        fresh = sorted({pack.hex() for pack in damaged if pack not in known.packs})
        if not fresh:
            return known.generation
        name = f"{PREFIX}{known.generation + 1:010d}"
        body = Generation(damaged=fresh).model_dump_json().encode()
        try:
            repository.store.put_if_absent(name, repository.wrap(Kind.COLLECTION, name, body))
        except AlreadyExistsError:
            # Another process made this generation first: look at what it says and take the next number.
            continue
        return known.generation + 1
    raise BusyError("too many processes write to gc/ at once; try again")
