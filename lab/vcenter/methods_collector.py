"""PropertyCollector, ViewManager and the single property access (`Fetch`)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from lab.vcenter.collector import PC, Selected, content_of, select
from lab.vcenter.dispatch import Invocation, Registry
from lab.vcenter.faults import fault_named, invalid_argument, not_authenticated
from lab.vcenter.nodes import Node, check_path
from lab.vcenter.reflect import moid_of
from lab.vcenter.service import PROPERTY_COLLECTOR
from lab.vcenter.updates import MAX_FILTERS, Collector, Filter, session_scope
from lab.vcenter.views import ContainerView, ListView

_SERVER_PAGE = 1000
"""A page holds at most this many objects, also without maxObjects: a client must follow the token."""
_MAX_OBJECTS_OF_SESSION = 200  # views, collectors, filters and half-read results


def register(registry: Registry) -> None:
    """Add these methods."""
    registry.method("Fetch", anonymous=True)(_fetch)
    registry.method("RetrieveProperties", anonymous=True)(_retrieve_all)
    registry.method("RetrievePropertiesEx", anonymous=True)(_retrieve)
    registry.method("ContinueRetrievePropertiesEx")(_continue)
    registry.method("CancelRetrievePropertiesEx")(_cancel_retrieve)
    registry.method("CreatePropertyCollector")(_create_collector)
    registry.method("DestroyPropertyCollector")(_destroy_own)
    registry.method("CreateFilter")(_create_filter)
    registry.method("DestroyPropertyFilter")(_destroy_filter)
    registry.method("WaitForUpdatesEx")(_wait_ex)
    registry.method("WaitForUpdates")(_wait)
    registry.method("CheckForUpdates")(_check)
    registry.method("CancelWaitForUpdates")(_cancel_wait)
    registry.method("CreateContainerView")(_container_view)
    registry.method("CreateListView")(_list_view)
    registry.method("DestroyView")(_destroy_own)


@dataclass
class _Rest:
    """The objects of a paged result that the client has not asked for yet."""

    token: str
    collector: str
    objects: list[Selected]

    def node(self, _lookup: Any) -> Node:
        """Not a managed object: it only lives beside them in the session."""
        return Node(PC(self.token), {})


def _fetch(invocation: Invocation) -> Any:
    name = invocation.arg("prop", "")
    node = invocation.scope.need(invocation.target)
    check_path(type(node.reference), name)
    fault = invocation.scope.guard(node, name)
    if fault is not None:
        raise fault
    return node.value(name)


def _selected(invocation: Invocation) -> list[Selected]:
    specs = invocation.arg("specSet", [])
    if not specs:
        raise invalid_argument("specSet")
    if invocation.session is None and any(start.selectSet for spec in specs for start in spec.objectSet):
        # Without a session single objects answer with NotAuthenticated per property (missingSet); there is
        # nothing that could be traversed.
        raise not_authenticated()
    return list(itertools.chain.from_iterable(select(spec, invocation.scope) for spec in specs))


def _contents(invocation: Invocation, selected: list[Selected]) -> list[Any]:
    guard = invocation.scope.guard
    contents = []
    for each in selected:
        node = invocation.scope.find(each.reference)
        if node is not None:  # gone between two pages
            contents.append(content_of(node, each.paths, guard))
    return contents


def _retrieve_all(invocation: Invocation) -> list[Any]:
    return _contents(invocation, _selected(invocation))


def _retrieve(invocation: Invocation) -> Any:
    options = invocation.arg("options")
    wanted = options.maxObjects if options is not None and options.maxObjects is not None else _SERVER_PAGE
    if wanted <= 0:
        raise invalid_argument("options.maxObjects")
    selected = _selected(invocation)
    if not selected:
        return None
    return _page(invocation, selected, min(wanted, _SERVER_PAGE))


def _page(invocation: Invocation, selected: list[Selected], size: int) -> Any:
    now, later = selected[:size], selected[size:]
    token = None
    if later:
        token = f"{invocation.own.new_moid()}:{size}"
        _keep(invocation, token, _Rest(token, moid_of(invocation.target), later))
    return PC.RetrieveResult(token=token, objects=_contents(invocation, now))


def _take_rest(invocation: Invocation) -> _Rest:
    token = invocation.arg("token", "")
    rest = invocation.own.objects.get(token)
    if not isinstance(rest, _Rest) or rest.collector != moid_of(invocation.target):
        raise invalid_argument("token")
    del invocation.own.objects[token]
    return rest


def _continue(invocation: Invocation) -> Any:
    rest = _take_rest(invocation)
    return _page(invocation, rest.objects, int(rest.token.rpartition(":")[2]))


def _cancel_retrieve(invocation: Invocation) -> None:
    _take_rest(invocation)


def _create_collector(invocation: Invocation) -> Any:
    collector = Collector(invocation.own.new_moid())
    _keep(invocation, moid_of(collector.reference), collector)
    return collector.reference


def _collector(invocation: Invocation) -> Collector:
    """The collector that the call names; each session has its own default one."""
    objects, moid = invocation.own.objects, moid_of(invocation.target)
    if moid == moid_of(PROPERTY_COLLECTOR) and moid not in objects:
        objects[moid] = Collector(moid)
    found = objects.get(moid)
    if not isinstance(found, Collector):
        raise invalid_argument("_this")
    return found


def _create_filter(invocation: Invocation) -> Any:
    collector = _collector(invocation)
    if len(collector.filters) >= MAX_FILTERS:
        raise invalid_argument("spec", f"a collector has at most {MAX_FILTERS} filters")
    spec = invocation.arg("spec")
    select(spec, invocation.scope)  # refuses unknown objects and properties now, not in a wait
    made = Filter(invocation.own.new_moid(), spec, invocation.arg("partialUpdates", default=False))
    _keep(invocation, made.moid, made)
    collector.filters[made.moid] = made
    return PC.Filter(made.moid)


def _destroy_filter(invocation: Invocation) -> None:
    moid = moid_of(invocation.target)
    invocation.own.objects.pop(moid, None)
    for each in list(invocation.own.objects.values()):
        if isinstance(each, Collector):
            each.filters.pop(moid, None)


def _destroy_own(invocation: Invocation) -> None:
    gone = invocation.own.objects.pop(moid_of(invocation.target), None)
    if isinstance(gone, Collector):
        gone.cancel_waits()
        for moid in gone.filters:
            invocation.own.objects.pop(moid, None)


def _wait_ex(invocation: Invocation) -> Any:
    options = invocation.arg("options")
    seconds = options.maxWaitSeconds if options is not None else None
    if seconds is not None and seconds < 0:
        raise invalid_argument("options.maxWaitSeconds")
    limit = options.maxObjectUpdates if options is not None else None
    return _updates(invocation, timeout_s=seconds, limit=limit)


def _wait(invocation: Invocation) -> Any:
    return _updates(invocation, timeout_s=None, limit=None)


def _check(invocation: Invocation) -> Any:
    return _updates(invocation, timeout_s=0, limit=None)


def _updates(invocation: Invocation, *, timeout_s: float | None, limit: int | None) -> Any:
    return _collector(invocation).wait(
        session_scope(invocation.scope),
        invocation.arg("version", ""),
        timeout_s=timeout_s,
        max_objects=limit,
        is_client_gone=invocation.is_client_gone,
    )


def _cancel_wait(invocation: Invocation) -> None:
    _collector(invocation).cancel_waits()


def _container_view(invocation: Invocation) -> Any:
    container = invocation.scope.need(invocation.arg("container")).reference
    view = ContainerView(
        invocation.own.new_moid(),
        container,
        invocation.arg("type", []),
        invocation.arg("recursive", default=False),
    )
    _keep(invocation, moid_of(view.reference), view)
    return view.reference


def _list_view(invocation: Invocation) -> Any:
    members = [invocation.scope.need(each).reference for each in invocation.arg("obj", [])]
    view = ListView(invocation.own.new_moid(), members)
    _keep(invocation, moid_of(view.reference), view)
    return view.reference


def _keep(invocation: Invocation, moid: str, thing: Any) -> None:
    objects = invocation.own.objects
    if len(objects) >= _MAX_OBJECTS_OF_SESSION:
        # A forgotten page goes first: its client has given up on it or will start again.
        oldest = next((key for key, each in objects.items() if isinstance(each, _Rest)), None)
        if oldest is None:
            raise fault_named("RuntimeFault", "The session holds too many views, collectors and filters.")
        del objects[oldest]
    objects[moid] = thing
