"""RestoreVm's steps: a backup becomes a new VM's directory on a NAS datastore, and a VM in vCenter."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import NAMESPACE_URL, UUID, uuid5

from activities.beat import beat, keep_alive
from activities.disks import nas_volume, volumes_of
from activities.errors import step
from activities.peers import Peers
from safehaul.errors import AlreadyExistsError, IntegrityError, InvalidInputError, NotFoundError, PolicyError
from safehaul.media.manifest import BackupRef, Manifest, read_manifest
from safehaul.media.reader import BackupReader, Hole
from safehaul.messages.hardware import VmHardware
from safehaul.messages.restore import (
    OpenRestoreInput,
    RegisteredVm,
    RestoredDisk,
    RestoreDisk,
    RestoreDiskInput,
    RestorePlan,
    RestoreRef,
    RestoreSettings,
    RestoreStep,
)
from safehaul.nas.export import NasExport
from safehaul.nas.paths import check_component
from safehaul.vmdk.new_disk import flat_descriptor
from safehaul.vmx import build_vmx
from safehaul.vsphere import registration

# Marks a directory as one restore's own, so that a second try goes on in it and a discard removes only that.
MARKER = "safehaul-restore.json"
MARKER_LIMIT_BYTES = 4096
COMPARE_BYTES = 4 * 1024 * 1024


class RestoreDesk:
    """Activity of the CommServe's queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("open_restore")
    def open_restore(self, arg: OpenRestoreInput) -> RestoreSettings:
        """Resolves backup, MediaAgent, vCenter and access nodes. Changes nothing. Errors: names what does not exist."""
        request, settings = arg.request, self._peers.settings
        vc_guid, _, backup_id = request.backup.rpartition("/")
        if not vc_guid or not backup_id:
            raise InvalidInputError(
                f"backup: {request.backup!a} is not of the form VC.GUID/TIME-ID; see `safehaul backups list`"
            )
        agents = [agent.name for agent in settings.media_agents]
        if request.media_agent is None and len(agents) > 1:
            raise InvalidInputError(f"media_agent: there are several, name one of {', '.join(agents)}")
        agent = settings.media_agent(request.media_agent or agents[0]).name
        manifest = read_manifest(self._peers.repository(agent), BackupRef(vc_guid, backup_id))
        vcenter = (
            request.vcenter or str(manifest.snapshot.details.get("vcenter", "")) or settings.vcenters[0].name
        )
        nodes = (
            [request.access_node] if request.access_node else [node.name for node in settings.access_nodes]
        )
        check_component(request.name)
        return RestoreSettings(
            vc_guid=vc_guid,
            backup_id=backup_id,
            name=request.name,
            datastore=request.datastore,
            folder=request.folder,
            media_agent=agent,
            vcenter=settings.vcenter(vcenter).name,
            access_nodes=[settings.access_node(node).name for node in nodes],
            keep_mac=request.keep_mac,
        )


