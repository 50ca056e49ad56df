"""What is done to VMs and snapshots. Each is a task of the hosts that goes on without this process."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from lab.esx.api import AddDisk, ReconfigSpec, TaskStarted
from lab.vcenter.cards import edit_of, network_reference
from lab.vcenter.datastore_names import datacenter_of, host_path
from lab.vcenter.dispatch import DropConnection, Invocation, Registry
from lab.vcenter.faults import invalid_argument, no_permission, not_supported
from lab.vcenter.names import unescaped
from lab.vcenter.reflect import moid_of

_REMOVE = "VirtualMachine.State.RemoveSnapshot"
_CREATE = "VirtualMachine.State.CreateSnapshot"


def register(registry: Registry) -> None:
    """Add these methods, each with the privilege that the API reference names."""
    registry.method("CreateSnapshot_Task", _CREATE)(_create_snapshot)
    registry.method("CreateSnapshotEx_Task", _CREATE)(_create_snapshot)
    registry.method("RemoveSnapshot_Task", _REMOVE)(_remove_snapshot)
    registry.method("ConsolidateVMDisks_Task", _REMOVE)(_consolidate)
    registry.method("PowerOnVM_Task", "VirtualMachine.Interact.PowerOn")(_power_on)
    registry.method("PowerOffVM_Task", "VirtualMachine.Interact.PowerOff")(_power_off)
    registry.method("ReconfigVM_Task")(_reconfigure)
    registry.method("RelocateVM_Task")(_relocate)
    registry.method("RegisterVM_Task", "VirtualMachine.Inventory.Register")(_register_vm)
    registry.method("UnregisterVM", "VirtualMachine.Inventory.Unregister")(_unregister)
    registry.method("Destroy_Task", "VirtualMachine.Inventory.Delete")(_destroy)
    registry.method("CancelTask")(_cancel_task)


def _started(started: TaskStarted) -> Any:
    if started.drop_connection:
        raise DropConnection
    return vim.Task(started.task)


def _create_snapshot(invocation: Invocation) -> Any:
    # CreateSnapshot says `quiesce`, CreateSnapshotEx says how: any specification means yes.
    quiesce = invocation.arg("quiesce", default=False) or invocation.arg("quiesceSpec") is not None
    return _started(
        invocation.vcenter.hosts.create_snapshot(
            moid_of(invocation.target),
            unescaped(invocation.arg("name", "")),
            invocation.arg("description", ""),
            memory=invocation.arg("memory", default=False),
            quiesce=quiesce,
            user=invocation.user,
        )
    )


def _remove_snapshot(invocation: Invocation) -> Any:
    return _started(
        invocation.vcenter.hosts.remove_snapshot(
            moid_of(invocation.target),
            remove_children=invocation.arg("removeChildren", default=False),
            consolidate=invocation.arg("consolidate", default=True),
            user=invocation.user,
        )
    )


def _consolidate(invocation: Invocation) -> Any:
    return _started(invocation.vcenter.hosts.consolidate(moid_of(invocation.target), user=invocation.user))


def _power_on(invocation: Invocation) -> Any:
    return _started(invocation.vcenter.hosts.power_on(moid_of(invocation.target), user=invocation.user))


def _power_off(invocation: Invocation) -> Any:
    return _started(invocation.vcenter.hosts.power_off(moid_of(invocation.target), user=invocation.user))


def _destroy(invocation: Invocation) -> Any:
    _need_vm(invocation)
    return _started(invocation.vcenter.hosts.destroy(moid_of(invocation.target), user=invocation.user))


def _unregister(invocation: Invocation) -> None:
    invocation.vcenter.hosts.unregister(moid_of(invocation.target), user=invocation.user)


def _need_vm(invocation: Invocation) -> None:
    if not isinstance(invocation.target, vim.VirtualMachine):
        raise not_supported(f"{invocation.call.method} of anything but a virtual machine")


def _relocate(invocation: Invocation) -> Any:
    spec = invocation.arg("spec")
    vm = invocation.scope.inventory.vm(invocation.target)
    running = vm.power_state == "poweredOn"
    invocation.scope.demand("Resource.HotMigrate" if running else "Resource.ColdMigrate", invocation.target)
    if spec.datastore is None or spec.disk:
        raise not_supported("a relocation without a datastore, or disk by disk")
    datastore = invocation.scope.need(spec.datastore).reference
    return _started(
        invocation.vcenter.hosts.relocate(
            moid_of(invocation.target), moid_of(datastore), user=invocation.user
        )
    )


def _register_vm(invocation: Invocation) -> Any:
    scope, pool, host = invocation.scope, invocation.arg("pool"), invocation.arg("host")
    template = invocation.arg("asTemplate", default=False)
    if (pool is None) != template:
        raise invalid_argument("pool", "a VM needs a resource pool, a template must not have one")
    if pool is not None:
        scope.need(pool)
        scope.demand("Resource.AssignVMToPool", pool)
    if host is not None:
        scope.need(host)
    folder = scope.need(invocation.target)
    if "VirtualMachine" not in (folder.value("childType") or []):
        raise not_supported("a virtual machine in this kind of folder")
    name = invocation.arg("name")
    return _started(
        invocation.vcenter.hosts.register(
            _host_path(invocation, moid_of(invocation.target), invocation.arg("path", "")),
            name=unescaped(name) if name else None,
            folder=moid_of(invocation.target),
            resource_pool=moid_of(pool) if pool is not None else None,
            host=moid_of(host) if host is not None else _host_of(invocation, pool),
            as_template=template,
            user=invocation.user,
        )
    )


def _reconfigure(invocation: Invocation) -> Any:
    spec = invocation.arg("spec")
    change = ReconfigSpec(
        name=unescaped(spec.name) if spec.name else None,
        annotation=spec.annotation,
        change_tracking_enabled=spec.changeTrackingEnabled,
        extra_config={each.key: str(each.value or "") for each in spec.extraConfig},
        num_cpu=spec.numCPUs,
        memory_mb=spec.memoryMB,
    )
    for device_change in spec.deviceChange:
        _add_device_change(change, device_change)
    home = invocation.scope.inventory.vm(invocation.target).parent
    for disk in change.add_disks:
        disk.path = _host_path(invocation, home, disk.path)
    for privilege in _needed(change):
        invocation.scope.demand(privilege, invocation.target)
    for edit in change.edit_nics:
        if edit.network is not None:
            network = network_reference(edit.network)
            invocation.scope.need(network)
            invocation.scope.demand("Network.Assign", network)
    if spec.changeVersion:
        current = invocation.scope.inventory.vm(invocation.target).change_version
        if spec.changeVersion != current:
            raise vim.fault.ConcurrentAccess(msg="The configuration has changed since it was read.")
    return _started(
        invocation.vcenter.hosts.reconfigure(moid_of(invocation.target), change, user=invocation.user)
    )


def _host_of(invocation: Invocation, pool: Any) -> str | None:
    """A host of the pool's cluster: where vCenter puts a VM that asks for none."""
    if pool is None:
        return None
    wanted = moid_of(pool)
    for cluster in invocation.scope.inventory.state.clusters:
        if wanted in {cluster.resource_pool, *(each.moref for each in cluster.pools)}:
            return cluster.hosts[0]
    return None


