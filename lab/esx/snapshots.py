"""The snapshot operations: create, remove (two phases), consolidate; and what a snapshot froze."""

from __future__ import annotations

import zipfile
from pathlib import Path

from lab.esx.api import FrozenDigest, FrozenRecord, Snapshot, Vm
from lab.esx.chain import ChainReader
from lab.esx.chains import discard, freeze, merge_link, redundant_links
from lab.esx.home import append_log, write_home
from lab.esx.objects import Hardware
from lab.esx.paths import HostError, name_of, sibling
from lab.esx.runtime import VmRuntime
from lab.esx.tasks import TaskContext
from lab.esx.world import World, now

# VMware's limit of snapshots in a chain.
MAX_DEPTH = 32
# A redo log's header and first tables, for each disk.
_MIN_FREE_BYTES = 64 * 1024


def create_snapshot(context: TaskContext) -> str:
    """Freeze all disks of a VM at one moment. The result is the snapshot's moref."""
    world = context.world
    runtime = context.runtime(context.text("vm"))
    check_can_snapshot(world, runtime.vm)
    context.spend(0.8, 80)
    moref = context.arguments.get("snapshot")
    if not isinstance(moref, str):
        moref = world.next_moref("snapshot")
        context.note("snapshot", moref)
    if all(snapshot.moref != moref for snapshot in runtime.vm.snapshots):
        quiesced = bool(context.arguments.get("quiesce")) and runtime.vm.power_state == "poweredOn"
        if quiesced:
            _quiesce(context, runtime.vm)
        context.no_return()
        snapshot = take_snapshot(
            world, runtime, moref, context.text("name"), context.text("description"), quiesced=quiesced
        )
        message = f"snapshot {snapshot.name!r} ({moref}) at write {snapshot.frozen_sequence}"
        world.event("snapshot-created", runtime.vm, context.user, message, context.id)
    context.phase("middle")
    context.spend(0.2, 95)
    return moref


def take_snapshot(
    world: World, runtime: VmRuntime, moref: str, name: str, description: str, *, quiesced: bool = False
) -> Snapshot:
    """Freeze, and write what goes with it: `.vmsn`, `.vmsd`, `.vmx`, the record of what is frozen."""
    vm = runtime.vm
    stem = name_of(vm.vmx_path).removesuffix(".vmx")
    snapshot = Snapshot(
        moref=moref,
        number=vm.next_snapshot_number,
        name=name,
        description=description,
        create_time=now(),
        parent=vm.current_snapshot,
        power_state=vm.power_state,
        quiesced=quiesced,
        hardware=Hardware(),
        annotation=vm.annotation,
        change_tracking_enabled=vm.change_tracking_enabled,
        change_version=vm.change_version,
        extra_config=vm.extra_config,
        data_path=sibling(vm.vmx_path, f"{stem}-Snapshot{vm.next_snapshot_number}.vmsn"),
    )
    if quiesced and vm.hardware.guest_id.startswith("windows"):
        snapshot.manifest_path = sibling(vm.vmx_path, f"{stem}-vss_manifests{snapshot.number}.zip")
        _write_manifest(world, snapshot.manifest_path)
    snapshot = freeze(world, runtime, snapshot)
    world.put_record(
        FrozenRecord(
            snapshot=moref,
            vm=vm.moref,
            vm_name=vm.name,
            instance_uuid=vm.instance_uuid,
            name=name,
            create_time=snapshot.create_time,
            frozen_sequence=snapshot.frozen_sequence,
        )
    )
    refresh_home(world, runtime, f"SNAPSHOT: created {name!r}")
    return snapshot


def _write_manifest(world: World, path: str) -> None:
    with zipfile.ZipFile(world.local(path), "w") as archive:
        archive.writestr("backup.xml", "<BackupComponents/>")
        archive.writestr("writer0.xml", "<WriterMetadata/>")


def refresh_home(world: World, runtime: VmRuntime, log: str) -> None:
    """Write the VM's small files as it is now; its layout follows."""
    with runtime.lock:
        write_home(world, runtime.vm)
        append_log(world, runtime.vm, log)
        with runtime.edit():
            pass  # the layout is made anew with every change


def check_can_snapshot(world: World, vm: Vm) -> None:
    """Refuse what ESXi refuses. Errors: HostError."""
    if vm.template:
        raise HostError("NotSupported", f"{vm.name} is a template")
    if vm.connection_state != "connected":
        raise HostError("InvalidState", f"{vm.name} is {vm.connection_state}")
    if len(vm.snapshots) >= MAX_DEPTH:
        raise HostError("TooManySnapshotLevels", f"{vm.name} has {MAX_DEPTH} snapshots already")
    sharing = [c.key for c in vm.hardware.controllers if c.bus_sharing != "noSharing"]
    multi_writer = [disk.label for disk in vm.hardware.disks if disk.sharing != "sharingNone"]
    if sharing or multi_writer:
        raise HostError("SnapshotFault", f"{vm.name} shares controllers {sharing} or disks {multi_writer}")
    for disk in vm.hardware.disks:
        if disk.takes_snapshots and world.free_bytes(disk.datastore) < _MIN_FREE_BYTES:
            raise HostError("NoDiskSpace", f"{disk.datastore} is full", datastore=disk.datastore)


