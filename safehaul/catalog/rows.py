"""The catalogue's rows as plain models: what callers give and get."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from safehaul.messages.base import Message


class BackupPlace(NamedTuple):
    """Where a backup stands in the list of all, which is ordered by these, the greatest first."""

    committed: str
    backup_id: str
    vc_guid: str
    media_agent: str


class DiskRow(Message):
    """One disk of a backup; bytes."""

    key: int
    label: str
    transport: str
    reason: str = ""
    capacity_bytes: int = 0
    read_bytes: int = 0
    stored_bytes: int = 0


class BackupRow(Message):
    """One backup. Keyed by media agent, VC.GUID and backup id."""

    vc_guid: str
    backup_id: str
    vm_name: str
    vm_group: str
    job_id: str
    media_agent: str
    status: str
    """The index's status; `Unindexed` when step 14 was not reached."""
    reason: str = ""
    access_node: str = ""
    vcenter: str = ""
    snapshot_created: str = ""
    committed: str
    capacity_bytes: int = 0
    read_bytes: int = 0
    stored_bytes: int = 0
    disks: list[DiskRow] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @property
    def place(self) -> BackupPlace:
        """Where the list goes on after this backup."""
        return BackupPlace(self.committed, self.backup_id, self.vc_guid, self.media_agent)


class BackupSum(Message):
    """Sums over the backups of one MediaAgent, VM group and status; bytes."""

    media_agent: str
    vm_group: str
    status: str
    backups: int
    oldest: str
    """When the oldest was committed, as the repository writes times."""
    newest: str
    capacity_bytes: int
    read_bytes: int
    stored_bytes: int


class VmRow(Message):
    """A VM that has backups: a row for each name and VM group that they have."""

    media_agent: str
    vc_guid: str
    vm_group: str
    vm_name: str


class JobRow(Message):
    """One job. Keyed by job id."""

    job_id: str
    workflow_id: str
    vm_group: str
    status: str
    reason: str = ""
    coordinator: str = ""
    started: str
    ended: str
    vms: int = 0
    completed: int = 0
    partial: int = 0
    failed: int = 0
    cancelled: int = 0
    read_bytes: int = 0
    stored_bytes: int = 0


class JobVmRow(Message):
    """One VM in one job. Keyed by job id and VC.GUID."""

    job_id: str
    vc_guid: str
    vm_name: str
    status: str
    reason: str = ""
    access_node: str = ""
    backup_id: str = ""
    read_bytes: int = 0
    stored_bytes: int = 0