class Restores:
    """`restore_disk` runs on a node's streams; the others on its control queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("prepare_restore")
    def prepare_restore(self, ref: RestoreRef) -> RestorePlan:
        """Checks the target and makes the new VM's directory, with a marker of this restore in it.

        Keyed by the restore's owner: a second run finds its own marker and goes on. Errors: the directory, or a VM
        of that name, exists; too little space; no writable export for the datastore.
        """
        settings = ref.settings
        manifest = self._manifest(settings)
        disks = [
            RestoreDisk(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                file_name=_disk_file(number),
            )
            for number, disk in enumerate(manifest.disks)
        ]
        registration.find_place(
            self._peers.vcenter(settings.vcenter), settings.datastore, folder=settings.folder
        )
        with self._export(settings) as export:
            needed = sum(disk.capacity_bytes for disk in disks)
            free = export.free_bytes()
            if free < needed:
                raise PolicyError(
                    f"datastore {settings.datastore!r} has {free:,} bytes free, the restore needs {needed:,}"
                )
            _claim_directory(export, ref)
        return RestorePlan(
            directory=f"[{settings.datastore}] {settings.name}",
            disks=disks,
            missing_disks=[
                f"{item.label}: {item.reason}" for item in manifest.skipped if item.kind == "disk"
            ],
            warnings=manifest.warnings,
        )

    @step("restore_disk")
    def restore_disk(self, arg: RestoreDiskInput) -> RestoredDisk:
        """Writes one disk as a flat extent with its descriptor, then reads all of it back and compares.

        Every chunk's digest is verified while it is written. A second run begins the disk again, in the same
        file. Heartbeats with bytes written and compared. Errors: damage, named by disk and offset; a byte that
        the filer gives back differently.
        """
        settings, disk = arg.ref.settings, arg.disk
        started = time.monotonic()
        flat = f"{settings.name}/{disk.file_name.removesuffix('.vmdk')}-flat.vmdk"
        with self._reader(settings) as reader, self._export(settings) as export:
            _check_own(export, arg.ref)
            written = _write_disk(export, flat, reader, disk)
        # A fresh connection: what is compared comes from the filer, not from a client's cache.
        with self._reader(settings) as reader, self._export(settings) as export:
            compared = _compare_disk(export, flat, reader, disk)
            descriptor = flat_descriptor(flat.rsplit("/", 1)[1], disk.capacity_bytes)
            _write_file(export, f"{settings.name}/{disk.file_name}", descriptor)
        return RestoredDisk(
            key=disk.key,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            bytes_written=written,
            bytes_compared=compared,
            seconds=round(time.monotonic() - started, 3),
        )

    @step("write_vm_files")
    def write_vm_files(self, arg: RestoreStep) -> None:
        """Writes the .vmx, built from the snapshot's own hardware with a new identity, and the .nvram.

        The identity follows from the restore's owner, so a second run writes the same bytes.
        """
        settings = arg.ref.settings
        manifest = self._manifest(settings)
        hardware = VmHardware.model_validate(manifest.hardware)
        nvram = next((file for file in manifest.files if file.name.endswith(".nvram")), None)
        vmx = build_vmx(
            hardware,
            name=settings.name,
            uuid_bios=_identity(arg.ref, "bios"),
            instance_uuid=_identity(arg.ref, "instance"),
            disk_files={disk.key: disk.file_name for disk in arg.plan.disks},
            nvram_file="vm.nvram" if nvram else "",
            keep_mac=settings.keep_mac,
        )
        with self._reader(settings) as reader, self._export(settings) as export:
            _check_own(export, arg.ref)
            if nvram is not None:
                _write_file(export, f"{settings.name}/vm.nvram", reader.read_file(nvram.name))
            _write_file(export, f"{settings.name}/{_VMX}", vmx)

    @step("register_vm")
    def register_vm(self, arg: RestoreStep) -> RegisteredVm:
        """Registers the new VM in vCenter, powered off. A second run finds it registered.

        Heartbeats with the task's progress. Errors: a VM of that name exists in the folder.
        """
        settings = arg.ref.settings
        vcenter = self._peers.vcenter(settings.vcenter)
        vmx_path = f"{arg.plan.directory}/{_VMX}"
        place = registration.find_place(vcenter, settings.datastore, folder=settings.folder)
        known = registration.find_registered(vcenter, vmx_path)
        moref = (
            known[0] if known else registration.register(vcenter, place, vmx_path, settings.name, keep_alive)
        )
        with self._export(settings) as export:
            _remove_quietly(export, f"{settings.name}/{MARKER}")
        return RegisteredVm(moref=moref, vmx_path=vmx_path)

    @step("discard_restore")
    def discard_restore(self, ref: RestoreRef) -> None:
        """Removes a failed restore's directory, only if its marker says that it is this restore's own."""
        settings = ref.settings
        vcenter = self._peers.vcenter(settings.vcenter)
        known = registration.find_registered(vcenter, f"[{settings.datastore}] {settings.name}/{_VMX}")
        with self._export(settings) as export:
            try:
                _check_own(export, ref)
            except (NotFoundError, AlreadyExistsError):
                # Nothing of ours is there, or the directory is somebody else's: nothing to remove.
                return
            if known is not None:
                registration.unregister(vcenter, known[0])
            names = [entry.name for entry in export.list(settings.name) if entry.name != MARKER]
            for name in [*names, MARKER]:
                keep_alive(name)
                _remove_quietly(export, f"{settings.name}/{name}")
            export.remove_directory(settings.name)

    def _manifest(self, settings: RestoreSettings) -> Manifest:
        repository = self._peers.repository(settings.media_agent)
        return read_manifest(repository, BackupRef(settings.vc_guid, settings.backup_id))

    @contextmanager
    def _reader(self, settings: RestoreSettings) -> Iterator[BackupReader]:
        repository = self._peers.repository(settings.media_agent)
        reader = BackupReader(repository, settings.vc_guid, settings.backup_id)
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def _export(self, settings: RestoreSettings) -> Iterator[NasExport]:
        volumes = volumes_of(self._peers, settings.vcenter)
        volume = nas_volume(volumes, f"[{settings.datastore}] {settings.name}/{_VMX}")
        with self._peers.open_export(volume, writable=True) as export:
            yield export


_VMX = "vm.vmx"


def _disk_file(number: int) -> str:
    return "vm.vmdk" if number == 0 else f"vm_{number}.vmdk"


def _identity(ref: RestoreRef, what: str) -> UUID:
    """A UUID of the new VM: the same in every try of this restore, unlike any other VM's."""
    return uuid5(NAMESPACE_URL, f"safehaul:restore:{ref.owner}:{what}")


