"""The catalogue's rows as plain models: what callers give and get."""

from __future__ import annotations

from pydantic import Field

from safehaul.messages.base import Message


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
