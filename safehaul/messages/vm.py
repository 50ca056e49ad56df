"""What BackupVm is given and tells: options, input, the VM's report."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from safehaul.messages.base import Message
from safehaul.messages.disks import DiskSelection


class VmStatus(StrEnum):
    """How a VM's backup ended. `Completed` promises everything of mission.md's second promise."""

    COMPLETED = "Completed"
    PARTIAL = "Partial"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


MIN_FREE_BYTES = 10 * 2**30
MAX_HOLD_S = 12 * 3600.0
PAUSE_HOLD_S = 600.0
REMOVAL_HANDOVER_AFTER_S = 600.0
NODE_DEAD_AFTER_S = 25.0


class VmOptions(Message):
    """The VM group's options that concern each VM."""

    quiesce: bool = False
    quiesce_fallback: bool = False
    """Take a crash-consistent snapshot when quiescing is refused (and say so in the report)."""
    debt: str = "refuse"
    """`refuse` or `warn`: what to do with a VM that needed consolidation before we came."""
    pending_snapshot: str = "refuse"
    """`refuse` or `proceed`: what to do with a VM whose last backup's snapshot is still being removed."""
    min_free_bytes: int = MIN_FREE_BYTES
    """Least free space of each of the VM's datastores before a snapshot is made, and while it is held."""
    max_hold_s: float = MAX_HOLD_S
    """Longest time that a snapshot is held."""
    pause_hold_s: float = PAUSE_HOLD_S
    """Longest time that it is held for one pause."""
    removal_handover_s: float = REMOVAL_HANDOVER_AFTER_S
    """After this long a stuck removal is handed to RemoveSnapshot."""
    node_dead_after_s: float = NODE_DEAD_AFTER_S
    """An access node that gives no sign for this long is dead: its VMs go on on another one."""
    disks: DiskSelection = Field(default_factory=DiskSelection)
    """Which disks are wanted."""


class BackupVmInput(Message):
    """BackupVm's input, given by BackupJob."""

    job_id: str
    job_workflow_id: str
    vm_group: str
    vcenter: str
    media_agent: str
    node: str
    vc_guid: str
    name: str
    moref: str
    installation_id: str
    namespace_id: str
    given_by: str = "plan"
    options: VmOptions = Field(default_factory=VmOptions)


class DiskReport(Message):
    """One disk in a VM's report; bytes."""

    key: int
    label: str
    transport: str
    reason: str = ""
    format: str = ""
    bytes_capacity: int = 0
    bytes_read: int = 0
    bytes_zero: int = 0
    bytes_deduplicated: int = 0
    bytes_stored: int = 0
    seconds: float = 0.0


class SkippedFile(Message):
    """A file of the VM that is not in the backup although it should be."""

    path: str
    """Datastore path. Untrusted."""
    type: str = ""
    """As `layoutEx` says."""
    reason: str


class VmReport(Message):
    """What happened to one VM."""

    vc_guid: str
    name: str
    status: VmStatus
    reason: str = ""
    node: str = ""
    given_by: str = "plan"
    """`plan`, or `request` when a dry node asked for it (step 15)."""
    backup_id: str = ""
    child_id: str = ""
    snapshot_moref: str = ""
    snapshot_pending: bool = False
    """True: the snapshot's removal is still under way in a RemoveSnapshot workflow."""
    disks: list[DiskReport] = Field(default_factory=list)
    skipped_files: list[SkippedFile] = Field(default_factory=list)
    """Files that are missing from the backup, each with its reason."""
    warnings: list[str] = Field(default_factory=list)
    step_seconds: dict[str, float] = Field(default_factory=dict)
    bytes_capacity: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None


class VmProgressDetail(Message):
    """Answer of BackupVm's query `progress`."""

    vc_guid: str
    name: str
    node: str
    step: int
    stage: str
    snapshot_moref: str = ""
    disks_done: int = 0
    disks: int = 0
    paused_since: datetime | None = None
