"""Freezing disks and merging links: what a snapshot does to the files, and its removal undoes.

A disk's chain is linear. Each snapshot's freeze puts a new redo log on top; a link below the top that is the
frozen top of no snapshot is *redundant*: its child is merged into it. The child keeps hiding what is written
to the parent until the switch, so an interrupted merge only has to be done again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from lab.esx.api import Backing, Disk, Snapshot, Vm
from lab.esx.chain import Extent, open_extent
from lab.esx.cowd import CowdExtent, create_cowd
from lab.esx.descriptor import Descriptor
from lab.esx.objects import SECTOR_BYTES
from lab.esx.paths import HostError, name_of, sibling
from lab.esx.runtime import VmRuntime
from lab.esx.world import World
from lab.guests.pattern import BLOCK_BYTES

_PIECE_SECTORS = 1024
# So little is left to copy that the guest may be halted for it.
_FEW_BLOCKS = 32
_MAX_PASSES = 50
_MAX_REDO_LOGS = 999_999


def plan_redo_logs(world: World, vm: Vm) -> dict[int, Backing]:
    """The next redo log of each disk that takes snapshots (by key): names that no file has yet."""
    links = {}
    for disk in vm.hardware.disks:
        if not disk.takes_snapshots:
            continue
        base = name_of(disk.chain[-1].path).removesuffix(".vmdk")
        for number in range(1, _MAX_REDO_LOGS):
            path = sibling(disk.chain[0].path, f"{base}-{number:06}.vmdk")
            extent = sibling(disk.chain[0].path, f"{base}-{number:06}-delta.vmdk")
            if not world.local(path).exists() and not world.local(extent).exists():
                break
        links[disk.key] = Backing(
            path=path,
            extent_path=extent,
            kind="cowd",
            content_id=secrets.token_hex(4),
            parent_content_id=disk.chain[0].content_id,
        )
    return links


def freeze(world: World, runtime: VmRuntime, snapshot: Snapshot) -> Snapshot:
    """Put a redo log on every disk that takes snapshots, between two writes of the guest, and add the
    snapshot.

    The new files' names are stored before they are made: a killed process removes them when it comes back.
    """
    with runtime.lock:
        links = plan_redo_logs(world, runtime.vm)
        with runtime.edit() as vm:
            vm.discarded = [path for link in links.values() for path in (link.path, link.extent_path)]
        with runtime.edit() as vm:
            for disk in vm.hardware.disks:
                runtime.flush_top(disk.key)
            snapshot = snapshot.model_copy(
                update={
                    "frozen_sequence": runtime.sequence,
                    "hardware": vm.hardware.model_copy(deep=True),
                    "parent": vm.current_snapshot,
                    "number": vm.next_snapshot_number,
                }
            )
            _number_changes(vm, snapshot)
            for disk in vm.hardware.disks:
                if link := links.get(disk.key):
                    _make_redo_log(world, disk, link)
                    disk.chain.insert(0, link)
            vm.snapshots.append(snapshot)
            vm.current_snapshot = snapshot.moref
            vm.next_snapshot_number += 1
            vm.discarded = []
        return snapshot


def _number_changes(vm: Vm, snapshot: Snapshot) -> None:
    """Give the frozen disks the change ids (`UUID/n`) of this moment, when change tracking is on."""
    if not vm.change_tracking_enabled:
        return
    for disk in snapshot.hardware.disks:
        if disk.takes_snapshots:
            digits = disk.uuid.replace("-", "")
            tracker = " ".join(digits[index : index + 2] for index in range(0, 32, 2))
            disk.chain[0].change_id = f"{tracker[:23]}-{tracker[24:]}/{vm.next_snapshot_number}"


def _make_redo_log(world: World, disk: Disk, link: Backing) -> None:
    sectors = disk.capacity_bytes // SECTOR_BYTES
    create_cowd(world.local(link.extent_path), sectors, name_of(disk.chain[0].path))
    parent = disk.chain[0]
    write_descriptor(world, disk, link, parent)


def write_descriptor(world: World, disk: Disk, link: Backing, parent: Backing | None) -> None:
    """Write a link's descriptor (mode 0600) as the state has it."""
    create_type = {"flat": "vmfs", "cowd": "vmfsSparse"}[link.kind]
    text = Descriptor(
        content_id=link.content_id,
        parent_content_id=link.parent_content_id,
        parent_name=name_of(parent.path) if parent else "",
        create_type=create_type,
        sectors=disk.capacity_bytes // SECTOR_BYTES,
        extent_name=name_of(link.extent_path),
        uuid=disk.uuid,
    ).render()
    path = world.local(link.path)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)


def redundant_links(vm: Vm) -> list[tuple[int, str]]:
    """(disk key, descriptor path) of each link that no snapshot needs, top of each chain excluded."""
    needed = {disk.chain[0].path for snapshot in vm.snapshots for disk in snapshot.hardware.disks}
    return [
        (disk.key, link.path)
        for disk in vm.hardware.disks
        for link in disk.chain[1:]
        if link.path not in needed
    ]


