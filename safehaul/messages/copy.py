"""What a copy of backups is asked, and what it did: the input and the report of CopyBackups."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, model_validator

from safehaul.messages.base import Message, Request

FAILURES_LIMIT = 100
"""Backups that could not be copied which a report lists; the rest is only counted."""


class CopyBackupsRequest(Request):
    """What a person gives to CopyBackups: `{"source": "vault"}`, and more to copy less or elsewhere."""

    source: str = Field(min_length=1, max_length=200)
    """MediaAgent that has the backups."""
    target: str = Field(default="", max_length=200)
    """MediaAgent that gets them; default: the source's `copy_to`."""
    vm_group: str = Field(default="", max_length=200)
    """Only backups of this VM group."""
    vms: list[str] = Field(default_factory=list, max_length=1000)
    """Only these VMs: names or VC.GUIDs."""
    since: datetime | None = None
    """Only backups that were begun at this time or later."""
    latest_only: bool = False
    """Only each VM's newest backup."""
    all: bool = False
    """Also backups that are older than the newest one that the target has of their VM."""
    going_on: CopyState | None = None
    """Of the workflow's earlier run, which gives it; nobody types it."""

    @model_validator(mode="after")
    def _plain(self) -> CopyBackupsRequest:
        if self.source == self.target:
            msg = f"target: {self.target!r} is the source itself"
            raise ValueError(msg)
        if self.latest_only and self.all:
            msg = "give latest_only or all, not both"
            raise ValueError(msg)
        if self.since is not None and self.since.tzinfo is None:
            msg = "since: say the time zone, as in 2026-11-26T00:00:00Z"
            raise ValueError(msg)
        return self


class CopyItem(Message):
    """One backup that is to be copied."""

    vc_guid: str
    backup_id: str
    vm_name: str = ""
    capacity_bytes: int = 0


class CopyPageInput(Message):
    """Input of `plan_copy`."""

    request: CopyBackupsRequest
    after: str = ""


class CopyPage(Message):
    """Backups that are to be copied next, in their order."""

    items: list[CopyItem] = Field(default_factory=list)
    next: str = ""
    """Where the next page begins."""
    done: bool = True


class CopyBackupInput(Message):
    """Input of `copy_backup`."""

    source: str
    target: str
    item: CopyItem


class CopiedBackup(Message):
    """Result of `copy_backup`."""

    already: bool = False
    gone: bool = False
    """The source's retention has given it up since it was planned."""
    bytes_capacity: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0
    warnings: list[str] = Field(default_factory=list)


class CopyFailure(Message):
    """A backup that could not be copied."""

    vc_guid: str
    backup_id: str
    vm_name: str = ""
    reason: str


class CopyReport(Message):
    """What a copy did."""

    source: str = ""
    target: str = ""
    copied: int = 0
    already: int = 0
    """Copied by another process meanwhile."""
    gone: int = 0
    """Given up by the source's retention meanwhile."""
    failed: int = 0
    bytes_capacity: int = 0
    """Of the disks of the copied backups."""
    bytes_read: int = 0
    """From the source."""
    bytes_stored: int = 0
    """In the target."""
    failures: list[CopyFailure] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class CopyProgress(Message):
    """Answer of the query `progress`."""

    stage: str = "starting"
    current: CopyItem | None = None
    report: CopyReport = Field(default_factory=CopyReport)


class CopyStatus(Message):
    """Heartbeat of `copy_backup`."""

    doing: str
    done_bytes: int = 0
    capacity_bytes: int = 0
    read_bytes: int = 0


class CopyState(Message):
    """What CopyBackups hands to its next run, beside the request."""

    after: str
    report: CopyReport
    started_at: datetime


CopyBackupsRequest.model_rebuild()
