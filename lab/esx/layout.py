"""The equivalent of `VirtualMachine.layoutEx`: which files a VM has, and which make up which disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lab.esx.objects import Disk, Layout, LayoutDisk, LayoutFile, LayoutSnapshot, Vm
from lab.esx.paths import sibling

Resolve = Callable[[str], Path]


def home_files(vm: Vm) -> dict[str, str]:
    """The VM's small files: datastore path → type of `VirtualMachineFileLayoutExFileType`."""
    stem = vm.vmx_path.rpartition("/")[2].removesuffix(".vmx")
    return {
        vm.vmx_path: "config",
        sibling(vm.vmx_path, f"{stem}.nvram"): "nvram",
        sibling(vm.vmx_path, f"{stem}.vmsd"): "snapshotList",
        sibling(vm.vmx_path, "vmware.log"): "log",
    }


def layout_of(vm: Vm, resolve: Resolve) -> Layout:
    """The layout with sizes as they are now; a file that is missing is left out."""
    keys: dict[str, int] = {}
    files: list[LayoutFile] = []

    def add(path: str, type_name: str) -> int:
        if path not in keys:
            local = resolve(path)
            if not local.is_file():
                return -1
            keys[path] = len(keys)
            files.append(
                LayoutFile(key=keys[path], path=path, type=type_name, size_bytes=local.stat().st_size)
            )
        return keys[path]

    def chain_of(disk: Disk) -> LayoutDisk:
        links = [
            [add(link.path, "diskDescriptor"), add(link.extent_path, "diskExtent")]
            for link in reversed(disk.chain)
        ]
        return LayoutDisk(disk_key=disk.key, chain=links)

    for path, type_name in home_files(vm).items():
        add(path, type_name)
    disks = [chain_of(disk) for disk in vm.hardware.disks]
    for snapshot in vm.snapshots:
        if snapshot.manifest_path:
            add(snapshot.manifest_path, "snapshotManifestList")
    snapshots = [
        LayoutSnapshot(
            snapshot=snapshot.moref,
            data_key=add(snapshot.data_path, "snapshotData"),
            disks=[chain_of(disk) for disk in snapshot.hardware.disks],
        )
        for snapshot in vm.snapshots
    ]
    return Layout(files=files, disks=disks, snapshots=snapshots)
