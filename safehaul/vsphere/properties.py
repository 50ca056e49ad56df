"""Reads properties in bulk, through the PropertyCollector. Nothing else reads a property of a managed object.

Attribute-by-attribute access makes a round trip each, and breaks on values unknown to pyVmomi. Here an
answer that cannot be read is asked for again in halves, down to the single property, which is then named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pyVmomi import vim, vmodl

from safehaul.errors import BusyError, SafehaulError, SessionLostError
from safehaul.vsphere.client import Session
from safehaul.vsphere.faults import UnreadableAnswerError, describe, moref, translate

log = logging.getLogger(__name__)

PAGE_SIZE: Final = 200
# 10,000 VMs need 50 pages; a server that goes on for ever is cut off here.
_MAX_PAGES: Final = 100_000

_Filter: Any = vmodl.query.PropertyCollector.FilterSpec
_ObjectSpec: Any = vmodl.query.PropertyCollector.ObjectSpec
_PropertySpec: Any = vmodl.query.PropertyCollector.PropertySpec
_TraversalSpec: Any = vmodl.query.PropertyCollector.TraversalSpec
_RetrieveOptions: Any = vmodl.query.PropertyCollector.RetrieveOptions


@dataclass(slots=True)
class Properties:
    """What was read of one object: property path to value; unset properties are absent."""

    kind: str
    """`VirtualMachine`, `Folder`, …: the object's own class, not the one that was asked for."""
    moref: str
    values: dict[str, Any] = field(default_factory=dict)
    unreadable: dict[str, SafehaulError] = field(default_factory=dict)
    """Property path to what is wrong: no permission, or a value that this client does not know."""

    def get(self, path: str, default: Any = None) -> Any:
        """The value, or the default when it is unset or unreadable."""
        return self.values.get(path, default)

    def require(self, *paths: str) -> None:
        """Makes sure that each of these is known, set or unset.

        Raises:
            SafehaulError: why one could not be read, such as a privilege that is missing.
        """
        for path in paths:
            if path in self.unreadable:
                raise self.unreadable[path]


def read_object(session: Session, kind: Any, object_moref: str, paths: Sequence[str]) -> Properties:
    """Some properties of one object.

    Raises:
        NotFoundError: it does not exist.
        SafehaulError: whatever else vCenter answers.
    """
    found = _read_all(session, [session.managed(kind, object_moref)], {kind: paths})
    return found[0] if found else Properties(str(getattr(kind, "_wsdlName", kind)), object_moref)


def read_objects(
    session: Session, references: Sequence[Any], paths: Mapping[Any, Sequence[str]]
) -> list[Properties]:
    """Some properties of several objects, a page at a time.

    Args:
        session: from `VCenter.read`.
        references: managed objects, each of a class (or subclass) that `paths` has.
        paths: class to property paths.

    Raises:
        NotFoundError: one of them does not exist.
    """
    found: list[Properties] = []
    for start in range(0, len(references), PAGE_SIZE):
        found += _read_all(session, references[start : start + PAGE_SIZE], paths)
    return found


def walk(
    session: Session,
    paths: Mapping[Any, Sequence[str]],
    *,
    root: Any = None,
    page_size: int = PAGE_SIZE,
    heartbeat: Callable[[], None] | None = None,
) -> Iterator[Properties]:
    """Every object of some classes in the inventory, page by page, through a ContainerView.

    Args:
        session: from `VCenter.read`.
        paths: class to property paths; subclasses are included.
        root: where to begin; the inventory's root by default.
        page_size: objects a page (`maxObjects`).
        heartbeat: called once a page; may raise to stop.
    """
    view = session.content.viewManager.CreateContainerView(
        root or session.content.rootFolder, list(paths), True
    )
    try:
        for page in _pages(session, view, paths, page_size):
            if heartbeat is not None:
                heartbeat()
            yield from page
    finally:
        try:
            view.DestroyView()
        except SafehaulError as error:
            # The view dies with the session; an error here must not hide the one that ended the walk.
            log.debug("a view was not destroyed: %s", error)


