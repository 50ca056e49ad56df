"""What the steps of a VM's backup exchange: the snapshot, transports, files, transfers, the removal."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from safehaul.messages.base import Message
from safehaul.messages.disks import DiskSelection
from safehaul.messages.inventory import VmDisk, VmState
from safehaul.messages.vm import SkippedFile, VmOptions, VmReport


class VmRef(Message):
    """Which VM of which job a step works on."""

    job_id: str
    vcenter: str
    vc_guid: str
    name: str
    moref: str
    node: str
    media_agent: str


class InspectInput(Message):
    """Input of the look before step 6."""

    vm: VmRef
    options: VmOptions
    own: str = ""
    """Description of the snapshot that this very backup may have made before its workflow was reset: it is adopted."""


class HoldInput(Message):
    """Input of the looks while a snapshot is held."""

    vm: VmRef
    options: VmOptions
    created_at: datetime
    """When vCenter made the snapshot."""


class Inspection(Message):
    """The VM before we touched it (vmware-facts 13): what any later state is compared with."""

    state: VmState
    warnings: list[str] = Field(default_factory=list)


class SnapshotPlan(Message):
    """The snapshot's identity, known before it is made."""

    name: str
    description: str


class CreateSnapshotInput(Message):
    """Step 6's input."""

    vm: VmRef
    plan: SnapshotPlan
    options: VmOptions


class SnapshotRef(Message):
    """Step 7's result: the snapshot that vCenter made."""

    moref: str
    name: str
    description: str
    created: str
    quiesced: bool = False
    warnings: list[str] = Field(default_factory=list)
    unheard: bool = False
    """An earlier try may have asked vCenter too and had no answer: what it asked for may be made yet, beside this."""


class FileIdentity(Message):
    """What tells one file on the filer from another, and from itself after a change."""

    path: str
    size_bytes: int
    mtime_ns: int
    file_id: int | None = None


class DiskTransport(Message):
    """Step 8's verdict for one disk."""

    disk: VmDisk
    transport: str
    """`nas`; `none` (it cannot go) or `deselected` (the VM group does not want it), each with the reason."""
    reason: str = ""
    export: str = ""
    nfs_version: str = ""
    """`3` or `4.1`, as this node really speaks it with the filer, whatever the hosts do; empty when unknown."""
    format: str = ""
    chain_depth: int = 0
    extents: list[str] = Field(default_factory=list)
    identity: list[FileIdentity] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    """What is odd about the disk and does not keep it from being read."""


class CheckTransportInput(Message):
    """Step 8's input."""

    vm: VmRef
    snapshot: SnapshotRef
    disks: DiskSelection = Field(default_factory=DiskSelection)


class TransportReport(Message):
    """Step 8's result."""

    disks: list[DiskTransport]
    hardware: dict[str, Any]
    """`VmHardware` of the snapshot's own config, as plain JSON: what a restore is built from."""

    @property
    def readable(self) -> list[DiskTransport]:
        """Disks that go through the NAS transport."""
        return [disk for disk in self.disks if disk.transport == "nas"]

    @property
    def skipped(self) -> list[DiskTransport]:
        """Selected disks that do not, each with its reason."""
        return [disk for disk in self.disks if disk.transport not in ("nas", "deselected")]

    @property
    def unread_paths(self) -> list[str]:
        """Datastore paths of the chains of all disks that are not read."""
        unread = [item.disk for item in self.disks if item.transport != "nas"]
        return [path for disk in unread for path in (disk.path, *disk.parent_paths) if path]

    @property
    def deselected(self) -> list[DiskTransport]:
        """Disks that the VM group does not want, each with its reason."""
        return [disk for disk in self.disks if disk.transport == "deselected"]


class SpooledFile(Message):
    """One of the VM's files on the access node's spool."""

    name: str
    type: str
    path: str
    """Datastore path that it was read from."""
    spool_name: str
    """Its name in the spool, which is never the file's own."""
    size_bytes: int


class DownloadInput(Message):
    """Step 9's input."""

    vm: VmRef
    snapshot: SnapshotRef
    unread: list[str] = Field(default_factory=list)
    """Datastore paths of the chains of disks that are not in the backup: their descriptors belong to them."""


class DownloadedFiles(Message):
    """Step 9's result."""

    files: list[SpooledFile]
    skipped: list[str] = Field(default_factory=list)
    """Warnings: of what need not be in the backup."""
    skipped_files: list[SkippedFile] = Field(default_factory=list)
    """What is missing from the backup: the VM is Partial."""


class OpenBackupInput(Message):
    """Step 10's input for the MediaAgent."""

    vm: VmRef
    session_id: str
    vm_group: str
    snapshot: SnapshotRef


