"""The inventory around the VMs: datacentres, folders, clusters, hosts, pools and datastores, read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pyVmomi import vim

from safehaul.vsphere.client import Session
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import path_component, unescape
from safehaul.vsphere.properties import Properties, walk

_PATHS: Final[dict[Any, list[str]]] = {
    vim.Datacenter: ["name", "parent", "vmFolder"],
    vim.Folder: ["name", "parent"],
    vim.ComputeResource: ["name", "parent", "resourcePool"],
    vim.HostSystem: ["name", "parent"],
    vim.ResourcePool: ["name", "parent", "owner"],
    vim.Datastore: ["name", "parent"],
}
_POOLS: Final = {"ResourcePool", "VirtualApp"}
# A tree deeper than this is a loop.
_MAX_DEPTH: Final = 200


class Topology:
    """Answers from memory what stands around an object."""

    def __init__(self, objects: dict[str, Properties]) -> None:
        """Takes everything that is not a VM, by moref."""
        self._objects = objects

    @classmethod
    def read(cls, session: Session, heartbeat: Callable[[], None] | None = None) -> Topology:
        """Reads all of it: one walk of the inventory."""
        return cls({each.moref: each for each in walk(session, _PATHS, heartbeat=heartbeat)})

    def name(self, reference: Any) -> str:
        """The unescaped name of an object; empty when it is none of ours to see."""
        found = self._objects.get(moref(reference))
        return unescape(str(found.get("name", ""))) if found else ""

    def datacenter(self, reference: Any) -> str:
        """Name of the datacentre above an object; empty when there is none."""
        found = next((each for each in self._above(reference) if each.kind == "Datacenter"), None)
        return unescape(str(found.get("name", ""))) if found else ""

    def folder_path(self, reference: Any) -> str:
        """Path of a folder below its datacentre's `vm` folder; a slash in a name stays `%2f`."""
        components: list[str] = []
        for each in self._above(reference):
            if each.kind == "Datacenter":
                # The last one was the datacentre's own root folder, which people do not name.
                components = components[:-1]
                break
            if each.kind == "Folder":
                components.append(path_component(str(each.get("name", ""))))
        return "/".join(reversed(components))

    def cluster(self, host: Any) -> str:
        """Name of the cluster of a host; empty for a host that stands alone."""
        found = self._objects.get(moref(host))
        owner = self._objects.get(moref(found.get("parent"))) if found else None
        if owner is None or owner.kind != "ClusterComputeResource":
            return ""
        return unescape(str(owner.get("name", "")))

    def pool_path(self, reference: Any) -> str:
        """Path of a resource pool or vApp below the root pool of its cluster or host; empty for that root."""
        components: list[str] = []
        for each in self._above(reference):
            if each.kind not in _POOLS:
                # The last one was the root pool, which people do not see.
                components = components[:-1]
                break
            components.append(path_component(str(each.get("name", ""))))
        return "/".join(reversed(components))

    def of_kind(self, *kinds: str) -> list[Properties]:
        """All objects of some classes (by their exact class)."""
        return [each for each in self._objects.values() if each.kind in kinds]

    def _above(self, reference: Any) -> list[Properties]:
        """The object itself and what stands above it, nearest first."""
        chain: list[Properties] = []
        found = self._objects.get(moref(reference))
        while found is not None and len(chain) < _MAX_DEPTH:
            chain.append(found)
            found = self._objects.get(moref(found.get("parent")))
        return chain
