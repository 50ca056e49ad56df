"""Reconfigure a VM: annotation, settings, network cards, and disks that are attached or taken off."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.esx.api import AddDisk, Backing, Disk, ReconfigSpec, Vm
from lab.esx.cowd import CowdError
from lab.esx.descriptor import NO_PARENT, RDM_TYPES, DescriptorError, read_descriptor
from lab.esx.network_cards import edit_cards
from lab.esx.objects import SECTOR_BYTES, Controller
from lab.esx.paths import HostError, sibling, split
from lab.esx.snapshots import refresh_home
from lab.esx.tasks import TaskContext
from lab.esx.world import World, now

T = TypeVar("T")

MAX_CHAIN = 34
_FIRST_DISK_KEY = 2000
_FIRST_CONTROLLER_KEY = 1000
# Unit 7 is the controller's own.
_UNITS = [unit for unit in range(16) if unit != 7]


def reconfigure(context: TaskContext) -> None:
    """ReconfigVM. Disks need a VM that is off or a free slot; nothing is changed when any part is refused."""
    world = context.world
    runtime = context.runtime(context.text("vm"))
    spec = ReconfigSpec.model_validate(context.arguments.get("spec"))
    await_files(world, lambda: [read_chain(world, wanted.path) for wanted in spec.add_disks])
    context.spend(0.9, 80)
    context.no_return()
    with runtime.lock:
        removed: list[Disk] = []
        with runtime.edit() as vm:
            _check_cbt(vm, spec)
            vm.name = spec.name if spec.name is not None else vm.name
            vm.annotation = spec.annotation if spec.annotation is not None else vm.annotation
            vm.hardware.num_cpu = spec.num_cpu or vm.hardware.num_cpu
            vm.hardware.memory_mb = spec.memory_mb or vm.hardware.memory_mb
            if spec.change_tracking_enabled is not None:
                vm.change_tracking_enabled = spec.change_tracking_enabled
            merged = vm.extra_config | spec.extra_config
            vm.extra_config = {key: value for key, value in merged.items() if value}
            edit_cards(world, vm, spec.edit_nics)
            for key in spec.remove_disks:
                removed.append(take_off(vm, key))
                runtime.flush_top(key)
            for wanted in spec.add_disks:
                attach(world, vm, wanted)
            vm.change_version = now().isoformat()
            if spec.delete_files:
                vm.discarded = [
                    path for disk in removed for link in disk.chain for path in (link.path, link.extent_path)
                ]
        runtime.forget_plan()
        refresh_home(world, runtime, "VMX: reconfigured")
        for path in runtime.vm.discarded:
            world.local(path).unlink(missing_ok=True)
        with runtime.edit() as vm:
            vm.discarded = []
    world.event("vm-reconfigured", runtime.vm, context.user, "the VM was reconfigured", context.id)


def await_files(world: World, look: Callable[[], T]) -> T:
    """What `look` finds, once the files that it needs are in the datastore (see `Settings.files_within_s`)."""
    deadline = time.monotonic() + world.site.settings.files_within_s
    while True:
        try:
            return look()
        except HostError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def _check_cbt(vm: Vm, spec: ReconfigSpec) -> None:
    """Changed block tracking needs virtual hardware 7 or later (VMware's documentation of CBT)."""
    if spec.change_tracking_enabled and int(vm.hardware.version.removeprefix("vmx-")) < 7:
        raise HostError("NotSupported", f"{vm.name} has {vm.hardware.version}: no changed block tracking")


def take_off(vm: Vm, key: int) -> Disk:
    """Take a disk off the VM. Errors: HostError InvalidDeviceSpec."""
    for disk in vm.hardware.disks:
        if disk.key == key:
            vm.hardware.disks.remove(disk)
            return disk
    raise HostError("InvalidDeviceSpec", f"{vm.name} has no disk with key {key}", deviceIndex="0")


def attach(world: World, vm: Vm, wanted: AddDisk) -> Disk:
    """Attach an existing disk. Errors: HostError FileNotFound, InvalidDeviceSpec, InvalidDiskFormat,
    FileLocked.
    """
    chain, capacity_bytes, uuid = read_chain(world, wanted.path)
    for other in [vm, *(other for other in world.vms.values() if other.moref != vm.moref)]:
        used = {link.path for disk in other.hardware.disks for link in disk.chain}
        if not used.isdisjoint(link.path for link in chain):
            raise HostError("FileLocked", f"{wanted.path} belongs to {other.name}", file=wanted.path)
    controllers = {controller.key for controller in vm.hardware.controllers}
    if wanted.controller_key not in controllers:
        bus = wanted.controller_key - _FIRST_CONTROLLER_KEY
        if not 0 <= bus <= 3:
            raise HostError("InvalidDeviceSpec", f"no controller {wanted.controller_key}", deviceIndex="0")
        vm.hardware.controllers.append(Controller(key=wanted.controller_key, bus_number=bus))
    taken = {d.unit_number for d in vm.hardware.disks if d.controller_key == wanted.controller_key}
    free = [unit for unit in _UNITS if unit not in taken]
    unit = wanted.unit_number if wanted.unit_number is not None else (free[0] if free else -1)
    if unit not in free:
        raise HostError("InvalidDeviceSpec", f"slot {wanted.controller_key}:{unit} is taken", deviceIndex="0")
    keys = {disk.key for disk in vm.hardware.disks}
    key = next(key for key in range(_FIRST_DISK_KEY, _FIRST_DISK_KEY + 256) if key not in keys)
    rdm = {create: mode for mode, create in RDM_TYPES.items()}
    descriptor = read_descriptor(world.local(chain[-1].path))
    disk = Disk(
        key=key,
        label=f"Hard disk {key - _FIRST_DISK_KEY + 1}",
        controller_key=wanted.controller_key,
        unit_number=unit,
        capacity_bytes=capacity_bytes,
        datastore=split(wanted.path)[0],
        mode=wanted.mode,
        rdm="physicalMode" if rdm.get(descriptor.create_type) == "physicalMode" else None,
        uuid=uuid,
        chain=chain,
        content="unknown",
    )
    vm.hardware.disks.append(disk)
    return disk


def read_chain(world: World, path: str) -> tuple[list[Backing], int, str]:
    """A chain from its top's descriptor: links (top first), capacity in bytes, UUID. Errors: HostError."""
    links: list[Backing] = []
    sectors = -1
    uuid = ""
    while len(links) < MAX_CHAIN:
        local = world.local(path)
        if not local.is_file():
            raise HostError("FileNotFound", f"{path} does not exist", file=path)
        try:
            found = read_descriptor(local)
        except (DescriptorError, CowdError, OSError) as error:
            raise HostError("InvalidDiskFormat", str(error), file=path) from error
        extent = sibling(path, found.extent_name)
        kind = {"vmfs": "flat", "vmfsSparse": "cowd"}.get(found.create_type, "rdm")
        _check_extent(world, extent, kind, found.sectors)
        if links and links[-1].parent_content_id != found.content_id:
            raise HostError("InvalidDiskFormat", f"the parent of {links[-1].path} was changed", file=path)
        if sectors not in {-1, found.sectors}:
            raise HostError("InvalidDiskFormat", f"{path} has another size than its child", file=path)
        sectors, uuid = found.sectors, found.uuid
        links.append(
            Backing.model_validate(
                {
                    "path": path,
                    "extent_path": extent,
                    "kind": kind,
                    "content_id": found.content_id,
                    "parent_content_id": found.parent_content_id,
                }
            )
        )
        if found.parent_content_id == NO_PARENT:
            return links, sectors * SECTOR_BYTES, uuid or "6000c290" + "0" * 24
        path = sibling(path, found.parent_name)
    raise HostError("InvalidDiskFormat", f"{path}: more than {MAX_CHAIN} links", file=path)


def _check_extent(world: World, extent: str, kind: str, sectors: int) -> None:
    local = world.local(extent)
    if not local.is_file():
        raise HostError("FileNotFound", f"{extent} does not exist", file=extent)
    if kind == "flat" and local.stat().st_size != sectors * SECTOR_BYTES:
        raise HostError(
            "InvalidDiskFormat",
            f"{extent} has {local.stat().st_size} bytes, its descriptor says {sectors * SECTOR_BYTES}",
            file=extent,
        )
