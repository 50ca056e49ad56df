"""RegisterVM: a VM made from the `.vmx` in a datastore and the descriptors that it names."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from lab.esx.api import AddDisk, Controller, DiskMode, Hardware, Snapshot, Vm
from lab.esx.chains import redundant_links
from lab.esx.devices import attach, await_files, read_chain
from lab.esx.home import append_log, parse_lines, uuid_from_vmx
from lab.esx.network_cards import cards_of, settle_addresses
from lab.esx.paths import HostError, join, name_of, sibling, split
from lab.esx.tasks import TaskContext
from lab.esx.world import World, now

_SLOT = re.compile(r"^scsi([0-3]):(\d{1,2})\.fileName$")
_VOLUME = re.compile(r"^/vmfs/volumes/([^/]+)/(.+)$")
_MODES: dict[str, DiskMode] = {
    "independent-persistent": "independent_persistent",
    "independent-nonpersistent": "independent_nonpersistent",
}


def register(context: TaskContext, adopt: Callable[[Vm], None]) -> str:
    """Register. `adopt` takes the new VM into the world. The result is its moref."""
    world = context.world
    path = context.text("path")
    noted = context.arguments.get("moref")
    if isinstance(noted, str) and noted in world.vms:
        return noted
    values = await_files(world, lambda: _read_all(world, path))
    context.spend(0.9, 90)
    context.no_return()
    moref = world.next_moref("vm")
    context.note("moref", moref)
    with world.changes:
        vm = _build(context, moref, path, values)
        conflicts = settle_addresses(world, vm)
        adopt(vm)
    append_log(world, vm, "vmx| registered")
    world.event("vm-registered", vm, context.user, f"registered from {path}", context.id)
    for mac, other in conflicts:
        world.event(
            "vm-mac-conflict", vm, context.user, f"{mac} is {other}'s too", context.id, other=other, mac=mac
        )
    return moref


def _read_all(world: World, path: str) -> dict[str, str]:
    """The .vmx's values, once the disks that it names can be read too."""
    values = _read_vmx(world, path)
    for _, _, disk_path, _ in _disk_slots(path, values):
        read_chain(world, disk_path)
    return values


def _read_vmx(world: World, path: str) -> dict[str, str]:
    local = world.local(path)
    if not path.endswith((".vmx", ".vmtx")) or split(path)[1].count("/") < 1:
        raise HostError("InvalidDatastorePath", f"{path!r} names no .vmx in a directory", datastorePath=path)
    if not local.is_file():
        raise HostError("FileNotFound", f"{path} does not exist", file=path)
    try:
        values = parse_lines(local)
    except ValueError as error:
        raise HostError("InvalidVmConfig", f"{path}: {error}", property="") from error
    if "displayName" not in values or "virtualHW.version" not in values:
        raise HostError("InvalidVmConfig", f"{path} lacks displayName or virtualHW.version", property="")
    return values


def _build(context: TaskContext, moref: str, path: str, values: dict[str, str]) -> Vm:
    world = context.world
    taken = next((vm for vm in world.vms.values() if vm.vmx_path == path), None)
    if taken is not None:
        raise HostError("AlreadyExists", f"{path} is registered as {taken.name}", name=taken.name)
    name = str(context.arguments.get("name") or values["displayName"])
    folder = str(context.arguments.get("folder") or world.site.datacenter.vm_folder)
    if not any(found.moref == folder and found.kind == "vm" for found in world.site.folders):
        raise HostError("ManagedObjectNotFound", f"no VM folder {folder!r}", obj=folder)
    twin = next((vm for vm in world.vms.values() if (vm.parent, vm.name) == (folder, name)), None)
    if twin is not None:
        raise HostError(
            "DuplicateName", f"the folder already has a VM {name!r}", name=name, object=twin.moref
        )
    datastore, inner = split(path)
    host = str(context.arguments.get("host") or world.site.hosts[0].moref)
    vm = Vm(
        moref=moref,
        name=name,
        parent=folder,
        host=host,
        resource_pool=str(context.arguments.get("resource_pool") or world.site.clusters[0].resource_pool),
        datastore=world.datastore(datastore).moref,
        directory=join(datastore, inner.rpartition("/")[0]) + "/",
        vmx_path=join(datastore, inner),
        bios_uuid=uuid_from_vmx(values.get("uuid.bios", "")) or str(uuid.uuid4()),
        instance_uuid=_instance_uuid(context, values),
        power_state="poweredOff",
        template=bool(context.arguments.get("as_template")),
        annotation=values.get("annotation", ""),
        change_tracking_enabled=values.get("ctkEnabled", "").upper() == "TRUE",
        change_version=now().isoformat(),
        hardware=_hardware(world, values),
        create_time=now(),
    )
    _attach_disks(world, vm, values)
    _read_snapshots(world, vm)
    vm.consolidation_needed = bool(redundant_links(vm))
    return vm


