"""What a sweep looks at: the snapshots of every VM, a VM that holds an orphan, and redo logs that nothing names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pyVmomi import vim

from safehaul.errors import BusyError
from safehaul.messages.inventory import SnapshotNode, VmState
from safehaul.messages.sweep import VmSnapshots
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.leftovers import is_redo_log, is_snapshot_file
from safehaul.vsphere.names import unescape
from safehaul.vsphere.properties import PAGE_SIZE, Properties, read_objects, walk
from safehaul.vsphere.snapshot_tree import snapshot_nodes
from safehaul.vsphere.tasks import Heartbeat, no_heartbeat
from safehaul.vsphere.vms import vm_state
from safehaul.vsphere.whereabouts import find_holder

_PATHS: Final = [
    "name",
    "snapshot",
    "config.instanceUuid",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
]


def all_snapshots(
    vcenter: VCenter, *, page_size: int = PAGE_SIZE, heartbeat: Callable[[], None] | None = None
) -> list[VmSnapshots]:
    """Every VM of a vCenter with its snapshots, ordered by moref.

    Args:
        vcenter: the session.
        page_size: VMs a round trip.
        heartbeat: called once a page; may raise to stop.

    Raises:
        SafehaulError: vCenter could not be asked.
    """
    uuid = vcenter.about().instance_uuid

    def read(session: Session) -> list[VmSnapshots]:
        found = walk(session, {vim.VirtualMachine: _PATHS}, page_size=page_size, heartbeat=heartbeat)
        # A VM that moves between folders while a walk goes on may be met twice.
        return list({each.moref: _vm(each, uuid) for each in found}.values())

    return sorted(vcenter.read(read), key=lambda vm: vm.moref)


def _vm(found: Properties, vcenter_uuid: str) -> VmSnapshots:
    state = str(found.get("runtime.connectionState", "unknown"))
    unread = found.unreadable.get("snapshot") or found.unreadable.get("config.instanceUuid")
    unreadable = str(unread) if unread is not None else ""
    if state != "connected":
        # An unreadable tree is not an empty one, and what vCenter remembers of it may be old.
        unreadable = f"the VM is {state}: vCenter cannot tell its snapshots now"
    instance_uuid = str(found.get("config.instanceUuid", ""))
    return VmSnapshots(
        moref=found.moref,
        name=unescape(str(found.get("name", ""))),
        vc_guid=f"{vcenter_uuid}.{instance_uuid}" if instance_uuid else "",
        connection_state=state,
        consolidation_needed=bool(found.get("runtime.consolidationNeeded", False)),
        snapshots=[] if unreadable else snapshot_nodes(found.get("snapshot")),
        unreadable=unreadable,
    )


def look_at_orphan(
    vcenter: VCenter, vm_moref: str, instance_uuid: str, snapshot: tuple[str, str], heartbeat: Heartbeat
) -> tuple[SnapshotNode | None, VmState | None]:
    """The orphan as it stands, and the VM as it was without it: what its removal is to be compared with.

    Nobody has recorded the VM before the snapshot was made. What can be told is this: of the snapshot files in the VM's
    directories those that the VM names now are some snapshot's, and those that it does not name were left by somebody
    earlier. So the second are old, and any of the first that nothing names after the removal is what it has left.

    Args:
        vcenter: the session.
        vm_moref: the VM's when it was listed.
        instance_uuid: the VM's.
        snapshot: name and description.
        heartbeat: while directories are listed.

    Returns:
        None and None when the snapshot is gone.

    Raises:
        BusyError: the VM cannot be read now, or is in the middle of a snapshot task.
    """
    holder = find_holder(vcenter, vm_moref, instance_uuid, snapshot[1])
    if holder is None:
        return None, None
    state = vm_state(vcenter, holder.moref, list_directories=True, heartbeat=heartbeat)
    if state.connection_state != "connected":
        raise BusyError(f"VM {state.name!r} is {state.connection_state}: bring its host or datastore back")
    if state.running_snapshot_tasks:
        raise BusyError(f"VM {state.name!r} is in the middle of a snapshot task: the next sweep looks again")
    node = next((each for each in state.snapshots if (each.name, each.description) == snapshot), None)
    if node is None:
        return None, None
    named = {file.path for file in state.files if is_snapshot_file(file.path)}
    without = {
        "files": [file for file in state.files if file.path not in named],
        "listed": [file for file in state.listed if file.path not in named],
        "snapshots": [each for each in state.snapshots if each.moref != node.moref],
    }
    return node, state.model_copy(update=without)


def phantom_deltas(vcenter: VCenter, vm_moref: str, *, heartbeat: Heartbeat = no_heartbeat) -> list[str]:
    """Redo logs in a VM's directories that no disk and no snapshot of any VM names; datastore paths, sorted.

    Looks twice, so that a snapshot which comes or goes meanwhile is no finding. A VM that cannot be read, or whose
    snapshot tasks run, has none.

    Raises:
        NotFoundError: the VM has gone.
    """
    first = _unnamed(vm_state(vcenter, vm_moref, list_directories=True, heartbeat=heartbeat))
    if not first:
        return []
    second = vm_state(vcenter, vm_moref, list_directories=True, heartbeat=heartbeat)
    suspects = first & _unnamed(second)
    if not suspects:
        return []
    return sorted(suspects - _named_by_others(vcenter, second.datastore_morefs, heartbeat))


def _unnamed(state: VmState) -> set[str]:
    if state.connection_state != "connected" or state.running_snapshot_tasks:
        return set()
    named = {file.path for file in state.files}
    named |= {path for disk in state.disks for path in (disk.path, *disk.parent_paths)}
    return {file.path for file in state.listed if is_redo_log(file.path)} - named


def _named_by_others(vcenter: VCenter, datastores: Sequence[str], heartbeat: Heartbeat) -> set[str]:
    """Files of all VMs on these datastores: VMs may share a directory."""

    def read(session: Session) -> set[str]:
        references = [session.managed(vim.Datastore, each) for each in datastores]
        vms = {
            moref(vm): vm
            for store in read_objects(session, references, {vim.Datastore: ["vm"]})
            for vm in store.get("vm") or []
        }
        paths: set[str] = set()
        listed = list(vms.values())
        for start in range(0, len(listed), PAGE_SIZE):
            heartbeat(None)
            page = read_objects(
                session, listed[start : start + PAGE_SIZE], {vim.VirtualMachine: ["layoutEx"]}
            )
            paths |= {str(each.name) for vm in page if vm.get("layoutEx") for each in vm.get("layoutEx").file}
        return paths

    return vcenter.read(read)
