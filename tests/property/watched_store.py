"""A real local store with a clock that the test moves, and a hook at each of its operations: to die there, or to let
somebody else work meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safehaul.media.object_store import ObjectInfo, ObjectUpload
from safehaul.media.store_local import LocalStore

TICK_S = 0.001


class Crash(BaseException):
    """The process ends here. No code of ours catches it."""


@dataclass
class Clock:
    """The store's clock, and when each object was stored by it."""

    now: float = 1_700_000_000.0
    stored: dict[str, float] = field(default_factory=dict)


Hook = Callable[[str, str, str], None]
"""Called with `before` or `after`, the operation, and the object's name or prefix."""


class WatchedStore(LocalStore):
    """One process's view of a store; those of one clock and folder share all objects."""

    def __init__(self, root: Path, clock: Clock, hook: Hook = lambda *_: None) -> None:
        super().__init__(root)
        self.clock = clock
        self.hook = hook

    def _around(self, operation: str, name: str, do: Callable[[], None]) -> None:
        self.hook("before", operation, name)
        do()
        self.clock.now += TICK_S
        if operation == "delete":
            self.clock.stored.pop(name, None)
        else:
            self.clock.stored[name] = self.clock.now
        self.hook("after", operation, name)

    def put_if_absent(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._around("put", name, lambda: super(WatchedStore, self).put_if_absent(name, data))

    def create(self, name: str) -> ObjectUpload:  # type: ignore[override] # narrower in the base class
        return _WatchedUpload(self, name, super().create(name))

    def commit_upload(self, name: str, upload: ObjectUpload) -> None:
        self._around("put", name, upload.commit)

    def delete(self, name: str) -> None:
        self._around("delete", name, lambda: super(WatchedStore, self).delete(name))

    def get(self, name: str, limit_bytes: int) -> bytes:
        self.hook("before", "get", name)
        return super().get(name, limit_bytes)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.hook("before", "get", name)
        super().read_into(name, offset, buffer)

    def size(self, name: str) -> int:
        self.hook("before", "size", name)
        return super().size(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.hook("before", "list", prefix)
        # At once: a listing is one request, and what is deleted meanwhile may still be in it.
        for found in list(super().list(prefix)):
            yield found._replace(modified=self.clock.stored.get(found.name, self.clock.now))


class _WatchedUpload:
    def __init__(self, store: WatchedStore, name: str, upload: ObjectUpload) -> None:
        self._store = store
        self._name = name
        self._upload = upload

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._upload.write(data)

    def commit(self) -> None:
        self._store.commit_upload(self._name, self._upload)

    def abort(self) -> None:
        self._upload.abort()
