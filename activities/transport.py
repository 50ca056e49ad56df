"""Steps 8 and 9: can each disk be read from its filer, and the VM's files on the access node."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from activities.beat import beat
from activities.disks import (
    Volumes,
    identity_of,
    nas_volume,
    open_datastores,
    open_disk,
    volumes_of,
    why_not_nas,
)
from activities.errors import step
from activities.peers import Peers
from activities.spool import spool_directory
from safehaul.disk_filters import DESELECTED, why_deselected
from safehaul.errors import NotFoundError, SafehaulError, UnsupportedError
from safehaul.messages.inventory import VmDisk
from safehaul.messages.steps import (
    CheckTransportInput,
    DiskTransport,
    DownloadedFiles,
    DownloadInput,
    SpooledFile,
    TransportReport,
)
from safehaul.nas.paths import parse_datastore_path
from safehaul.vsphere import vms

# Small files that belong to the VM and not to one of its disks (vmware-facts 7, 21). Swap files, locks and the
# disks' own extents are not among them.
FILE_SUFFIXES = (".vmx", ".nvram", ".vmsd", ".vmxf", ".vmsn", ".vmdk", ".zip", ".log")
MAX_FILES = 500
MAX_FILE_BYTES = 64 * 1024 * 1024


class Transport:
    """Activities of an access node's control queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("check_transport")
    def check_transport(self, arg: CheckTransportInput) -> TransportReport:
        """Step 8: verifies, disk by disk, that the NAS transport can be used for the snapshot's disks.

        For each disk: backing, datastore, export reachable from here, descriptor, extents present and of the
        declared size, the chain's consistency. A disk that cannot go is skipped with its reason; one that the VM
        group's disk filters leave out is named and not looked at. Changes nothing; a second run looks again.
        Heartbeats with each disk. Errors: an export that refuses this node (EACCES names export, uid and port), a
        chain that contradicts itself, a VM that moved.
        """
        hardware = vms.snapshot_config(self._peers.vcenter(arg.vm.vcenter), arg.snapshot.moref)
        volumes = volumes_of(self._peers, arg.vm.vcenter)
        disks: list[DiskTransport] = []
        for disk in hardware.disks:
            beat(disk.label)
            reason = why_deselected(disk, arg.disks)
            if reason:
                disks.append(DiskTransport(disk=disk, transport=DESELECTED, reason=reason))
            else:
                disks.append(self._check(disk, volumes))
        return TransportReport(disks=disks, hardware=hardware.model_dump(mode="json"))

    @step("download_files")
    def download_files(self, arg: DownloadInput) -> DownloadedFiles:
        """Step 9: opens the export and downloads the VM's small files to this node's spool.

        Keyed by job and VM: a second run empties the spool directory and downloads again. Bounded by
        `limit_bytes`; what does not fit is skipped and said. Heartbeats with each file. Errors: the export
        refuses, the spool is full.
        """
        state = vms.vm_state(self._peers.vcenter(arg.vm.vcenter), arg.vm.moref)
        volumes = volumes_of(self._peers, arg.vm.vcenter)
        spool = spool_directory(self._peers, arg.vm)
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(mode=0o700, parents=True)
        files: list[SpooledFile] = []
        skipped: list[str] = []
        left_bytes = arg.limit_bytes
        wanted = [file for file in state.files if _is_small(file.path, file.size_bytes)][:MAX_FILES]
        for number, file in enumerate(wanted):
            beat(file.path)
            if file.size_bytes > left_bytes:
                skipped.append(
                    f"file {file.path!a} is left out: the spool's limit is {arg.limit_bytes} bytes"
                )
                continue
            try:
                data = self._read(volumes, file.path, min(left_bytes, MAX_FILE_BYTES))
            except (NotFoundError, UnsupportedError) as error:
                # A log that rotated away, or a file on another datastore: the disks do not depend on it.
                skipped.append(f"file {file.path!a} is left out: {error}")
                continue
            name = parse_datastore_path(file.path).name
            target = f"{number:04d}"
            _write(spool / target, data)
            left_bytes -= len(data)
            files.append(
                SpooledFile(
                    name=name, type=file.type, path=file.path, spool_name=target, size_bytes=len(data)
                )
            )
        if not any(file.name.endswith(".vmx") for file in files):
            raise NotFoundError(
                f"the .vmx of VM {arg.vm.name!r} ({state.vmx_path!a}) cannot be read: {'; '.join(skipped)}"
            )
        return DownloadedFiles(files=files, skipped=skipped)

    def _check(self, disk: VmDisk, volumes: Volumes) -> DiskTransport:
        reason = why_not_nas(disk, volumes)
        if reason:
            return DiskTransport(disk=disk, transport="none", reason=reason)
        volume = nas_volume(volumes, disk.path)
        try:
            with open_disk(self._peers, volumes, disk) as source:
                found = source.chain.verify()
                return DiskTransport(
                    disk=disk,
                    transport="nas",
                    export=f"{volume.remote_host}:{volume.remote_path}",
                    nfs_version="4.1" if volume.type == "NFS41" else "3",
                    format=found.format,
                    chain_depth=found.chain_depth,
                    extents=[extent.path for extent in found.extents],
                    identity=identity_of(source.chain),
                )
        except UnsupportedError as error:  # a format that cannot be read: this disk is skipped, not the VM
            return DiskTransport(disk=disk, transport="none", reason=str(error))

    def _read(self, volumes: Volumes, path: str, limit_bytes: int) -> bytes:
        with open_datastores(self._peers, volumes, [path]) as files:
            export, parsed = files.locate(path)
            return export.read_small(parsed.relative, limit_bytes)


def _is_small(path: str, size_bytes: int) -> bool:
    try:
        name = parse_datastore_path(path).name.casefold()
    except SafehaulError:  # a hostile path in layoutEx: such a file is never opened
        return False
    extent = name.endswith(
        ("-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk", "-rdm.vmdk", "-rdmp.vmdk", "-ctk.vmdk")
    )
    return name.endswith(FILE_SUFFIXES) and not extent and size_bytes <= MAX_FILE_BYTES


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
