"""The inventory at one moment: finds any managed object of the hosts' state and projects it when asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from pyVmomi import vim

from lab.esx.api import Cluster, Datacenter, Datastore, Host, Network, Snapshot, State, Task, Vm
from lab.esx.objects import Pool
from lab.vcenter import infrastructure, networks
from lab.vcenter.cards import network_reference
from lab.vcenter.nodes import Node
from lab.vcenter.reflect import moid_of
from lab.vcenter.tasks import task_info, task_node
from lab.vcenter.vms import VmProjection, entity_properties

_RECENT_TASKS = 200  # TaskManager.recentTask; the hosts drop old ones by themselves
_RECENT_TASKS_OF_ENTITY = 10


class Projections:
    """Keeps each VM's projection from one moment to the next while the VM itself did not change."""

    def __init__(self) -> None:
        self._projections: dict[str, VmProjection] = {}
        self._datastores: dict[str, Any] = {}

    def update(self, state: State, vms: Mapping[str, Vm]) -> None:
        """Learn a new state: datastores by moref and name, and which VMs are gone."""
        datastores: dict[str, Any] = {}
        for each in state.datastores:
            datastores[each.moref] = datastores[each.name] = vim.Datastore(each.moref)
        self._datastores = datastores
        for moref in self._projections.keys() - vms.keys():
            del self._projections[moref]

    def datastore_reference(self, key: str) -> Any:
        """The reference of a datastore by moref or name; None when there is none."""
        return self._datastores.get(key)

    def of(self, vm: Vm) -> VmProjection:
        """The projection of this very state of the VM."""
        known = self._projections.get(vm.moref)
        if known is None or known.vm is not vm:
            known = VmProjection(vm, self.datastore_reference)
            self._projections[vm.moref] = known
        return known


