"""PropertyCollector filters and updates: what changed since the version that the client has seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vmodl

from lab.vcenter.collector import PC, content_of, select
from lab.vcenter.faults import not_authenticated
from lab.vcenter.nodes import Node
from lab.vcenter.reflect import moid_of
from lab.vcenter.scope import Scope
from lab.vcenter.soap import element_text
from lab.vcenter.views import Lookup

MAX_FILTERS = 100  # per collector
_POLL_S = 2.0  # how often a wait looks whether its session and its client are still there
_LONGEST_WAIT_S = 1800.0


class ClientGone(Exception):  # noqa: N818 - no error: the client has hung up during a wait
    """Nobody reads the answer any more."""


@dataclass
class Filter:
    """One filter and what was last reported of it: object moid → path → serialised value."""

    moid: str
    spec: Any
    partial: bool
    reported: dict[str, dict[str, str]] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)

    def node(self, _lookup: Lookup) -> Node:
        """The filter as a managed object."""
        return Node(PC.Filter(self.moid), {"spec": lambda: self.spec, "partialUpdates": lambda: self.partial})


class Collector:
    """A property collector of one session: its filters, and the version of its updates."""

    def __init__(self, moid: str) -> None:
        self.reference = PC(moid)
        self.filters: dict[str, Filter] = {}
        self._lock = threading.Lock()
        self._version = 0
        self._last: Any = None
        self._turn = 0

    def node(self, _lookup: Lookup) -> Node:
        """The collector as a managed object."""
        return Node(self.reference, {"filter": lambda: [PC.Filter(each) for each in self.filters]})

    def cancel_waits(self) -> None:
        """End waits in progress: they answer RequestCanceled."""
        self._turn += 1

    def wait(
        self,
        renew: Callable[[], Scope],
        version: str,
        *,
        timeout_s: float | None,
        max_objects: int | None,
        is_client_gone: Callable[[], bool],
    ) -> Any:
        """The next UpdateSet after `version` ("" for the first), or None when nothing changed in `timeout_s`.

        Raises:
            InvalidCollectorVersion: `version` is not one that this collector gave lately.
            RequestCanceled: another wait or CancelWaitForUpdates ended this one.
            ClientGone: the client hung up.
        """
        self.cancel_waits()
        turn = self._turn
        deadline = time.monotonic() + min(
            _LONGEST_WAIT_S if timeout_s is None else timeout_s, _LONGEST_WAIT_S
        )
        first = True
        while True:
            scope = renew()
            with self._lock:
                if turn != self._turn:
                    raise vmodl.fault.RequestCanceled(msg="The request was canceled.")
                resent = self._accept(version) if first else None
                first = False
                if resent is not None:
                    return resent
                update = self._changes(scope, max_objects)
                if update is not None:
                    return update
            left_s = deadline - time.monotonic()
            if left_s <= 0 and timeout_s is not None:
                return None
            if is_client_gone() or left_s <= 0:
                raise ClientGone
            scope.vcenter.mirror.wait(scope.inventory.state.version, min(left_s, _POLL_S))

    def _accept(self, version: str) -> Any:
        """Check the client's version. The answer to the one before is kept: it may have been lost on the way."""
        if version == "":
            for each in self.filters.values():
                each.reported.clear()
            self._last = None
            return None
        if version == str(self._version):
            return None
        if version == str(self._version - 1) and self._last is not None:
            return self._last
        raise vmodl.query.InvalidCollectorVersion(msg=f"The collector version {version!r} is not valid")

    def _changes(self, scope: Scope, max_objects: int | None) -> Any:
        room = max_objects if max_objects and max_objects > 0 else 10_000
        filter_updates = []
        truncated = False
        for each in self.filters.values():
            objects, left_out = _object_updates(each, scope, room)
            truncated = truncated or left_out
            room -= len(objects)
            if objects:
                filter_updates.append(PC.FilterUpdate(filter=PC.Filter(each.moid), objectSet=objects))
        if not filter_updates:
            return None
        self._version += 1
        self._last = PC.UpdateSet(
            version=str(self._version), filterSet=filter_updates, truncated=truncated or None
        )
        return self._last


def session_scope(scope: Scope) -> Callable[[], Scope]:
    """Makes the scope of each new look of a long wait; raises NotAuthenticated once the session is gone."""
    session, vcenter = scope.session, scope.vcenter
    assert session is not None

    def renew() -> Scope:
        if not vcenter.sessions.is_live(session):
            raise not_authenticated()
        return vcenter.scope(session)

    return renew


def _object_updates(each: Filter, scope: Scope, room: int) -> tuple[list[Any], bool]:
    """Updates of one filter, at most `room` objects; whether some were left for the next call."""
    updates: list[Any] = []
    guard = scope.guard
    seen: set[str] = set()
    for selected in select(_tolerant(each.spec), scope):
        moid = moid_of(selected.reference)
        seen.add(moid)
        node = scope.find(selected.reference)
        if node is None:
            continue
        content = content_of(node, selected.paths, guard)
        texts = {prop.name: element_text("val", prop.val) for prop in content.propSet}
        before = each.reported.get(moid)
        if before == texts:
            continue
        if len(updates) >= room:
            return updates, True
        updates.append(_object_update(node, content, texts, before))
        each.reported[moid] = texts
        each.references[moid] = selected.reference
    for moid in [known for known in each.reported if known not in seen]:
        if len(updates) >= room:
            return updates, True
        del each.reported[moid]
        updates.append(PC.ObjectUpdate(kind="leave", obj=each.references.pop(moid)))
    return updates, False


def _object_update(node: Node, content: Any, texts: dict[str, str], before: dict[str, str] | None) -> Any:
    known = before or {}
    changes = [
        PC.Change(name=prop.name, op="assign", val=prop.val)
        for prop in content.propSet
        if known.get(prop.name) != texts[prop.name]
    ]
    # A property that became unset is told as an assignment without a value.
    changes += [PC.Change(name=name, op="assign") for name in known if name not in texts]
    kind = "enter" if before is None else "modify"
    return PC.ObjectUpdate(kind=kind, obj=node.reference, changeSet=changes, missingSet=content.missingSet)


def _tolerant(spec: Any) -> Any:
    """The same filter, but an object that is gone leaves it instead of failing every wait."""
    return PC.FilterSpec(propSet=spec.propSet, objectSet=spec.objectSet, reportMissingObjectsInResults=True)
