"""Steps 8 and 9: can each disk be read from its filer, and the VM's files on the access node."""

from __future__ import annotations

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
from activities.spool import write_new
from safehaul.disk_filters import DESELECTED, why_deselected
from safehaul.errors import NotFoundError, PolicyError, UnsupportedError
from safehaul.messages.inventory import VmDisk, VmFile
from safehaul.messages.steps import (
    CheckTransportInput,
    DiskTransport,
    DownloadedFiles,
    DownloadInput,
    SpooledFile,
    TransportReport,
)
from safehaul.messages.vm import SkippedFile
from safehaul.nas.paths import parse_datastore_path
from safehaul.vm_files import MAX_FILE_BYTES, bounded, choose, is_log, skipped
from safehaul.vsphere import vms

# A file may have grown since vCenter looked: to twice its size, and to this where it was tiny.
GROWN_BYTES = 2**20


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
        volumes = volumes_of(self._peers, arg.vm)
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

        Keyed by job and VM: a second run empties the spool directory and downloads again. Which files, and which are
        left out by design, says `safehaul.vm_files`; any other that does not come is skipped with its reason, and
        the VM is Partial. Waits for room in the spool. Heartbeats with each file. Errors: the export refuses, the
        spool stays full, the .vmx cannot be read.
        """
        state = vms.vm_state(self._peers.vcenter(arg.vm.vcenter), arg.vm.moref)
        volumes = volumes_of(self._peers, arg.vm)
        spool = self._peers.spool(arg.vm.node)
        chosen = choose(state.files, spool.limit_bytes, arg.unread)
        files: list[SpooledFile] = []
        missing: list[SkippedFile] = chosen.skipped
        warnings: list[str] = []
        with spool.fill(arg.vm, sum(file.size_bytes for file in chosen.wanted)) as directory:
            for number, file in enumerate(chosen.wanted):
                beat(file.path)
                try:
                    files.append(self._download(volumes, file, directory / f"{number:04d}"))
                except (NotFoundError, UnsupportedError, PolicyError) as error:
                    # Gone, on another kind of datastore, or grown: the disks do not depend on it.
                    if is_log(file):
                        warnings.append(f"log {file.path!a} is left out: {error}")
                    else:
                        missing.append(skipped(file, str(error)))
        if not any(file.name.endswith(".vmx") for file in files):
            reasons = "; ".join(f"{item.path!a}: {item.reason}" for item in missing[:5])
            raise NotFoundError(
                f"the .vmx of VM {arg.vm.name!r} ({state.vmx_path!a}) cannot be read: {reasons}"
            )
        return DownloadedFiles(files=files, skipped=warnings, skipped_files=bounded(missing))

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
                    nfs_version=source.nfs_version,
                    format=found.format,
                    chain_depth=found.chain_depth,
                    extents=[extent.path for extent in found.extents],
                    identity=identity_of(source.chain),
                    warnings=[f"{disk.label}: {warning}" for warning in found.warnings],
                )
        except UnsupportedError as error:  # a format that cannot be read: this disk is skipped, not the VM
            return DiskTransport(disk=disk, transport="none", reason=str(error))

    def _download(self, volumes: Volumes, file: VmFile, target: Path) -> SpooledFile:
        with open_datastores(self._peers, volumes, [file.path]) as files:
            export, parsed = files.locate(file.path)
            data = export.read_small(
                parsed.relative, min(MAX_FILE_BYTES, max(2 * file.size_bytes, GROWN_BYTES))
            )
        write_new(target, data)
        return SpooledFile(
            name=parse_datastore_path(file.path).name,
            type=file.type,
            path=file.path,
            spool_name=target.name,
            size_bytes=len(data),
        )
