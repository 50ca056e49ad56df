"""Joins vCenter's word, the filers and the disk formats: a snapshot's disk as an open chain on its export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from activities.peers import Peers
from safehaul.errors import NotFoundError, UnsupportedError, VmMovedError
from safehaul.messages.inventory import NasVolume, VmDisk
from safehaul.messages.steps import FileIdentity, VmRef
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.export import NasExport
from safehaul.nas.paths import parse_datastore_path
from safehaul.vmdk.chain import DiskChain
from safehaul.vsphere import inventory

Volumes = dict[str, NasVolume]
"""Datastores by name, of one datacentre: a name means one datastore there, and may mean another elsewhere."""


def volumes_of(peers: Peers, vm: VmRef) -> Volumes:
    """The datastores that the paths of a VM and of its snapshots mean, by name."""
    return by_name(inventory.volumes_of_vm(peers.vcenter(vm.vcenter), vm.moref))


def by_name(volumes: Iterable[NasVolume]) -> Volumes:
    """The datastores of one datacentre by name."""
    return {volume.datastore: volume for volume in volumes}


def nas_volume(volumes: Volumes, path: str) -> NasVolume:
    """The NAS volume that holds a datastore path; UnsupportedError when it is not on NFS."""
    name = parse_datastore_path(path).datastore
    volume = volumes.get(name)
    if volume is None:
        raise NotFoundError(f"the VM's datacentre has no datastore {name!r}, which {path!a} names")
    must_be_nas(volume)
    return volume


def must_be_nas(volume: NasVolume) -> None:
    """Raise UnsupportedError for a datastore that is not on NFS."""
    if not volume.is_nas:
        raise UnsupportedError(f"datastore {volume.datastore!r} is {volume.type}, not NFS")


@contextmanager
def open_datastores(peers: Peers, volumes: Volumes, paths: list[str]) -> Iterator[DatastoreFiles]:
    """The exports of all datastores that the paths name, open; all are closed at the end."""
    with ExitStack() as stack:
        exports: dict[str, NasExport] = {}
        for path in paths:
            volume = nas_volume(volumes, path)
            if volume.datastore not in exports:
                exports[volume.datastore] = stack.enter_context(peers.open_export(volume))
        yield DatastoreFiles(exports)


@dataclass(frozen=True)
class OpenDisk:
    """A snapshot's disk, open on its filers."""

    chain: DiskChain
    exports: tuple[NasExport, ...]

    @property
    def bytes_read(self) -> int:
        """What the filers have been asked for, descriptors, grain tables and gaps between grains included."""
        return sum(export.bytes_read for export in self.exports)

    @property
    def nfs_version(self) -> str:
        """What this node speaks with the filer: `3`, `4.1`; both where the chain lies on two exports."""
        return ", ".join(sorted({export.version for export in self.exports if export.version}))


@contextmanager
def open_disk(peers: Peers, volumes: Volumes, disk: VmDisk) -> Iterator[OpenDisk]:
    """A snapshot's disk as an open chain; every handle is closed at the end."""
    paths = [disk.path, *disk.parent_paths]
    with (
        open_datastores(peers, volumes, paths) as files,
        DiskChain(files, disk.path, disk.parent_paths, capacity_bytes=disk.capacity_bytes) as chain,
    ):
        exports = {id(export): export for export, _ in map(files.locate, paths)}
        yield OpenDisk(chain, tuple(exports.values()))


def why_not_nas(disk: VmDisk, volumes: Volumes) -> str:
    """Why a disk cannot go through the NAS transport by its nature (vmware-facts 5, 22); empty when it can."""
    if disk.key_id:
        return "it is encrypted by vSphere: its bytes on the filer are ciphertext"
    if disk.independent:
        return f"it is {disk.mode}: a snapshot does not freeze it"
    if disk.backing != "flat":
        return f"its backing is {disk.backing}: it is not a file on an NFS datastore"
    if disk.sharing not in ("", "sharingNone"):
        return "it is shared with other VMs (multi-writer): a snapshot does not freeze it"
    try:
        for path in (disk.path, *disk.parent_paths):
            nas_volume(volumes, path)
    except UnsupportedError as error:  # told as the disk's reason: the VM becomes Partial
        return str(error)
    return ""


def identity_of(chain: DiskChain) -> list[FileIdentity]:
    """The identity of every file of the chain, now."""
    return [
        FileIdentity(path=item.path, size_bytes=item.size_bytes, mtime_ns=item.mtime_ns, file_id=item.file_id)
        for item in chain.identity()
    ]


def check_same(label: str, before: list[FileIdentity], now: list[FileIdentity]) -> None:
    """Raise VmMovedError when a frozen file is not what it was (vmware-facts 6)."""
    if len(before) != len(now):
        raise VmMovedError(f"{label}: its chain had {len(before)} files and has {len(now)} now")
    for old, new in zip(before, now, strict=True):
        same_id = old.file_id is None or new.file_id is None or old.file_id == new.file_id
        if (old.path, old.size_bytes, old.mtime_ns) != (
            new.path,
            new.size_bytes,
            new.mtime_ns,
        ) or not same_id:
            raise VmMovedError(
                f"{label}: file {old.path!a} changed while it was frozen (was {old.size_bytes} bytes, is "
                f"{new.size_bytes}): the VM was moved or something wrote to it; it is looked at again"
            )
