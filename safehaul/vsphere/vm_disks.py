"""An existing VM's disks: which VM is meant, where a new disk fits, and the exchange of its disks for new ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

from pyVmomi import vim

from safehaul.errors import (
    AlreadyExistsError,
    ConnectionLostError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    SafehaulError,
    SessionLostError,
    UnsupportedError,
)
from safehaul.messages.hardware import VmHardware
from safehaul.messages.inventory import VmRecord
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.inventory import discover
from safehaul.vsphere.names import parse_datastore_path
from safehaul.vsphere.properties import read_object, read_objects
from safehaul.vsphere.tasks import Heartbeat, no_heartbeat, wait

_DEVICES: Final = "config.hardware.device"
_CHANGE_VERSION: Final = "config.changeVersion"
_RUNNING: Final = {"queued", "running"}
# Places for disks on each kind of controller (vSphere configuration maximums); unit 7 is the SCSI controller's own.
_UNITS: Final = {
    "pvscsi": [unit for unit in range(16) if unit != 7],
    "lsilogic": [unit for unit in range(16) if unit != 7],
    "lsisas1068": [unit for unit in range(16) if unit != 7],
    "buslogic": [unit for unit in range(16) if unit != 7],
    "ahci": list(range(30)),
    "nvme": list(range(15)),
    "ide": [0, 1],
}
_NO_HOT_ADD: Final = {"ide"}


class DiskChange(NamedTuple):
    """What becomes of one place of a VM. An empty path: nothing was there before, or nothing is there afterwards."""

    controller_key: int
    unit_number: int
    old_path: str
    new_path: str


def find_vm(
    vcenter: VCenter, reference: str, *, field: str, heartbeat: Callable[[], None] | None = None
) -> VmRecord:
    """The VM of that VC.GUID, or of that name when no other VM has it.

    Args:
        vcenter: the session.
        reference: as a person typed it.
        field: what the person's input calls it, for messages.
        heartbeat: called once a page of the inventory.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: several VMs have that name.
        UnsupportedError: vCenter cannot read its configuration, or another VM has its VC.GUID.
    """
    inventory = discover(vcenter, heartbeat=heartbeat)
    found = [each for each in inventory.records if each.vc_guid == reference]
    found = found or [each for each in inventory.records if each.name == reference]
    unreadable = [each for each in inventory.unidentified if reference in {each.vc_guid, each.name}]
    if len(found) == 1 and not (unreadable and found[0].name == reference):
        return found[0]
    if found:
        choices = ", ".join([*(each.vc_guid for each in found), *(each.moref for each in unreadable)])
        raise InvalidInputError(
            f"{field}: several VMs are called {reference!r} ({choices}): name one by its VC.GUID"
        )
    if unreadable:
        raise UnsupportedError(f"VM {unreadable[0].name!r} ({unreadable[0].moref}): {unreadable[0].reason}")
    raise NotFoundError(
        f"{field}: vCenter {vcenter.name} has no VM {reference!r}: a VM that is gone is restored as a new one, "
        "one that is inaccessible must be repaired first"
    )


def free_place(hardware: VmHardware, taken: Collection[tuple[int, int]], *, running: bool) -> tuple[int, int]:
    """Controller key and unit number for one more disk: the first free place, by bus, SCSI and NVMe before the rest.

    Args:
        hardware: the VM's present configuration.
        taken: from `present_places`: CD drives hold places too.
        running: a VM that is on cannot be given a disk on IDE.

    Raises:
        PolicyError: there is no free place.
    """
    order = {kind: rank for rank, kind in enumerate(_UNITS)}
    usable = [
        each
        for each in hardware.controllers
        if each.type in _UNITS and not (running and each.type in _NO_HOT_ADD) and each.sharing == "noSharing"
    ]
    for controller in sorted(usable, key=lambda each: (order[each.type], each.bus)):
        for unit in _UNITS[controller.type]:
            if (controller.key, unit) not in taken:
                return controller.key, unit
    raise PolicyError(
        f"VM {hardware.name!r} has no free place for a disk on its {len(hardware.controllers)} controllers: "
        "add a SCSI controller to it, or take a disk off"
    )


def present_places(vcenter: VCenter, vm_moref: str) -> dict[tuple[int, int], str]:
    """Each place of a VM that a device holds: (controller key, unit) → the file behind it, or an empty string.

    Raises:
        NotFoundError: no such VM.
    """
    found = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm_moref, [_DEVICES]))
    found.require(_DEVICES)
    return {
        (each.controllerKey, each.unitNumber): str(getattr(each.backing, "fileName", None) or "")
        for each in found.get(_DEVICES) or []
        if each.controllerKey is not None and each.unitNumber is not None
    }


def change_disks(
    vcenter: VCenter, vm_moref: str, changes: Sequence[DiskChange], heartbeat: Heartbeat = no_heartbeat
) -> None:
    """Exchanges a VM's disks in one reconfiguration, which happens wholly or not at all; no file is deleted.

    Exchanged already, it is no error. When the answer is lost, the VM is looked at once its tasks have ended.

    Raises:
        AlreadyExistsError: another device is at one of the places.
        BusyError: the VM was changed by somebody at the same moment, or a file is locked: try again.
        PolicyError: a disk is no longer an ordinary persistent one.
        NotFoundError: no such VM, or a file is not there.
    """
    spec = vcenter.read(lambda session: _spec(session, vm_moref, changes))
    if spec is None:
        return
    try:
        task = vcenter.mutate(
            lambda session: session.managed(vim.VirtualMachine, vm_moref).ReconfigVM_Task(spec)
        )
        wait(vcenter, moref(task), heartbeat)
    except (ConnectionLostError, SessionLostError):
        wait_out_tasks(vcenter, vm_moref, heartbeat)
        if vcenter.read(lambda session: _spec(session, vm_moref, changes)) is not None:
            raise


def _spec(session: Session, vm_moref: str, changes: Sequence[DiskChange]) -> Any:
    """The `ConfigSpec` of what is left to do; None when nothing is."""
    found = read_object(session, vim.VirtualMachine, vm_moref, [_DEVICES, _CHANGE_VERSION])
    found.require(_DEVICES)
    by_place = {(each.controllerKey, each.unitNumber): each for each in found.get(_DEVICES) or []}
    removals, additions = [], []
    for number, change in enumerate(changes):
        device = by_place.get((change.controller_key, change.unit_number))
        path = str(getattr(getattr(device, "backing", None), "fileName", None) or "")
        if path == change.new_path and (device is not None or not change.new_path):
            continue
        if (device is None) != (not change.old_path) or path != change.old_path:
            raise AlreadyExistsError(
                f"{vm_moref} has {path or 'another device or none'} at {change.controller_key}:"
                f"{change.unit_number}, not {change.old_path or 'a free place'}: it was changed meanwhile"
            )
        if device is not None:
            _must_be_ordinary(device, vm_moref)
            removals.append(vim.vm.device.VirtualDeviceSpec(operation="remove", device=device))
        if change.new_path:
            additions.append(_addition(-1 - number, change))
    if not removals and not additions:
        return None
    return vim.vm.ConfigSpec(
        changeVersion=found.get(_CHANGE_VERSION) or None, deviceChange=[*removals, *additions]
    )


def _must_be_ordinary(device: Any, vm_moref: str) -> None:
    backing = device.backing
    ordinary = isinstance(device, vim.vm.device.VirtualDisk) and isinstance(
        backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo
    )
    if not ordinary or str(backing.diskMode or "persistent") != "persistent":
        raise PolicyError(f"device {device.key} of {vm_moref} is no ordinary persistent disk any more")


def _addition(key: int, change: DiskChange) -> Any:
    disk = vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=change.controller_key,
        unitNumber=change.unit_number,
        capacityInKB=0,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=str(parse_datastore_path(change.new_path)), diskMode="persistent"
        ),
    )
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)


def wait_out_tasks(vcenter: VCenter, vm_moref: str, heartbeat: Heartbeat = no_heartbeat) -> None:
    """Waits until no task of the VM is queued or running; how they end does not matter.

    Raises:
        BusyError: one still runs after an hour.
        ConnectionLostError: vCenter was away for too long.
    """
    for task in vcenter.read(lambda session: _running_tasks(session, vm_moref)):
        with contextlib.suppress(NotFoundError):
            try:
                wait(vcenter, task, heartbeat)
            except (ConnectionLostError, SessionLostError):
                raise
            except SafehaulError:
                # It failed, or still runs: what the VM is then is looked at by whoever called.
                continue


def _running_tasks(session: Session, vm_moref: str) -> list[str]:
    vm = read_object(session, vim.VirtualMachine, vm_moref, ["recentTask"])
    running = []
    for task in vm.get("recentTask") or []:
        # A task that vCenter has forgotten meanwhile is over.
        with contextlib.suppress(NotFoundError):
            found = read_object(session, vim.Task, moref(task), ["info.state"])
            if found.get("info.state") in _RUNNING:
                running.append(moref(task))
    return running


def power_on(vcenter: VCenter, vm_moref: str, heartbeat: Heartbeat = no_heartbeat) -> None:
    """Powers a VM on. A VM that is on already is no error.

    Raises:
        PermissionRefusedError: without VirtualMachine.Interact.PowerOn.
        NotFoundError: no such VM.
    """

    def state(session: Session) -> Any:
        path = "runtime.powerState"
        return read_object(session, vim.VirtualMachine, vm_moref, [path]).get(path)

    if vcenter.read(state) == "poweredOn":
        return
    try:
        task = vcenter.mutate(lambda session: session.managed(vim.VirtualMachine, vm_moref).PowerOnVM_Task())
        wait(vcenter, moref(task), heartbeat)
    except (ConnectionLostError, SessionLostError):
        wait_out_tasks(vcenter, vm_moref, heartbeat)
        if vcenter.read(state) != "poweredOn":
            raise


def named_by_vms(vcenter: VCenter, datastore_moref: str, paths: Collection[str]) -> str:
    """Which VM names one of these files among its own, snapshots' files included; empty when none does.

    Asked of the VMs of the files' datastore, which vCenter lists for it: the same path means another file elsewhere.

    Raises:
        NotFoundError: no such datastore.
    """

    def look(session: Session) -> str:
        found = read_object(session, vim.Datastore, datastore_moref, ["vm"])
        found.require("vm")
        for vm in read_objects(
            session, found.get("vm") or [], {vim.VirtualMachine: ["name", "layoutEx", _DEVICES]}
        ):
            layout = vm.get("layoutEx")
            names = {str(each.name) for each in (layout.file if layout else None) or []}
            names |= {str(getattr(each.backing, "fileName", "")) for each in vm.get(_DEVICES) or []}
            if not names.isdisjoint(paths):
                return f"{vm.get('name', '')} ({vm.moref})"
        return ""

    return vcenter.read(look)
