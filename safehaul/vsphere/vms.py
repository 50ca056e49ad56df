"""What one VM is now (its debt and its files), and what a snapshot of it froze."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

from pyVmomi import vim

from safehaul.errors import InvalidInputError, NotFoundError
from safehaul.messages.hardware import VmHardware
from safehaul.messages.inventory import VmDisk, VmFile, VmState
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.datastores import list_directory
from safehaul.vsphere.devices import disks, network_morefs
from safehaul.vsphere.faults import moref
from safehaul.vsphere.hardware import hardware
from safehaul.vsphere.inventory import method_names, volumes_of_vm
from safehaul.vsphere.names import parse_datastore_path, unescape
from safehaul.vsphere.properties import Properties, read_object
from safehaul.vsphere.snapshot_tree import snapshot_nodes
from safehaul.vsphere.tasks import Heartbeat, no_heartbeat, running_snapshot_tasks_of

_STATE_PATHS: Final = [
    "name",
    "snapshot",
    "layoutEx",
    "recentTask",
    "datastore",
    "disabledMethod",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "config.instanceUuid",
    "config.template",
    "config.changeVersion",
    "config.files",
    "config.hardware.device",
]
# A VM's disks may lie in many directories; each costs a task of vCenter.
_MAX_DIRECTORIES: Final = 200


def vm_state(
    vcenter: VCenter,
    vm_moref: str,
    *,
    list_directories: bool = False,
    also_list: Sequence[str] = (),
    heartbeat: Heartbeat = no_heartbeat,
) -> VmState:
    """What must be compared before and after a backup (vmware-facts 13).

    Args:
        vcenter: the session.
        vm_moref: the VM's.
        list_directories: also list the directories of .vmx, disks and snapshots; a task of vCenter each.
        also_list: further directories, such as those of an earlier state; one that is gone holds nothing.
        heartbeat: while the listings run.

    Raises:
        NotFoundError: no such VM.
    """
    found = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm_moref, _STATE_PATHS))
    found.require("snapshot", "runtime.consolidationNeeded", "config.hardware.device")
    state = _state(found, running_snapshot_tasks_of(vcenter, found.get("recentTask") or []))
    if not list_directories:
        return state
    listed: dict[str, VmFile] = {}
    for directory in state.directories:
        files = list_directory(vcenter, directory, among=found.get("datastore") or [], heartbeat=heartbeat)
        listed.update({each.path: each for each in files})
    missing = sorted(set(also_list) - set(state.directories))
    around = volumes_of_vm(vcenter, vm_moref) if missing else []
    for directory in missing:
        # The VM may have left its datastore meanwhile, but hardly its datacentre, in which the name means one.
        name = parse_datastore_path(directory).datastore
        among = [vim.Datastore(each.moref) for each in around if each.datastore == name] or None
        with contextlib.suppress(NotFoundError):
            files = list_directory(vcenter, directory, among=among, heartbeat=heartbeat)
            listed.update({each.path: each for each in files})
    return state.model_copy(update={"listed": sorted(listed.values(), key=lambda file: file.path)})


def _state(found: Properties, running_tasks: list[str]) -> VmState:
    snapshot, files, layout = found.get("snapshot"), found.get("config.files"), found.get("layoutEx")
    current_disks = disks(found.get("config.hardware.device"))
    vmx_path = str(files.vmPathName or "") if files else ""
    snapshot_directory = str(files.snapshotDirectory or "") if files else ""
    return VmState(
        moref=found.moref,
        name=unescape(str(found.get("name", ""))),
        instance_uuid=str(found.get("config.instanceUuid", "")),
        template=bool(found.get("config.template", False)),
        consolidation_needed=bool(found.get("runtime.consolidationNeeded", False)),
        snapshots=snapshot_nodes(snapshot),
        current_snapshot_moref=moref(snapshot.currentSnapshot) if snapshot else "",
        files=[
            VmFile(path=str(each.name), type=str(each.type or ""), size_bytes=int(each.size or 0))
            for each in (layout.file if layout else None) or []
        ],
        disks=current_disks,
        power_state=str(found.get("runtime.powerState", "unknown")),
        connection_state=str(found.get("runtime.connectionState", "unknown")),
        vmx_path=vmx_path,
        snapshot_directory=snapshot_directory,
        change_version=str(found.get("config.changeVersion", "")),
        running_snapshot_tasks=running_tasks,
        disabled_methods=method_names(found.get("disabledMethod")),
        directories=_directories(vmx_path, snapshot_directory, current_disks),
        datastore_morefs=sorted(moref(each) for each in found.get("datastore") or []),
        recorded_at=dt.datetime.now(dt.UTC).isoformat(),
    )


def _directories(vmx_path: str, snapshot_directory: str, current_disks: list[VmDisk]) -> list[str]:
    """Every directory in which a snapshot of this VM could leave a file."""
    paths = [vmx_path, *(path for disk in current_disks for path in (disk.path, *disk.parent_paths))]
    found = {parse_datastore_path(path).directory for path in paths if path}
    if snapshot_directory:
        found.add(str(parse_datastore_path(snapshot_directory)))
    if len(found) > _MAX_DIRECTORIES:
        raise InvalidInputError(
            f"a VM has files in {len(found)} directories, {_MAX_DIRECTORIES} are the limit"
        )
    return sorted(found)


def snapshot_disks(vcenter: VCenter, snapshot_moref: str) -> list[VmDisk]:
    """The disks that a snapshot froze, from the snapshot's own configuration: never the VM's.

    Raises:
        NotFoundError: no such snapshot.
    """
    found = vcenter.read(
        lambda session: read_object(session, vim.vm.Snapshot, snapshot_moref, ["config.hardware.device"])
    )
    found.require("config.hardware.device")
    devices = found.get("config.hardware.device")
    if devices is None:
        # Every machine has controllers: no device at all is no answer, and not a VM without disks.
        raise NotFoundError(f"snapshot {snapshot_moref} (vCenter {vcenter.name}) tells no hardware")
    return disks(devices)


def snapshot_config(vcenter: VCenter, snapshot_moref: str) -> VmHardware:
    """The whole configuration that a snapshot froze, enough to write a .vmx for a restore.

    Raises:
        NotFoundError: no such snapshot.
    """
    return _config(vcenter, vim.vm.Snapshot, snapshot_moref)


def vm_config(vcenter: VCenter, vm_moref: str) -> VmHardware:
    """The VM's present configuration: for templates, which have no snapshot.

    Raises:
        NotFoundError: no such VM, or it has no configuration.
    """
    return _config(vcenter, vim.VirtualMachine, vm_moref)


def _config(vcenter: VCenter, kind: Any, object_moref: str) -> VmHardware:
    def read(session: Session) -> VmHardware:
        found = read_object(session, kind, object_moref, ["config"])
        found.require("config")
        config = found.get("config")
        if config is None:
            raise NotFoundError(f"{object_moref} (vCenter {vcenter.name}) has no configuration")
        return hardware(config, _network_names(session, config.hardware.device))

    return vcenter.read(read)


def _network_names(session: Session, devices: Any) -> dict[str, str]:
    networks, portgroups = network_morefs(devices)
    names: dict[str, str] = {}
    for kind, morefs in ((vim.Network, networks), (vim.dvs.DistributedVirtualPortgroup, portgroups)):
        for each in sorted(morefs):
            # A network that was deleted since the snapshot keeps the name in the snapshot's configuration.
            with contextlib.suppress(NotFoundError):
                found = read_object(session, kind, each, ["name"])
                names[each] = unescape(str(found.get("name", "")))
    return names