def _quiesce(context: TaskContext, vm: Vm) -> None:
    planned = context.take_quiesce_fault(vm)
    if planned is not None:
        generic = planned.fault == "GenericVmConfigFault"
        fault = "ApplicationQuiesceFault" if generic else planned.fault
        raise HostError(fault, f"the guest of {vm.name} could not be quiesced")


def remove_snapshot(context: TaskContext) -> None:
    """Phase one: the snapshot leaves the tree. Phase two: its disks consolidate, then its files go."""
    world = context.world
    runtime = context.runtime(context.text("vm"))
    moref = context.text("snapshot")
    context.spend(0.3, 30)
    victims = _victims(runtime.vm, moref, with_children=bool(context.arguments.get("remove_children")))
    if victims:
        if world.site.settings.record_frozen:
            for victim in victims:
                record_frozen(world, runtime, victim.moref)
        context.no_return()
        _leave_tree(context, runtime, victims)
    context.phase("middle")
    if context.arguments.get("consolidate", True):
        consolidate_disks(context, runtime)


def _victims(vm: Vm, moref: str, *, with_children: bool) -> list[Snapshot]:
    chosen = {moref}
    for snapshot in vm.snapshots:  # a parent always comes before its child
        if with_children and snapshot.parent in chosen:
            chosen.add(snapshot.moref)
    return [snapshot.model_copy() for snapshot in vm.snapshots if snapshot.moref in chosen]


def _leave_tree(context: TaskContext, runtime: VmRuntime, victims: list[Snapshot]) -> None:
    world = context.world
    with runtime.edit() as vm:
        for victim in victims:
            vm.snapshots = [found for found in vm.snapshots if found.moref != victim.moref]
            parent = next((s.parent for s in victims if s.moref == victim.moref), None)
            for snapshot in [*vm.snapshots, *victims]:
                if snapshot.parent == victim.moref:
                    snapshot.parent = parent
            if vm.current_snapshot == victim.moref:
                vm.current_snapshot = parent
        vm.discarded = [victim.data_path for victim in victims]
        vm.discarded += [victim.manifest_path for victim in victims if victim.manifest_path]
        # From here until the disks are merged a killed process leaves a VM that needs consolidation.
        vm.consolidation_needed = bool(redundant_links(vm))
    discard(world, runtime)
    refresh_home(world, runtime, f"SNAPSHOT: removed {[victim.name for victim in victims]}")
    for victim in victims:
        record = world.frozen.get(victim.moref)
        if record is not None:
            world.put_record(record.model_copy(update={"removed_time": now()}))
        message = f"snapshot {victim.name!r} ({victim.moref}) left the tree"
        world.event("snapshot-removed", runtime.vm, context.user, message, context.id)


def consolidate_disks(context: TaskContext, runtime: VmRuntime) -> None:
    """Merge every link that no snapshot needs. The configured duration is spread over the links."""
    world = context.world
    first = context.task.progress
    links = redundant_links(runtime.vm)
    for number, (disk_key, path) in enumerate(links):
        base = first + (95 - first) * number / len(links)
        share = (95 - first) / len(links)

        def pause(done: float, base: float = base, share: float = share) -> None:
            context.rest(0)
            context.progress(base + share * done)

        merge_link(world, runtime, disk_key, path, pause)
        context.spend(0.7 / len(links), int(base + share))
    with runtime.edit() as vm:
        vm.consolidation_needed = bool(redundant_links(vm))
    refresh_home(world, runtime, "DISKLIB: consolidated")


def consolidate(context: TaskContext) -> None:
    """ConsolidateVMDisks: what an interrupted or failed removal has left."""
    runtime = context.runtime(context.text("vm"))
    context.spend(0.3, 30)
    context.no_return()
    context.phase("middle")
    consolidate_disks(context, runtime)


# What a snapshot froze.


def frozen_digest(
    world: World, runtime: VmRuntime, moref: str, disk_key: int, export: Path | None = None
) -> FrozenDigest:
    """Digest (and with `export` write) a disk at a snapshot's point in time. Errors: HostError, OSError."""
    with runtime.chain_lock:
        snapshot = next((found for found in runtime.vm.snapshots if found.moref == moref), None)
        if snapshot is None:
            raise HostError("ManagedObjectNotFound", f"snapshot {moref!r} is gone", obj=moref)
        disk = next((found for found in snapshot.hardware.disks if found.key == disk_key), None)
        if disk is None or not disk.takes_snapshots:
            raise HostError("InvalidArgument", f"{moref} did not freeze disk {disk_key}")
        with ChainReader(disk, world.local) as reader:
            sha256 = reader.digest(export)
        return FrozenDigest(
            disk_key=disk_key, label=disk.label, capacity_bytes=disk.capacity_bytes, sha256=sha256
        )


def record_frozen(world: World, runtime: VmRuntime, moref: str) -> None:
    """Keep the digests of all disks that a snapshot froze. Done once; a snapshot that is gone is passed
    over.
    """
    record = world.frozen.get(moref)
    snapshot = next((found for found in runtime.vm.snapshots if found.moref == moref), None)
    if record is None or record.disks or snapshot is None:
        return
    keys = [disk.key for disk in snapshot.hardware.disks if disk.takes_snapshots]
    digests = [frozen_digest(world, runtime, moref, key) for key in keys]
    with world.changes:
        world.put_record(world.frozen[moref].model_copy(update={"disks": digests}))