def _host_path(invocation: Invocation, folder: str, path: str) -> str:
    """A client's path as the hosts know it: it means a datastore of the VM folder's datacentre."""
    state = invocation.scope.inventory.state
    return host_path(state, datacenter_of(state, folder), path)


def _needed(change: ReconfigSpec) -> list[str]:
    """The privileges that a change needs; an empty change needs none."""
    wanted = {
        "VirtualMachine.Config.Rename": change.name is not None,
        "VirtualMachine.Config.Annotation": change.annotation is not None,
        "VirtualMachine.Config.ChangeTracking": change.change_tracking_enabled is not None,
        "VirtualMachine.Config.AdvancedConfig": bool(change.extra_config),
        "VirtualMachine.Config.AddExistingDisk": bool(change.add_disks),
        "VirtualMachine.Config.RemoveDisk": bool(change.remove_disks),
        "VirtualMachine.Config.EditDevice": bool(change.edit_nics),
        "VirtualMachine.Config.CPUCount": change.num_cpu is not None,
        "VirtualMachine.Config.Memory": change.memory_mb is not None,
    }
    return [privilege for privilege, needed in wanted.items() if needed]


def _add_device_change(change: ReconfigSpec, wanted: Any) -> None:
    device = wanted.device
    if isinstance(device, vim.vm.device.VirtualEthernetCard) and wanted.operation == "edit":
        change.edit_nics.append(edit_of(device))
        return
    if not isinstance(device, vim.vm.device.VirtualDisk):
        raise not_supported("a device change of anything but a disk, or the edit of a card")
    if wanted.operation == "remove":
        change.remove_disks.append(device.key)
        change.delete_files = change.delete_files or wanted.fileOperation == "destroy"
        return
    if wanted.operation != "add" or wanted.fileOperation is not None:
        raise not_supported("editing a disk, or creating one")
    file_name = getattr(device.backing, "fileName", "")
    if not file_name:
        raise invalid_argument("deviceChange.device.backing.fileName")
    change.add_disks.append(
        AddDisk(
            path=file_name,
            controller_key=1000 if device.controllerKey is None else device.controllerKey,
            unit_number=device.unitNumber,
            mode=getattr(device.backing, "diskMode", None) or "persistent",
        )
    )


def _cancel_task(invocation: Invocation) -> None:
    moid = moid_of(invocation.target)
    task = invocation.scope.inventory.tasks.get(moid)
    if task is None:
        raise vim.fault.InvalidState(msg="The task is over.")
    may_cancel_any = "Global.CancelTask" in invocation.scope.privileges()
    if task.user != invocation.user and not may_cancel_any:
        raise no_permission(invocation.target, "Global.CancelTask")
    invocation.vcenter.hosts.cancel_task(moid)