def _claim_directory(export: NasExport, ref: RestoreRef) -> None:
    name = ref.settings.name
    try:
        export.make_directory_exclusive(name)
    except AlreadyExistsError:
        _check_own(export, ref)
        return
    _write_file(export, f"{name}/{MARKER}", json.dumps({"owner": ref.owner}).encode())


def _check_own(export: NasExport, ref: RestoreRef) -> None:
    """Raise AlreadyExistsError unless the directory carries this restore's marker."""
    name = ref.settings.name
    refusal = AlreadyExistsError(
        f"directory [{ref.settings.datastore}] {name} exists and is not this restore's: choose another name"
    )
    try:
        marker = json.loads(export.read_small(f"{name}/{MARKER}", MARKER_LIMIT_BYTES))
    except NotFoundError:
        if export.list(name):
            raise refusal from None
        # An earlier try made the directory and ended before its marker was written.
        _write_file(export, f"{name}/{MARKER}", json.dumps({"owner": ref.owner}).encode())
        return
    except ValueError:
        raise refusal from None
    if not isinstance(marker, dict) or marker.get("owner") != ref.owner:
        raise refusal


def _write_disk(export: NasExport, path: str, reader: BackupReader, disk: RestoreDisk) -> int:
    _remove_quietly(export, path)
    file = export.create_exclusive(path)
    written = 0
    try:
        file.set_size(disk.capacity_bytes)
        for offset, piece in reader.iter_disk(disk.key):
            beat("write", offset, disk.capacity_bytes)
            if not isinstance(piece, Hole):
                file.write_at(offset, piece)
                written += len(piece)
        file.flush()
    finally:
        file.close()
    return written


def _compare_disk(export: NasExport, path: str, reader: BackupReader, disk: RestoreDisk) -> int:
    """Read the whole extent back and compare it with the repository's bytes."""
    file = export.open_read(path)
    buffer, zeros = bytearray(COMPARE_BYTES), bytes(COMPARE_BYTES)
    compared = 0
    try:
        if file.size_bytes != disk.capacity_bytes:
            raise IntegrityError(
                f"{disk.label}: the filer holds {file.size_bytes} bytes of {disk.capacity_bytes} at {path!a}"
            )
        for offset, piece in reader.iter_disk(disk.key):
            length = piece.length_bytes if isinstance(piece, Hole) else len(piece)
            for start in range(0, length, COMPARE_BYTES):
                beat("compare", offset + start, disk.capacity_bytes)
                part = memoryview(buffer)[: min(COMPARE_BYTES, length - start)]
                file.read_into(offset + start, part)
                expected = zeros if isinstance(piece, Hole) else bytes(piece[start : start + len(part)])
                if not expected.startswith(bytes(part)):
                    raise IntegrityError(
                        f"{disk.label}: the filer gives back other bytes than were written, at offset "
                        f"{offset + start} or in the {len(part)} bytes after it"
                    )
                compared += len(part)
    finally:
        file.close()
    return compared


def _write_file(export: NasExport, path: str, data: bytes) -> None:
    """Write a small file anew and check what the filer then holds."""
    _remove_quietly(export, path)
    file = export.create_exclusive(path)
    try:
        file.write_at(0, data)
        file.flush()
    finally:
        file.close()
    if export.read_small(path, len(data) + 1) != data:
        raise IntegrityError(f"the filer gives back other bytes of {path!a} than were written")


def _remove_quietly(export: NasExport, path: str) -> None:
    try:
        export.remove(path)
    except NotFoundError:
        # It was never written, or an earlier try removed it.
        return
