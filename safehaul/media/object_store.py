"""What the repository asks of the place that holds its objects.

An object is written once, completely or not at all, and never changed. `put_if_absent` is the only way to
commit: of two writers of one name exactly one succeeds. An `ObjectStore` deletes nothing: access nodes must not be
able to.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from safehaul.errors import AlreadyExistsError, TransientError

_CLOCK = "clock/"
_CLOCK_KEPT_S = 3600.0
_CLOCK_TRIES = 3


class ObjectInfo(NamedTuple):
    """One listed object."""

    name: str
    size_bytes: int
    modified: float
    """When it was stored, by the store's clock: seconds since 1970. Compare it with another object's only."""


class ObjectUpload(Protocol):
    """An object that is being written. Until `commit` returns, nobody can see it."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""

    def commit(self) -> None:
        """Make the object durable and visible. Raises AlreadyExistsError when the name is taken."""

    def abort(self) -> None:
        """Throw away what was written. Harmless after `commit` and when repeated."""


class ObjectStore(Protocol):
    """A flat space of immutable objects. Every method may raise TransientError (worth another try)."""

    @property
    def url(self) -> str:
        """Where the store is, without secrets."""

    def put_if_absent(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object durably. Raises AlreadyExistsError when the name is taken, whatever it holds."""

    def create(self, name: str) -> ObjectUpload:
        """Begin an object that is written piece by piece."""

    def get(self, name: str, limit_bytes: int) -> bytes:
        """Read a whole object. Raises NotFoundError; IntegrityError when it is over `limit_bytes`."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes from `offset`. Raises NotFoundError; IntegrityError if it is shorter."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the object. Errors as `get_range`."""

    def size(self, name: str) -> int:
        """Length in bytes. Raises NotFoundError."""

    def exists(self, name: str) -> bool:
        """Tell whether the object is there."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder (`prefix` is empty or ends with `/`), in order of their names."""


class DeletingStore(ObjectStore, Protocol):
    """A store opened by an identity that may delete. No access node has one."""

    def delete(self, name: str) -> None:
        """Take an object away, durably. One that is gone already is fine."""

    def remove_abandoned(self, older_than_s: float) -> int:
        """Remove what uploads that never ended have left, where the store keeps it; returns how many files."""


def store_time(store: DeletingStore) -> float:
    """What the store's clock says now: the time of an object that is stored, and deleted again.

    Raises TransientError when the object is gone at once, time after time.
    """
    for _ in range(_CLOCK_TRIES):
        name = f"{_CLOCK}{secrets.token_hex(8)}"
        store.put_if_absent(name, b"the time")
        times = {found.name: found.modified for found in store.list(_CLOCK)}
        now = times.get(name)
        if now is None:
            # A process that is stopped for long in between is taken for dead by another one.
            continue
        for other, modified in times.items():
            # Those of processes that died in between, too.
            if other == name or now - modified > _CLOCK_KEPT_S:
                store.delete(other)
        return now
    raise TransientError(
        f"what was stored below {_CLOCK} in the repository to learn the store's time was gone right afterwards, "
        f"{_CLOCK_TRIES} times: does something delete objects there?"
    )


def put_same(store: ObjectStore, name: str, data: bytes) -> None:
    """Store an object whose content follows from its name or its writer: a second identical put is fine.

    Raises AlreadyExistsError when the name holds other bytes.
    """
    try:
        store.put_if_absent(name, data)
    except AlreadyExistsError:
        if store.size(name) != len(data) or store.get(name, len(data)) != data:
            raise