def _pages(
    session: Session, view: Any, paths: Mapping[Any, Sequence[str]], page_size: int
) -> Iterator[list[Properties]]:
    collector = session.content.propertyCollector
    traversal = _TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    spec = _Filter(
        propSet=_property_specs(paths), objectSet=[_ObjectSpec(obj=view, skip=True, selectSet=[traversal])]
    )
    delivered: set[str] = set()
    try:
        answer = collector.RetrievePropertiesEx([spec], _RetrieveOptions(maxObjects=page_size))
        for _ in range(_MAX_PAGES):
            page = [_properties(content) for content in (answer.objects if answer else None) or []]
            delivered.update(each.moref for each in page)
            yield page
            if not answer or not answer.token:
                return
            answer = collector.ContinueRetrievePropertiesEx(answer.token)
    except UnreadableAnswerError as error:
        # The token was lost with the answer that could not be read: go on from the view's own list.
        log.warning("reading the inventory object by object: %s", error)
    else:
        raise BusyError(f"vCenter answered with more than {_MAX_PAGES} pages for {list(paths)}")
    listed = _read_all(session, [view], {vim.view.ContainerView: ["view"]})
    references = [
        each for each in (listed[0].get("view") or [] if listed else []) if moref(each) not in delivered
    ]
    for start in range(0, len(references), page_size):
        yield _read_all(session, references[start : start + page_size], paths)


def _read_all(
    session: Session, references: Sequence[Any], paths: Mapping[Any, Sequence[str]]
) -> list[Properties]:
    """Reads one page of known objects; halves it, down to one property, where an answer cannot be read."""
    spec = _Filter(
        propSet=_property_specs(paths), objectSet=[_ObjectSpec(obj=each, skip=False) for each in references]
    )
    collector = session.content.propertyCollector
    try:
        answer = collector.RetrievePropertiesEx([spec], _RetrieveOptions())
        contents = list((answer.objects if answer else None) or [])
        while answer and answer.token:
            answer = collector.ContinueRetrievePropertiesEx(answer.token)
            contents += (answer.objects if answer else None) or []
        return [_properties(content) for content in contents]
    except UnreadableAnswerError as error:
        if len(references) > 1:
            half = len(references) // 2
            return _read_all(session, references[:half], paths) + _read_all(session, references[half:], paths)
        return [_one_by_one(session, references[0], paths, error)]


def _one_by_one(
    session: Session, reference: Any, paths: Mapping[Any, Sequence[str]], error: UnreadableAnswerError
) -> Properties:
    found = Properties(_kind(reference), moref(reference))
    wanted = [(kind, path) for kind, each in paths.items() if isinstance(reference, kind) for path in each]
    if len(wanted) <= 1:
        found.unreadable.update({path: error for _, path in wanted})
        return found
    for kind, path in wanted:
        single = _read_all(session, [reference], {kind: [path]})
        if single:
            found.values.update(single[0].values)
            found.unreadable.update(single[0].unreadable)
    log.warning("%s: properties not read: %s", describe(reference), sorted(found.unreadable))
    return found


def _property_specs(paths: Mapping[Any, Sequence[str]]) -> list[Any]:
    return [_PropertySpec(type=kind, all=False, pathSet=list(each)) for kind, each in paths.items()]


def _properties(content: Any) -> Properties:
    unreadable = {
        each.path: translate(each.fault, f"reading {each.path} of {describe(content.obj)}")
        for each in content.missingSet or []
    }
    for error in unreadable.values():
        if isinstance(error, SessionLostError):
            # Without a session a server may answer with objects whose every property is missing: no truth in it.
            raise error
    return Properties(
        kind=_kind(content.obj),
        moref=moref(content.obj),
        values={each.name: each.val for each in content.propSet or []},
        unreadable=unreadable,
    )


def _kind(reference: Any) -> str:
    return str(getattr(type(reference), "_wsdlName", type(reference).__name__))