class Inventory:
    """All managed objects of one state version. Immutable: what it answers belongs to one moment."""

    def __init__(
        self, state: State, vms: Mapping[str, Vm], tasks: Mapping[str, Task], projections: Projections
    ) -> None:
        self.state = state
        self.vms = vms
        self.tasks = tasks
        self._projections = projections
        self._nodes: dict[str, Node | None] = {}

    def find(self, reference: Any) -> Node | None:
        """The object of `reference`; None when it does not exist or is of another type."""
        moid = moid_of(reference)
        if moid not in self._nodes:
            self._nodes[moid] = self._build(moid)
        node = self._nodes[moid]
        return node if node is not None and isinstance(node.reference, type(reference)) else None

    @property
    def root(self) -> Any:
        """The root folder's reference."""
        return vim.Folder(self.state.datacenter.parent)

    def vm(self, reference: Any) -> Vm:
        """The VM of a reference that `find` knows."""
        return self.vms[moid_of(reference)]

    def datastore_reference(self, key: str) -> Any:
        """The reference of a datastore by moref or name; None when there is none."""
        return self._projections.datastore_reference(key)

    @cached_property
    def custom_fields(self) -> list[Any]:
        """The definitions of custom attributes; all are of VMs."""
        return [
            vim.CustomFieldsManager.FieldDef(
                key=each.key, name=each.name, type=str, managedObjectType=vim.VirtualMachine
            )
            for each in self.state.labels.fields
        ]

    def recent_tasks(self, entity: str) -> list[Any]:
        """References of the newest tasks of one object, oldest first."""
        return self._tasks_by_entity.get(entity, [])[-_RECENT_TASKS_OF_ENTITY:]

    def latest_tasks(self) -> list[Any]:
        """References of the newest tasks of all objects, oldest first."""
        newest = sorted(self.tasks.values(), key=lambda task: task.queue_time)[-_RECENT_TASKS:]
        return [vim.Task(each.id) for each in newest]

    def _build(self, moid: str) -> Node | None:
        if moid in self.vms:
            vm = self.vms[moid]
            return self._projections.of(vm).node(self)
        if moid in self._snapshots:
            vm, snapshot = self._snapshots[moid]
            return self._projections.of(vm).snapshot_node(snapshot)
        if moid in self.tasks:
            task = self.tasks[moid]
            return task_node(task_info(task))
        return self._static(moid)

    def _static(self, moid: str) -> Node | None:
        if moid in self._surroundings:
            return self._surroundings[moid]()
        return self._folder_node(moid) or self._browser_node(moid)

    @cached_property
    def _surroundings(self) -> dict[str, Callable[[], Node]]:
        """How to build each object that VMs stand on."""
        state = self.state
        builders: dict[str, Callable[[], Node]] = {
            each.moref: partial(self._datacenter_node, each) for each in state.datacenters
        }
        for store in state.datastores:
            builders[store.moref] = partial(self._datastore_node, store)
        for host in state.hosts:
            builders[host.moref] = partial(self._host_node, host)
        for cluster in state.clusters:
            builders[cluster.moref] = partial(infrastructure.cluster_node, cluster, state)
            builders[cluster.resource_pool] = partial(self._pool_node, cluster, None)
            for pool in cluster.pools:
                builders[pool.moref] = partial(self._pool_node, cluster, pool)
        for network in state.networks:
            builders[network.moref] = partial(self._network_node, network)
        if any(each.switch for each in state.networks):
            builders[networks.SWITCH_MOREF] = partial(networks.switch_node, state)
        return builders

    def _datastore_node(self, store: Datastore) -> Node:
        return infrastructure.datastore_node(store, self.state, self._vms_on_datastore.get(store.moref, []))

    def _host_node(self, host: Host) -> Node:
        return infrastructure.host_node(host, self.state, self._vms_by("host").get(host.moref, []))

    def _pool_node(self, cluster: Cluster, pool: Pool | None) -> Node:
        moref = pool.moref if pool else cluster.resource_pool
        return infrastructure.pool_node(cluster, pool, self._vms_by("resource_pool").get(moref, []))

    def _network_node(self, network: Network) -> Node:
        members = self._vms_on_network.get(network.moref, [])
        return networks.network_node(network, self.state, members)

    def _datacenter_node(self, datacenter: Datacenter) -> Node:
        state = self.state
        builders = {
            **entity_properties(datacenter.name, vim.Folder(datacenter.parent)),
            "vmFolder": lambda: vim.Folder(datacenter.vm_folder),
            "hostFolder": lambda: vim.Folder(datacenter.host_folder),
            "datastoreFolder": lambda: vim.Folder(datacenter.datastore_folder),
            "networkFolder": lambda: vim.Folder(datacenter.network_folder),
            "datastore": lambda: [vim.Datastore(each.moref) for each in state.datastores_in(datacenter)],
            "network": lambda: [network_reference(each.moref) for each in state.networks],
        }
        return Node(vim.Datacenter(datacenter.moref), builders)

    def _folder_node(self, moid: str) -> Node | None:
        folder = next((each for each in self.state.folders if each.moref == moid), None)
        root = self.state.datacenter.parent
        if folder is None and moid != root:
            return None
        name, parent = (folder.name, folder.parent) if folder else ("Datacenters", None)
        kind = folder.kind if folder else "datacenter"
        child_types = {
            "datacenter": ["Folder", "Datacenter"],
            "vm": ["Folder", "VirtualMachine", "VirtualApp"],
            "host": ["Folder", "ComputeResource"],
            "datastore": ["Folder", "Datastore", "StoragePod"],
            "network": ["Folder", "Network", "DistributedVirtualSwitch"],
        }
        builders = {
            **entity_properties(name, self._folder_parent(moid, parent)),
            "childType": lambda: child_types[kind],
            "childEntity": lambda: self._children_of_folder(moid),
        }
        return Node(vim.Folder(moid), builders)

    def _folder_parent(self, moid: str, parent: str | None) -> Any:
        """The parent of a datacentre's four root folders is the datacentre itself."""
        for datacenter in self.state.datacenters:
            roots = (
                datacenter.vm_folder,
                datacenter.host_folder,
                datacenter.datastore_folder,
                datacenter.network_folder,
            )
            if moid in roots:
                return vim.Datacenter(datacenter.moref)
        return vim.Folder(parent) if parent else None

    def _children_of_folder(self, moid: str) -> list[Any]:
        state = self.state
        children = [vim.Folder(each.moref) for each in state.folders if each.parent == moid]
        children += [vim.Datacenter(each.moref) for each in state.datacenters if each.parent == moid]
        children += [vim.ClusterComputeResource(each.moref) for each in state.clusters if each.parent == moid]
        for datacenter in state.datacenters:
            if moid == datacenter.datastore_folder:
                children += [vim.Datastore(each.moref) for each in state.datastores_in(datacenter)]
        if moid == state.datacenter.network_folder:
            children += networks.children(state)
        return children + self._vms_by("parent").get(moid, [])

    def _browser_node(self, moid: str) -> Node | None:
        kind, _, owner = moid.partition("-")
        if kind == "envbrowser" and owner in self.vms:
            browser = vim.host.DatastoreBrowser(f"vmDatastoreBrowser-{owner}")
            return Node(vim.EnvironmentBrowser(moid), {"datastoreBrowser": lambda: browser})
        if kind not in ("datastoreBrowser", "hostDatastoreBrowser", "vmDatastoreBrowser"):
            return None
        datastores = [vim.Datastore(each.moref) for each in self.state.datastores]
        if kind == "datastoreBrowser":
            datastores = [each for each in datastores if moid_of(each) == owner]
        if not datastores:
            return None
        return Node(vim.host.DatastoreBrowser(moid), {"datastore": lambda: datastores})

    @cached_property
    def _snapshots(self) -> dict[str, tuple[Vm, Snapshot]]:
        return {each.moref: (vm, each) for vm in self.vms.values() for each in vm.snapshots}

    @cached_property
    def _tasks_by_entity(self) -> dict[str, list[Any]]:
        grouped: dict[str, list[Any]] = defaultdict(list)
        for task in sorted(self.tasks.values(), key=lambda each: each.queue_time):
            grouped[task.entity].append(vim.Task(task.id))
        return grouped

    @cached_property
    def _grouped(self) -> dict[str, dict[str, list[Any]]]:
        return {}

    def _vms_by(self, field: str) -> dict[str, list[Any]]:
        """References of the VMs grouped by one of their fields (`parent`, `host`, `resource_pool`)."""
        if field not in self._grouped:
            grouped: dict[str, list[Any]] = defaultdict(list)
            for vm in self.vms.values():
                if field == "resource_pool" and vm.template:
                    continue  # a template is in no pool
                grouped[getattr(vm, field)].append(vim.VirtualMachine(vm.moref))
            self._grouped[field] = grouped
        return self._grouped[field]

    @cached_property
    def _vms_on_datastore(self) -> dict[str, list[Any]]:
        grouped: dict[str, list[Any]] = defaultdict(list)
        for vm in self.vms.values():
            keys = {vm.datastore, *(disk.datastore for disk in vm.hardware.disks)}
            references = {self.datastore_reference(key) for key in keys} - {None}
            for moid in {moid_of(each) for each in references}:
                grouped[moid].append(vim.VirtualMachine(vm.moref))
        return grouped

    @cached_property
    def _vms_on_network(self) -> dict[str, list[Any]]:
        grouped: dict[str, list[Any]] = defaultdict(list)
        for vm in self.vms.values():
            for moid in {nic.network for nic in vm.hardware.nics}:
                grouped[moid].append(vim.VirtualMachine(vm.moref))
        return grouped
