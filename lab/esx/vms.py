"""Operations on whole VMs: power, Storage vMotion, destroy, unregister. Registration: lab.esx.registration."""

from __future__ import annotations

import shutil
from contextlib import suppress

from lab.esx.api import Snapshot, Vm
from lab.esx.layout import home_files
from lab.esx.network_cards import check_addresses
from lab.esx.objects import Disk
from lab.esx.paths import HostError, join, name_of, split
from lab.esx.runtime import VmRuntime
from lab.esx.snapshots import refresh_home
from lab.esx.tasks import TaskContext
from lab.esx.world import World


def power_on(context: TaskContext) -> None:
    """PowerOnVM: the guest starts to write."""
    runtime = context.runtime(context.text("vm"))
    if runtime.vm.template:
        raise HostError("NotSupported", f"{runtime.vm.name} is a template")
    check_addresses(runtime.vm)
    _set_power(context, runtime, "poweredOn")
    runtime.start_guest()


def power_off(context: TaskContext) -> None:
    """PowerOffVM: the guest stops, as if its plug was pulled."""
    runtime = context.runtime(context.text("vm"))
    _set_power(context, runtime, "poweredOff")
    runtime.stop_guest()


def _set_power(context: TaskContext, runtime: VmRuntime, wanted: str) -> None:
    vm = runtime.vm
    done = context.arguments.get("done") == wanted
    if vm.power_state == wanted and not done:
        raise HostError(
            "InvalidPowerState",
            f"{vm.name} is {vm.power_state}",
            existingState=vm.power_state,
            requestedState=wanted,
        )
    context.spend(1.0, 90)
    context.no_return()
    context.note("done", wanted)
    with runtime.edit() as changed:
        changed.power_state = "poweredOn" if wanted == "poweredOn" else "poweredOff"
    context.world.event(f"vm-{wanted}", runtime.vm, context.user, f"{vm.name} is {wanted}", context.id)


def relocate(context: TaskContext) -> None:
    """Storage vMotion: every file of the VM moves to another datastore, and the old ones are deleted.

    The guest waits while the files are copied. Handles on the old files go stale, as on a real filer.
    """
    world = context.world
    runtime = context.runtime(context.text("vm"))
    target = world.datastore(context.text("datastore"))
    if runtime.vm.datastore == target.moref and runtime.vm.directory.startswith(f"[{target.name}]"):
        return
    context.spend(0.9, 90)
    context.no_return()
    with runtime.chain_lock, runtime.lock:
        moves = _moves(world, runtime.vm, target.name)
        with runtime.edit() as vm:
            vm.discarded = list(moves.values())
        runtime.close_disks()
        for old, new in moves.items():
            destination = world.local(new)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(world.local(old), destination)
        with runtime.edit() as vm:
            vm.datastore = target.moref
            vm.directory = join(target.name, split(moves[vm.vmx_path])[1].rpartition("/")[0]) + "/"
            vm.vmx_path = moves[vm.vmx_path]
            for snapshot in vm.snapshots:
                snapshot.data_path = moves[snapshot.data_path]
                if snapshot.manifest_path:
                    snapshot.manifest_path = moves[snapshot.manifest_path]
            for disk in _all_disks(vm, vm.snapshots):
                disk.datastore = target.name
                for link in disk.chain:
                    link.path, link.extent_path = moves[link.path], moves[link.extent_path]
            vm.frozen_files = []
            vm.discarded = list(moves)
        delete_files(world, list(moves))
        with runtime.edit() as vm:
            vm.discarded = []
        refresh_home(world, runtime, f"VMX: moved to {target.name}")
    world.event("vm-relocated", runtime.vm, context.user, f"moved to {target.name}", context.id)


def _moves(world: World, vm: Vm, target: str) -> dict[str, str]:
    """Old → new datastore path of every file, in a directory that the target does not have yet."""
    wanted = split(vm.directory)[1].rpartition("/")[2]
    name = wanted
    for number in range(1, 1000):
        if not world.local(join(target, name)).exists():
            break
        name = f"{wanted}_{number}"
    paths = [path for path in all_files(vm) if world.local(path).is_file()]
    return {path: join(target, name, name_of(path)) for path in paths}


def _all_disks(vm: Vm, snapshots: list[Snapshot]) -> list[Disk]:
    return [*vm.hardware.disks, *(disk for snapshot in snapshots for disk in snapshot.hardware.disks)]


def all_files(vm: Vm) -> list[str]:
    """Every file that belongs to the VM (datastore paths), each once."""
    paths = [*home_files(vm), *(snapshot.data_path for snapshot in vm.snapshots)]
    paths += [snapshot.manifest_path for snapshot in vm.snapshots if snapshot.manifest_path]
    for disk in _all_disks(vm, vm.snapshots):
        for link in disk.chain:
            paths += [link.path, link.extent_path]
    return list(dict.fromkeys(paths))


def delete_files(world: World, paths: list[str]) -> None:
    """Delete files, and their directories when nothing is left in them."""
    for path in paths:
        world.local(path).unlink(missing_ok=True)
    for directory in {world.local(path).parent for path in paths}:
        # Something that is not the VM's may lie there; a datastore's own directory stays in any case.
        if directory.parent != world.datastores_dir:
            with suppress(OSError):
                directory.rmdir()


def destroy(context: TaskContext) -> None:
    """Destroy: a powered-off VM leaves the inventory and its files are deleted."""
    world = context.world
    moref = context.text("vm")
    if moref not in world.vms:
        return
    runtime = context.runtime(moref)
    require_off(runtime.vm)
    context.spend(1.0, 90)
    context.no_return()
    vm = runtime.vm
    runtime.stop_guest()
    delete_files(world, all_files(vm))
    world.event("vm-removed", vm, context.user, f"{vm.name} was destroyed", context.id)
    world.drop_vm(moref)


def unregister(world: World, runtime: VmRuntime, user: str) -> None:
    """Take a powered-off VM out of the inventory; its files stay. Errors: HostError InvalidPowerState."""
    require_off(runtime.vm)
    vm = runtime.vm
    runtime.stop_guest()
    world.event("vm-unregistered", vm, user, f"{vm.name} was taken out of the inventory")
    world.drop_vm(vm.moref)


def require_off(vm: Vm) -> None:
    """Errors: HostError InvalidPowerState when the VM is on."""
    if vm.power_state == "poweredOn":
        raise HostError(
            "InvalidPowerState", f"{vm.name} is on", existingState=vm.power_state, requestedState="poweredOff"
        )
