"""What all restores share: the backup's reader, writable exports, disks written, read back and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from activities.beat import beat
from activities.disks import must_be_nas
from activities.peers import Peers
from safehaul.errors import IntegrityError, NotFoundError, PolicyError
from safehaul.media.manifest import BackupRef, Manifest, read_manifest
from safehaul.media.reader import BackupReader, Hole
from safehaul.messages.inventory import DatastoreRef, NasVolume
from safehaul.messages.restore import PlannedDisk, RestoredDisk, RestorePlan, RestoreSettings
from safehaul.nas.export import NasExport
from safehaul.nas.paths import DatastorePath, parse_datastore_path
from safehaul.vmdk.new_disk import flat_descriptor
from safehaul.vsphere import inventory
from safehaul.vsphere.datastores import find_volume

COMPARE_BYTES = 4 * 1024 * 1024
DESCRIPTOR_SUFFIX = ".vmdk"


class RestoreIo:
    """A backup on one side, a datastore's writable export on the other."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def manifest(self, settings: RestoreSettings) -> Manifest:
        """The backup's manifest. Raises NotFoundError."""
        repository = self._peers.repository(settings.media_agent)
        return read_manifest(repository, BackupRef(settings.vc_guid, settings.backup_id))

    @contextmanager
    def reader(self, settings: RestoreSettings) -> Iterator[BackupReader]:
        """The backup's bytes, each chunk verified."""
        repository = self._peers.repository(settings.media_agent)
        reader = BackupReader(repository, settings.vc_guid, settings.backup_id)
        try:
            yield reader
        finally:
            reader.close()

    def volume(self, settings: RestoreSettings, plan: RestorePlan | None, datastore: str) -> NasVolume:
        """The datastore that a name in the restore's paths means: the one that its plan recorded.

        Raises NotFoundError (there is none), InvalidInputError (several datacentres have one, and none is named).
        """
        moref = plan.datastore_morefs.get(datastore, "") if plan is not None else ""
        wanted = DatastoreRef(name=datastore, moref=moref, datacenter=settings.datacenter)
        return find_volume(inventory.all_nas_volumes(self._peers.vcenter(settings.vcenter)), wanted)

    @contextmanager
    def export(self, volume: NasVolume) -> Iterator[NasExport]:
        """A fresh connection to a datastore's export for restores.

        Raises UnsupportedError (not NAS), ConfigError (no export for restores).
        """
        must_be_nas(volume)
        with self._peers.open_export(volume, writable=True) as export:
            yield export

    def require_space(self, volume: NasVolume, needed_bytes: int) -> None:
        """Raise PolicyError when the datastore has less free space, or as `export`."""
        with self.export(volume) as export:
            free = export.free_bytes()
        if free < needed_bytes:
            raise PolicyError(
                f"datastore {volume.datastore!r} has {free:,} bytes free, the restore needs {needed_bytes:,}: "
                "free space, or restore to another datastore"
            )

    def write_and_compare(
        self, settings: RestoreSettings, disk: PlannedDisk, volume: NasVolume, export: NasExport
    ) -> RestoredDisk:
        """Write one disk as a flat extent with its descriptor, read all of it back over a fresh connection, compare.

        `export` is the volume's, open. The descriptor comes last. Raises IntegrityError, or as the export.
        """
        path = parse_datastore_path(disk.path)
        extent = extent_of(path)
        with self.reader(settings) as reader:
            written = _write_disk(export, extent.relative, reader, disk)
        # A fresh connection: what is compared comes from the filer, not from a client's cache.
        with self.reader(settings) as reader, self.export(volume) as fresh:
            compared = _compare_disk(fresh, extent.relative, reader, disk)
            descriptor = flat_descriptor(extent.name, disk.capacity_bytes, uuid=disk.uuid)
            write_file(fresh, path.relative, descriptor)
        return RestoredDisk(
            key=disk.key,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            bytes_written=written,
            bytes_compared=compared,
            seconds=0.0,
            path=disk.path,
        )


def extent_of(descriptor: DatastorePath) -> DatastorePath:
    """The flat extent beside a descriptor that a restore writes."""
    return descriptor.sibling(descriptor.name.removesuffix(DESCRIPTOR_SUFFIX) + "-flat.vmdk")


def _write_disk(export: NasExport, path: str, reader: BackupReader, disk: PlannedDisk) -> int:
    remove_quietly(export, path)
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


def _compare_disk(export: NasExport, path: str, reader: BackupReader, disk: PlannedDisk) -> int:
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


def write_file(export: NasExport, path: str, data: bytes) -> None:
    """Write a small file anew and check what the filer then holds."""
    remove_quietly(export, path)
    file = export.create_exclusive(path)
    try:
        file.write_at(0, data)
        file.flush()
    finally:
        file.close()
    if export.read_small(path, len(data) + 1) != data:
        raise IntegrityError(f"the filer gives back other bytes of {path!a} than were written")


def remove_quietly(export: NasExport, path: str) -> None:
    """Remove a file; one that is not there is no error."""
    try:
        export.remove(path)
    except NotFoundError:
        # It was never written, or an earlier try removed it.
        return
