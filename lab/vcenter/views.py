"""Views: lists of inventory objects that belong to a session (`ContainerView`, `ListView`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from pyVmomi import vim

from lab.vcenter.nodes import Node
from lab.vcenter.reflect import moid_of

_CHILD_PROPERTIES: dict[Any, tuple[str, ...]] = {
    vim.Folder: ("childEntity",),
    vim.Datacenter: ("vmFolder", "hostFolder", "datastoreFolder", "networkFolder"),
    vim.ComputeResource: ("host", "resourcePool"),
    vim.ResourcePool: ("resourcePool", "vm"),
    vim.HostSystem: ("vm",),
}
"""What a container view descends into (ContainerView, vSphere Web Services API reference)."""


class Lookup(Protocol):
    """Finds managed objects of one moment."""

    def find(self, reference: Any) -> Node | None:
        """The node of `reference`, or None when there is no such object (or it has another type)."""


class ContainerView:
    """All objects below `container` of the given types; what it lists follows the inventory."""

    def __init__(self, moid: str, container: Any, types: list[Any], recursive: bool) -> None:
        self.reference = vim.view.ContainerView(moid)
        self._container = container
        self._types = tuple(types)
        self._recursive = recursive

    def node(self, lookup: Lookup) -> Node:
        """The view at this moment."""
        return Node(
            self.reference,
            {
                "container": lambda: self._container,
                "type": lambda: list(self._types),
                "recursive": lambda: self._recursive,
                "view": lambda: self._members(lookup),
            },
        )

    def _members(self, lookup: Lookup) -> list[Any]:
        found: dict[str, Any] = {}
        seen = {moid_of(self._container)}
        level = [self._container]
        while level:
            below: list[Any] = []
            for parent in level:
                node = lookup.find(parent)
                for child in children_of(node) if node else ():
                    if moid_of(child) in seen:
                        continue
                    seen.add(moid_of(child))
                    below.append(child)
                    if not self._types or isinstance(child, self._types):
                        found[moid_of(child)] = child
            level = below if self._recursive else []
        return list(found.values())


class ListView:
    """The objects that the client named, as long as they exist."""

    def __init__(self, moid: str, members: list[Any]) -> None:
        self.reference = vim.view.ListView(moid)
        self.members = members

    def node(self, lookup: Lookup) -> Node:
        """The view at this moment."""
        return Node(
            self.reference, {"view": lambda: [each for each in self.members if lookup.find(each) is not None]}
        )


def children_of(node: Node) -> Iterable[Any]:
    """The references of the objects right below `node` in the inventory tree."""
    for managed_type, properties in _CHILD_PROPERTIES.items():
        if not isinstance(node.reference, managed_type):
            continue
        for name in properties:
            value = node.value(name)
            yield from value if isinstance(value, list) else [value] if value is not None else []