def merge_link(
    world: World, runtime: VmRuntime, disk_key: int, parent_path: str, pause: Callable[[float], None]
) -> None:
    """Merge the child of a redundant link into it, switch to it, and delete the child's files.

    `pause` is called with the share that is done (0 to 1) between pieces, and may raise to stop: what was
    copied stays hidden below the child. Errors: HostError, OSError (ENOSPC).
    """
    with runtime.chain_lock:
        disk = next(disk for disk in runtime.vm.hardware.disks if disk.key == disk_key)
        index = next(i for i, link in enumerate(disk.chain) if link.path == parent_path)
        if index == 0:
            raise HostError("SystemError", f"{parent_path} is the top of its chain: nothing to merge into it")
        child, parent = disk.chain[index - 1], disk.chain[index]
        with runtime.edit() as vm:
            vm.merging = [parent.extent_path]
        target = open_extent(world.local(parent.extent_path), parent.kind, writable=True)
        try:
            with runtime.tracking(disk_key) as touched:
                _copy(world, child, target, [(0, disk.capacity_bytes // SECTOR_BYTES)], pause)
                for _ in range(_MAX_PASSES):
                    with runtime.lock:
                        again = set(touched)
                        touched.clear()
                    _copy(world, child, target, _ranges(again))
                    if len(again) <= _FEW_BLOCKS:
                        break
                with runtime.lock:
                    _copy(world, child, target, _ranges(touched))
                    target.close()
                    runtime.flush_top(disk_key)
                    _switch(world, runtime, disk_key, child, parent)
        finally:
            target.close()
            settle_merge(runtime)
        discard(world, runtime)


def settle_merge(runtime: VmRuntime) -> None:
    """A merge ended, or was interrupted: what it wrote to is frozen again, with the size and time of now."""
    with runtime.lock:
        if runtime.vm.merging:
            with runtime.edit() as vm:
                vm.frozen_files = [frozen for frozen in vm.frozen_files if frozen.path not in vm.merging]
                vm.merging = []


def _ranges(offsets: set[int]) -> list[tuple[int, int]]:
    """The guest's 4 KiB steps as (first sector, end sector), in the disk's order."""
    return [(offset // SECTOR_BYTES, (offset + BLOCK_BYTES) // SECTOR_BYTES) for offset in sorted(offsets)]


def _copy(
    world: World,
    child: Backing,
    target: Extent,
    ranges: list[tuple[int, int]],
    pause: Callable[[float], None] | None = None,
) -> None:
    """Copy what the child holds within `ranges` (sectors). Its tables are read anew each time."""
    if not ranges:
        return
    source = CowdExtent(world.local(child.extent_path), writable=False)
    try:
        for first, end in ranges:
            for sector, count, place in source.runs(first, end):
                for done in range(0, count, _PIECE_SECTORS):
                    length = min(_PIECE_SECTORS, count - done)
                    target.write((sector + done) * SECTOR_BYTES, source.read_grains(place + done, length))
                    if pause is not None:
                        pause(sector / source.capacity_sectors)
    finally:
        source.close()


def _switch(world: World, runtime: VmRuntime, disk_key: int, child: Backing, parent: Backing) -> None:
    """Let the parent take the child's place everywhere: it has the child's content and content id now."""
    with runtime.edit() as vm:
        disk = next(disk for disk in vm.hardware.disks if disk.key == disk_key)
        holders = [found for snapshot in vm.snapshots for found in snapshot.hardware.disks]
        for holder in [disk, *(found for found in holders if found.key == disk_key)]:
            _replace_link(holder, child, parent)
        merged = next(i for i, link in enumerate(disk.chain) if link.path == parent.path)
        below = disk.chain[merged + 1] if merged + 1 < len(disk.chain) else None
        write_descriptor(world, disk, disk.chain[merged], below)
        if merged:
            write_descriptor(world, disk, disk.chain[merged - 1], disk.chain[merged])
        vm.discarded = [child.path, child.extent_path]
        vm.consolidation_needed = bool(redundant_links(vm))


def _replace_link(disk: Disk, child: Backing, parent: Backing) -> None:
    for index, link in enumerate(disk.chain[:-1]):
        if link.path == child.path:
            merged = parent.model_copy(update={"content_id": link.content_id, "change_id": link.change_id})
            disk.chain[index : index + 2] = [merged]
            return


def discard(world: World, runtime: VmRuntime) -> None:
    """Delete the files that the state no longer needs."""
    with runtime.lock:
        if not runtime.vm.discarded:
            return
        for path in runtime.vm.discarded:
            world.local(path).unlink(missing_ok=True)
        with runtime.edit() as vm:
            vm.discarded = []
