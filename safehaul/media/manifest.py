"""Manifests and indexes: what a backup holds, and how the run that made it ended.

Both are JSON in an envelope. `manifests/VCGUID/BACKUP` is the commit (end of step 12): with it the backup is
restorable. `index/VCGUID/BACKUP` (step 14) adds the times, the result and the record of the snapshot's
removal. A reader ignores fields that it does not know; a change that an old reader must not miss raises
`version`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import Field

from safehaul.errors import AlreadyExistsError, IntegrityError, InvalidInputError, NotFoundError
from safehaul.media.canonical import canonical_json, parse_object
from safehaul.media.disk_map import DiskMap
from safehaul.media.envelope import Kind
from safehaul.media.names import decode_segment, encode_segment
from safehaul.media.repository import Repository
from safehaul.media.sessions import StoredFile
from safehaul.messages.base import Message

_MANIFESTS = "manifests/"


class ManifestStats(Message):
    """Bytes of one disk; see DiskStats."""

    bytes_read: int = 0
    bytes_zero: int = 0
    bytes_unchanged: int = 0
    bytes_deduplicated: int = 0
    bytes_new: int = 0
    bytes_stored: int = 0
    packs: int = 0


class DiskDescription(Message):
    """What the committer knows of a disk that was stored."""

    key: int
    """The device key of the disk in the VM."""
    label: str
    capacity_bytes: int
    path: str = ""
    """Datastore path of the top descriptor at the time."""
    uuid: str = ""
    change_id: str = ""
    """The changeId of the snapshot's disk: the start of the next increment. Empty when there is none."""
    transport: str = "nas"
    details: dict[str, Any] = Field(default_factory=dict)


class ManifestDisk(DiskDescription):
    """A stored disk."""

    chunk_size_bytes: int
    page_roots: list[str]
    """Digest of each map page in hexadecimal; all zeros for a page of holes."""
    stats: ManifestStats = Field(default_factory=ManifestStats)


class Skipped(Message):
    """A part of the VM that is not in the backup, with the reason."""

    kind: str
    """`disk` or `file`."""
    key: int | None = None
    label: str
    reason: str
    deselected: bool = False
    """True: the VM group did not want it. Only what was wanted and is missing makes a backup `Partial`."""


class SnapshotRecord(Message):
    """The snapshot that was read."""

    name: str = ""
    moref: str = ""
    created: str = ""
    quiesced: bool = False
    details: dict[str, Any] = Field(default_factory=dict)


class CopiedFrom(Message):
    """Where a copy of a backup comes from."""

    repository_id: str
    media_agent: str = ""
    session_id: str
    committed: str
    """When the backup that was copied was committed there."""


class BackupContents(Message):
    """What the committer says of the VM; the repository adds what it stored."""

    disks: list[DiskDescription]
    skipped: list[Skipped] = Field(default_factory=list)
    snapshot: SnapshotRecord = Field(default_factory=SnapshotRecord)
    hardware: dict[str, Any] = Field(default_factory=dict)
    """The VM's configuration at the snapshot, enough to build the VM again. Opaque here."""
    warnings: list[str] = Field(default_factory=list)
    copied_from: CopiedFrom | None = None


class Manifest(Message):
    """The object `manifests/VCGUID/BACKUP`."""

    version: int = 1
    repository_id: str
    backup_id: str
    vc_guid: str
    vm_name: str
    vm_group: str
    job_id: str
    session_id: str
    point_in_time: str
    opened: str
    committed: str
    snapshot: SnapshotRecord
    hardware: dict[str, Any]
    disks: list[ManifestDisk]
    files: list[StoredFile]
    skipped: list[Skipped]
    warnings: list[str] = Field(default_factory=list)
    copied_from: CopiedFrom | None = None
    """None: this repository is where the backup was made."""
    idx: list[str]
    """The `idx/` objects that listed every chunk of this backup at the commit: a hint where to look first."""
    packs: int
    """How many packs held the backup's chunks at the commit; each was there, with the right size."""

    def disk(self, key: int) -> ManifestDisk:
        """Return the disk with a device key. Raises NotFoundError."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        raise NotFoundError(f"backup {self.backup_id} of VM {self.vm_name} has no disk with key {key}")

    def disk_map(self, repository: Repository, key: int) -> DiskMap:
        """Return the map of a disk. Raises NotFoundError, IntegrityError."""
        disk = self.disk(key)
        return DiskMap(repository, disk.capacity_bytes, disk.chunk_size_bytes, disk.page_roots)


class BackupIndex(Message):
    """The object `index/VCGUID/BACKUP`."""

    version: int = 1
    backup_id: str
    vc_guid: str
    status: str
    """`Completed`, `Partial` or `Failed`."""
    reason: str = ""
    access_node: str = ""
    steps: dict[str, str] = Field(default_factory=dict)
    """Step → time, as the caller writes both."""
    removal: dict[str, Any] = Field(default_factory=dict)
    """The record of the snapshot's removal. Opaque here."""
    certificate: dict[str, Any] = Field(default_factory=dict)
    """What of that record proves that the snapshot is gone. Opaque here; empty in indexes of earlier versions."""
    warnings: list[str] = Field(default_factory=list)
    details: dict[str, Any] = Field(default_factory=dict)