class BackupSession(Message):
    """Step 10's result: the open backup."""

    session_id: str
    previous_backup_id: str = ""
    resumed: bool = False


class StoreFilesInput(Message):
    """Step 10's input for the access node: the VM's files go into the backup."""

    vm: VmRef
    session: BackupSession
    files: DownloadedFiles


class StoredFile(Message):
    """A VM's file in the repository, named by its datastore path."""

    name: str
    size_bytes: int


class StoredFiles(Message):
    """Step 10's second result."""

    files: list[StoredFile]


class TransferInput(Message):
    """Step 11's input: one disk."""

    vm: VmRef
    session: BackupSession
    snapshot: SnapshotRef
    transport: DiskTransport
    options: VmOptions
    snapshot_created_at: datetime
    done_before_bytes: int = 0
    """Capacity of the VM's disks that have been read already: told with the heartbeats."""


class TransferResult(Message):
    """Step 11's result for one disk; bytes."""

    disk_key: int
    label: str
    bytes_capacity: int
    bytes_read: int
    """What the filer was asked for by this try, redo logs and grain tables included, and `bytes_resumed`."""
    bytes_resumed: int = 0
    """Committed by an earlier try and not read again."""
    bytes_zero: int = 0
    bytes_deduplicated: int = 0
    bytes_stored: int = 0
    packs: int = 0
    seconds: float = 0.0


class FinishInput(Message):
    """Step 12's input for the access node."""

    vm: VmRef
    snapshot: SnapshotRef
    disks: list[DiskTransport]


class ReadingDone(Message):
    """Step 12, access node: every handle is closed and the source was the same at the end as at the start."""

    disk_identities: dict[str, list[FileIdentity]]
    """Disk key (as text) → identity at the end."""
    snapshot_moref: str


class SealInput(Message):
    """Step 12's input for the MediaAgent."""

    vm: VmRef
    vm_group: str
    job_workflow_id: str
    session: BackupSession
    snapshot: SnapshotRef
    transport: TransportReport
    files: StoredFiles
    transfers: list[TransferResult]
    done: ReadingDone
    skipped_files: list[SkippedFile] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    """What was said of the VM so far."""


class SealedBackup(Message):
    """Step 12's result: restorable from here."""

    backup_id: str
    packs_verified: int
    bytes_verified: int


class LeaveInput(Message):
    """What becomes of a backup that will not be finished."""

    vm: VmRef
    session_id: str
    keep: bool = True
    """Later backups find what was stored; else it is given up."""


class LeftUnfinished(Message):
    """What is left of it."""

    packs: int = 0
    packs_listed: int = 0
    """Of these, packs whose content later backups need not store again."""


class RemovalInput(Message):
    """Step 13's input."""

    vm: VmRef
    plan: SnapshotPlan
    moref: str = ""
    """Empty when the creation's answer was lost: then the snapshot is found by name and marker."""
    before: VmState | None = None
    within_s: float = 120.0
    """A try ends after this long, so that it holds its worker's slot no longer; vCenter's task goes on."""


class Removal(Message):
    """Step 13's result: the record that step 14 keeps."""

    gone: bool
    """Proved: nothing of the snapshot is left, because it was removed or because its VM was deleted."""
    vm_gone: bool = False
    """VCenter knows the VM no more. With `gone` false nobody could look whether its files are gone too."""
    pending: bool = False
    """Handed to RemoveSnapshot: the job goes on, the removal is retried without limit."""
    moref: str = ""
    record: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""


class RemoveSnapshotInput(Message):
    """RemoveSnapshot's input: a removal that must not be forgotten."""

    removal: RemovalInput
    vm_group: str = ""
    reason: str = ""
    tries: int = 0
    """Of earlier runs of this workflow (continue-as-new)."""
    since: datetime | None = None
    """When its first run began; None in the first run."""


class MarkInput(Message):
    """Step 14's input for the access node."""

    vm: VmRef
    snapshot: SnapshotRef
    removal: Removal


class CompletionMark(Message):
    """Step 14, access node: it looked again, the snapshot is gone, and its spool is clean."""

    node: str
    marked_at: datetime
    snapshot_absent: bool
    spool_removed: bool


class IndexInput(Message):
    """Step 14's input for the MediaAgent."""

    vm: VmRef
    session: BackupSession
    backup_id: str
    mark: CompletionMark
    removal: Removal
    report: VmReport
    asked_at: datetime | None = None
    """When the snapshot was asked for; missing in what earlier versions recorded."""


class IndexWritten(Message):
    """Step 14's result."""

    backup_id: str
    name: str
    warnings: list[str] = Field(default_factory=list)
    """The catalogue could not be written: it only lists what the repository holds."""


class AskInput(Message):
    """Step 15's input."""

    job_id: str
    node: str
