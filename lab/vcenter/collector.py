"""The PropertyCollector's evaluation: which objects a filter selects, and what of them is told.

Semantics: PropertyCollector.FilterSpec, ObjectSpec, TraversalSpec in the vSphere Web Services API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vmodl

from lab.vcenter.faults import invalid_argument, object_gone
from lab.vcenter.nodes import Node, check_path, read_path
from lab.vcenter.reflect import moid_of
from lab.vcenter.views import Lookup

PC = vmodl.query.PropertyCollector
Guard = Callable[[Node, str], Any]
"""Tells the fault that keeps a caller from reading (node, path); None when it may be read."""

_MAX_VISITS = 500_000  # objects times selections: bounds what one specification can cost
_MAX_SELECTIONS = 500


@dataclass(frozen=True)
class Selected:
    """An object that a filter selects, and the property paths that it asks of it."""

    reference: Any
    paths: tuple[str, ...]


def select(spec: Any, lookup: Lookup) -> list[Selected]:
    """All objects of one FilterSpec that a PropertySpec covers, each once, in the order of the traversal.

    Raises:
        ManagedObjectNotFound: a starting object does not exist (unless reportMissingObjectsInResults).
        InvalidProperty: a path in a PropertySpec or TraversalSpec does not exist.
        InvalidArgument: the specification is larger than anything reasonable or names an unknown selection.
    """
    chosen: dict[str, Selected] = {}
    for start in spec.objectSet:
        if lookup.find(start.obj) is None:
            if spec.reportMissingObjectsInResults:
                continue
            raise object_gone(start.obj)
        for node in _traverse(start, lookup):
            moid = moid_of(node.reference)
            if moid not in chosen:
                paths = _paths_for(node, spec.propSet)
                if paths is not None:
                    chosen[moid] = Selected(node.reference, paths)
    return list(chosen.values())


def content_of(node: Node, paths: Iterable[str], guard: Guard) -> Any:
    """The ObjectContent of `node`: set properties, and in `missingSet` those that the caller may not read."""
    present, missing = [], []
    for path in paths:
        fault = guard(node, path)
        if fault is not None:
            missing.append(PC.MissingProperty(path=path, fault=fault))
            continue
        value = read_path(node, path)
        if value is not None:
            present.append(vmodl.DynamicProperty(name=path, val=value))
    return PC.ObjectContent(obj=node.reference, propSet=present, missingSet=missing)


def _paths_for(node: Node, prop_set: list[Any]) -> tuple[str, ...] | None:
    """The paths of the most specific PropertySpec that covers the node's type, or None when none does."""
    best: Any = None
    for spec in prop_set:
        covers = isinstance(node.reference, spec.type)
        if covers and (best is None or issubclass(spec.type, best.type)):
            best = spec
    if best is None:
        return None
    if best.all:
        return tuple(node.names)
    for path in best.pathSet:
        check_path(type(node.reference), path)
    return tuple(dict.fromkeys(best.pathSet))


def _traverse(start: Any, lookup: Lookup) -> Iterable[Node]:
    named = _named_selections(start.selectSet)
    pending: list[tuple[Any, bool, list[Any]]] = [(start.obj, bool(start.skip), start.selectSet)]
    seen: set[tuple[str, int]] = set()
    position = 0
    while position < len(pending):
        reference, skip, selections = pending[position]
        position += 1
        if position > _MAX_VISITS:
            raise invalid_argument("specSet", "the traversal visits too many objects")
        node = lookup.find(reference)
        if node is None:
            continue
        if not skip:
            yield node
        for selection in selections:
            traversal = _resolve(selection, named)
            if not isinstance(reference, traversal.type):
                continue
            mark = (moid_of(reference), id(traversal))
            if mark in seen:
                continue
            seen.add(mark)
            below = _references(node, traversal.path)
            pending.extend((target, bool(traversal.skip), traversal.selectSet) for target in below)


def _references(node: Node, path: str) -> list[Any]:
    value = read_path(node, path)
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _named_selections(selections: list[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    pending, position = list(selections), 0
    while position < len(pending):
        selection = pending[position]
        position += 1
        if position > _MAX_SELECTIONS:
            raise invalid_argument("specSet", "too many selections in one specification")
        if isinstance(selection, PC.TraversalSpec):
            if selection.name:
                named.setdefault(selection.name, selection)
            pending.extend(selection.selectSet)
    return named


def _resolve(selection: Any, named: dict[str, Any]) -> Any:
    if isinstance(selection, PC.TraversalSpec):
        return selection
    try:
        return named[selection.name]
    except KeyError as error:
        raise invalid_argument("selectSet", f"no TraversalSpec has the name {selection.name!r}") from error
