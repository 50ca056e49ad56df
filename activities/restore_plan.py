"""What a restore into an existing VM plans: which disks are replaced by which new files, and why not. Pure."""

from __future__ import annotations

import re
from collections import Counter

from activities.restore import hardware_of
from activities.restore_io import DESCRIPTOR_SUFFIX
from safehaul.errors import PolicyError, UnsupportedError
from safehaul.media.manifest import Manifest, ManifestDisk
from safehaul.messages.hardware import VmHardware
from safehaul.messages.inventory import DiskBacking, VmDisk, VmRecord, VmState
from safehaul.messages.restore import PlannedDisk, RestorePlan, RestoreRef
from safehaul.nas.paths import parse_datastore_path
from safehaul.vsphere.vm_disks import DiskChange

# What an earlier restore appended to a disk's name.
_RESTORED = re.compile(r"-restored-\d+-[0-9a-f]{12}$")
_STEM_BYTES = 150
_RECONFIGURE = "ReconfigVM_Task"


def must_be_a_vm(vm: VmRecord) -> None:
    """Raise UnsupportedError for a template, PolicyError where vCenter permits no change now."""
    if vm.template:
        raise UnsupportedError(f"{vm.name!r} is a template: convert it to a VM first")
    if _RECONFIGURE in vm.disabled_methods:
        raise PolicyError(
            f"vCenter does not let VM {vm.name!r} be reconfigured now: another product or task works on it"
        )


def must_be_replaceable(vm: VmRecord, state: VmState) -> None:
    """Raise PolicyError unless the VM is off, without snapshots and without debt of one; or as `must_be_a_vm`."""
    must_be_a_vm(vm)
    if state.power_state != "poweredOff":
        raise PolicyError(
            f"VM {vm.name!r} is {state.power_state}: shut it down (its disks are going to be replaced), then start the "
            "restore again, or restore it as a new VM"
        )
    if state.snapshots:
        raise PolicyError(
            f"VM {vm.name!r} has {len(state.snapshots)} snapshots, which stand on the disks that would be replaced and "
            "would lose their meaning: remove them, or restore as a new VM"
        )
    if state.consolidation_needed or state.running_snapshot_tasks:
        raise PolicyError(
            f"VM {vm.name!r} is in the middle of a snapshot's removal: consolidate its disks first"
        )


def must_be_still(state: VmState, plan: RestorePlan) -> None:
    """Raise PolicyError for a VM that is on or has a snapshot: between plan and switch hours may have passed."""
    if state.power_state != "poweredOff" or state.snapshots:
        what = f"is {state.power_state}" if state.power_state != "poweredOff" else "has got a snapshot"
        raise PolicyError(f"VM {plan.vm_name!r} {what} since the restore began: its disks were not replaced")


def replacements(
    ref: RestoreRef,
    manifest: Manifest,
    hardware: VmHardware,
    state: VmState,
    taken: set[tuple[int, int]],
) -> tuple[list[PlannedDisk], list[str]]:
    """Each stored disk with the VM's disk that it replaces or the place that it takes; and warnings.

    Args:
        ref: whose new files they are.
        manifest: the backup.
        hardware: the VM's present configuration.
        state: the VM now.
        taken: places that a device of any kind holds.

    Raises:
        PolicyError: a disk of the VM cannot be replaced, or a disk of the backup has no place in it.
        UnsupportedError: the backup does not hold the VM's configuration.
    """
    present = {disk.key: disk for disk in state.disks}
    uuids = Counter(disk.uuid for disk in state.disks)
    recorded = {disk.key: disk for disk in hardware_of(manifest).disks}
    controllers = {controller.key for controller in hardware.controllers}
    home = parse_datastore_path(state.vmx_path)
    planned: list[PlannedDisk] = []
    for disk in manifest.disks:
        now = _same_disk(disk, present, uuids)
        if now is not None:
            del present[now.key]
            _must_be_plain(now)
            spot = (now.controller_key, now.unit_number)
            old = parse_datastore_path(now.path)
        else:
            before = recorded.get(disk.key)
            spot = (before.controller_key, before.unit_number) if before is not None else (-1, -1)
            if spot[0] not in controllers or spot in taken:
                raise PolicyError(
                    f"VM {hardware.name!r} has neither the disk {disk.label} of the backup nor its place "
                    f"{spot[0]}:{spot[1]} free: restore that disk with `safehaul restore disk --to-vm`"
                )
            old = home
        planned.append(
            PlannedDisk(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                path=str(old.sibling(new_name(ref, old.name, disk.key))),
                controller_key=spot[0],
                unit_number=spot[1],
                replaces=now.path if now is not None else "",
                uuid=disk.uuid,
            )
        )
    return planned, [
        f"{disk.label} ({disk.path}) is not in the backup: it stays as it is" for disk in present.values()
    ]


def _same_disk(disk: ManifestDisk, present: dict[int, VmDisk], uuids: Counter[str]) -> VmDisk | None:
    """By its UUID where that is one disk's alone: a disk may have moved to another place. Else by its key."""
    if disk.uuid and uuids[disk.uuid] == 1:
        found = next((each for each in present.values() if each.uuid == disk.uuid), None)
        if found is not None:
            return found
    return present.get(disk.key)


def _must_be_plain(disk: VmDisk) -> None:
    reason = ""
    if disk.backing is not DiskBacking.FLAT:
        reason = f"its backing is {disk.backing}"
    elif disk.mode != "persistent":
        reason = f"its mode is {disk.mode}"
    elif disk.sharing not in ("", "sharingNone"):
        reason = "it is shared with other VMs"
    elif disk.key_id:
        reason = "it is encrypted by vSphere"
    if reason:
        raise PolicyError(
            f"{disk.label} ({disk.path}) cannot be replaced: {reason}: restore as a new VM, or that disk with "
            "`safehaul restore disk --to-vm`"
        )


def changes(plan: RestorePlan) -> list[DiskChange]:
    """The plan as changes of the VM's places."""
    return [DiskChange(*place(disk), disk.replaces, disk.path) for disk in plan.disks]


def place(disk: PlannedDisk) -> tuple[int, int]:
    """Controller key and unit number."""
    return disk.controller_key, disk.unit_number


def _stem(name: str) -> str:
    """A name to build upon: without what earlier restores appended, quotable in a descriptor, not too long."""
    plain = _RESTORED.sub("", name.removesuffix(DESCRIPTOR_SUFFIX).removesuffix(".vmx"))
    plain = "".join("_" if char in '"\\/%' or not char.isprintable() else char for char in plain)
    return plain.encode()[:_STEM_BYTES].decode(errors="ignore").strip(" .") or "disk"


def new_name(ref: RestoreRef, like: str, key: int) -> str:
    """A file name like an old one's, of this restore alone: the owner's id ends in random digits."""
    return f"{_stem(like)}-restored-{key}-{ref.owner.replace('-', '')[-12:]}{DESCRIPTOR_SUFFIX}"