class BackupRef(NamedTuple):
    """Names one backup."""

    vc_guid: str
    backup_id: str


def manifest_name(ref: BackupRef) -> str:
    """Return the object name of a manifest."""
    return f"{_MANIFESTS}{_place(ref)}"


def index_name(ref: BackupRef) -> str:
    """Return the object name of a backup's index."""
    return f"index/{_place(ref)}"


def forgotten_name(ref: BackupRef) -> str:
    """Return the object name of a backup that retention has given up."""
    return f"forgotten/{_place(ref)}"


def _place(ref: BackupRef) -> str:
    folder = encode_segment(ref.vc_guid, what="VC.GUID", reversible=True)
    return f"{folder}/{encode_segment(ref.backup_id, what='backup id', reversible=True)}"


def read_manifest(repository: Repository, ref: BackupRef) -> Manifest:
    """Read a manifest. Raises NotFoundError, IntegrityError, UnsupportedError."""
    name = manifest_name(ref)
    try:
        body = repository.get(Kind.MANIFEST, name)
    except NotFoundError as error:
        raise NotFoundError(f"there is no backup {ref.backup_id} of VM {ref.vc_guid}") from error
    manifest = parse_object(Manifest, body, name)
    if (manifest.vc_guid, manifest.backup_id) != ref:
        raise IntegrityError(f"object {name} is damaged: it describes another backup")
    return manifest


def write_index(repository: Repository, index: BackupIndex) -> None:
    """Step 14: write the index of a committed backup. The same index a second time is fine.

    Raises NotFoundError when the backup is not committed, AlreadyExistsError when another index is there.
    """
    ref = BackupRef(index.vc_guid, index.backup_id)
    name = index_name(ref)
    if not repository.store.exists(manifest_name(ref)):
        raise NotFoundError(f"there is no backup {ref.backup_id} of VM {ref.vc_guid}: commit it first")
    try:
        repository.put_same(Kind.INDEX, name, canonical_json(index.model_dump()))
    except AlreadyExistsError as error:
        raise AlreadyExistsError(
            f"backup {ref.backup_id} of VM {ref.vc_guid} has another index already"
        ) from error


def read_index(repository: Repository, ref: BackupRef) -> BackupIndex | None:
    """Read a backup's index; None when step 14 was not reached."""
    name = index_name(ref)
    if not repository.store.exists(name):
        return None
    return parse_object(BackupIndex, repository.get(Kind.INDEX, name), name)


def list_backups(repository: Repository, vc_guid: str | None = None) -> Iterator[BackupRef]:
    """Yield the committed backups, by VC.GUID and then by time. Reads no manifest: a damaged one is listed too."""
    prefix = _MANIFESTS
    if vc_guid is not None:
        prefix += f"{encode_segment(vc_guid, what='VC.GUID', reversible=True)}/"
    for found in repository.store.list(prefix):
        yield backup_of(found.name, _MANIFESTS)


def backup_of(name: str, prefix: str) -> BackupRef:
    """Return the backup that an object `PREFIX/VCGUID/BACKUP` is of. Raises IntegrityError for another name."""
    folder, _, backup_id = name.removeprefix(prefix).partition("/")
    if not backup_id or "/" in backup_id:
        raise IntegrityError(f"object {name} does not belong into {prefix}")
    return BackupRef(decode_segment(folder), decode_segment(backup_id))


def latest_manifest(repository: Repository, vc_guid: str) -> Manifest | None:
    """Return the newest committed backup of a VM, or None."""
    refs = list(list_backups(repository, vc_guid))
    if not refs:
        return None
    return read_manifest(repository, max(refs, key=lambda ref: ref.backup_id))


_MAX_TEXT = 4096


def check_contents(contents: BackupContents) -> None:
    """Refuse a description that could not be restored. Raises InvalidInputError."""
    keys = [disk.key for disk in contents.disks]
    if len(set(keys)) != len(keys):
        raise InvalidInputError("two disks of the backup have the same key")
    for disk in contents.disks:
        if disk.capacity_bytes <= 0 or len(disk.label) > _MAX_TEXT:
            raise InvalidInputError(
                f"disk {disk.key}: capacity {disk.capacity_bytes} or label is not possible"
            )