def _instance_uuid(context: TaskContext, values: dict[str, str]) -> str:
    """The `.vmx`'s vc.uuid, unless another VM has it: then vCenter gives a new one, and so does the lab."""
    found = uuid_from_vmx(values.get("vc.uuid", ""))
    if found is None or any(vm.instance_uuid == found for vm in context.world.vms.values()):
        return str(uuid.uuid4())
    return found


def _hardware(world: World, values: dict[str, str]) -> Hardware:
    try:
        hardware = Hardware(
            version=f"vmx-{int(values['virtualHW.version']):02}",
            num_cpu=int(values.get("numvcpus", "1")),
            memory_mb=int(values.get("memSize", "256")),
            guest_id=values.get("guestOS", "otherLinux64Guest"),
            firmware="efi" if values.get("firmware") == "efi" else "bios",
        )
    except ValueError as error:
        raise HostError("InvalidVmConfig", f"a number in the .vmx is none: {error}", property="") from error
    for bus in range(4):
        if values.get(f"scsi{bus}.present", "").upper() == "TRUE":
            kind = "pvscsi" if values.get(f"scsi{bus}.virtualDev") == "pvscsi" else "lsilogic"
            hardware.controllers.append(
                Controller.model_validate({"key": 1000 + bus, "bus_number": bus, "kind": kind})
            )
    hardware.nics = cards_of(world, values)
    return hardware


def _disk_slots(vmx_path: str, values: dict[str, str]) -> list[tuple[int, int, str, str]]:
    """Bus, unit, datastore path and mode of each disk that the .vmx names."""
    slots = []
    for key, name in values.items():
        match = _SLOT.match(key)
        slot = key.removesuffix(".fileName")
        if match and values.get(f"{slot}.deviceType", "scsi-hardDisk") == "scsi-hardDisk":
            volume = _VOLUME.match(name)
            path = join(volume[1], volume[2]) if volume else sibling(vmx_path, name)
            slots.append((int(match[1]), int(match[2]), path, values.get(f"{slot}.mode", "persistent")))
    return sorted(slots)


def _attach_disks(world: World, vm: Vm, values: dict[str, str]) -> None:
    for bus, unit, path, mode in _disk_slots(vm.vmx_path, values):
        attach(
            world,
            vm,
            AddDisk(
                path=path,
                controller_key=1000 + bus,
                unit_number=unit,
                mode=_MODES.get(mode, "persistent"),
            ),
        )


def _read_snapshots(world: World, vm: Vm) -> None:
    """The tree of the `.vmsd`, as a VM brings it along that was registered before: its snapshots get new morefs."""
    path = world.local(vm.vmx_path.removesuffix(".vmx") + ".vmsd")
    if not path.is_file():
        return
    try:
        values = parse_lines(path)
        count = int(values.get("snapshot.numSnapshots", "0"))
        found = [_snapshot(world, vm, values, f"snapshot{index}") for index in range(count)]
    except (KeyError, ValueError) as error:
        raise HostError("InvalidVmConfig", f"{path.name}: {error}", property="") from error
    morefs = {str(snapshot.number): snapshot.moref for snapshot in found}
    vm.snapshots = [
        each.model_copy(update={"parent": morefs.get(values.get(f"snapshot{index}.parent", ""))})
        for index, each in enumerate(found)
    ]
    vm.current_snapshot = morefs.get(values.get("snapshot.current", ""))
    vm.next_snapshot_number = int(values.get("snapshot.lastUID", "0")) + 1


def _snapshot(world: World, vm: Vm, values: dict[str, str], name: str) -> Snapshot:
    """One snapshot of the tree; its disks are those links of the VM's chains that the `.vmsd` names."""
    named = {value for key, value in values.items() if re.fullmatch(rf"{name}\.disk\d+\.fileName", key)}
    hardware = vm.hardware.model_copy(deep=True)
    for disk in hardware.disks:
        disk.chain = disk.chain[
            next((i for i, link in enumerate(disk.chain) if name_of(link.path) in named), 0) :
        ]
    stamp_us = (int(values[f"{name}.createTimeHigh"]) << 32) + int(values[f"{name}.createTimeLow"])
    return Snapshot(
        moref=world.next_moref("snapshot"),
        number=int(values[f"{name}.uid"]),
        name=values[f"{name}.displayName"],
        description=values.get(f"{name}.description", ""),
        create_time=datetime.fromtimestamp(stamp_us / 1_000_000, UTC),
        parent=None,
        power_state="poweredOff",
        hardware=hardware,
        data_path=sibling(vm.vmx_path, values[f"{name}.filename"]),
    )
