"""What RestoreVm is asked, plans and answers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from safehaul.messages.base import Message, Request


class RestoreVmRequest(Request):
    """What a person gives to RestoreVm: which backup becomes which new VM, and where."""

    backup: str = Field(min_length=1, max_length=400)
    """Backup id as `safehaul backups list` shows it: `VC.GUID/TIME-ID`."""
    name: str = Field(min_length=1, max_length=80)
    """Name of the new VM. vSphere allows 80 characters."""
    datastore: str = Field(min_length=1, max_length=80)
    media_agent: str | None = None
    """Default: the only MediaAgent of the configuration."""
    vcenter: str | None = None
    """Default: the vCenter that the backup came from."""
    access_node: str | None = None
    """Default: the first access node of the configuration that answers."""
    folder: str = ""
    """Inventory folder below the datacentre's VM folder; empty: the root."""
    keep_mac: bool = False
    """True keeps the MAC addresses: only when the original is gone, else two VMs share them."""


class OpenRestoreInput(Message):
    """What the CommServe resolves."""

    request: RestoreVmRequest


class RestoreSettings(Message):
    """A restore's parties, resolved."""

    vc_guid: str
    backup_id: str
    name: str
    datastore: str
    folder: str
    media_agent: str
    vcenter: str
    access_nodes: list[str]
    keep_mac: bool = False


class RestoreRef(Message):
    """Which restore a step works on. `owner` marks the new directory as ours across tries."""

    settings: RestoreSettings
    node: str
    owner: str


class RestoreDisk(Message):
    """One disk to write."""

    key: int
    label: str
    capacity_bytes: int
    file_name: str
    """Name of the descriptor in the new VM's directory."""


class RestorePlan(Message):
    """What will be written, and what cannot be."""

    directory: str
    """Datastore path of the new VM's directory."""
    disks: list[RestoreDisk]
    missing_disks: list[str] = Field(default_factory=list)
    """Disks that the backup skipped, each with its reason: the restored VM lacks them."""
    warnings: list[str] = Field(default_factory=list)


class RestoreStep(Message):
    """A step of a planned restore."""

    ref: RestoreRef
    plan: RestorePlan


class RestoreDiskInput(Message):
    """One disk's step."""

    ref: RestoreRef
    plan: RestorePlan
    disk: RestoreDisk


class RestoredDisk(Message):
    """One disk, written, read back and compared."""

    key: int
    label: str
    capacity_bytes: int
    bytes_written: int
    bytes_compared: int
    seconds: float


class RegisteredVm(Message):
    """The new VM in vCenter."""

    moref: str
    vmx_path: str


class RestoreReport(Message):
    """RestoreVm's result."""

    backup: str
    name: str
    moref: str
    directory: str
    disks: list[RestoredDisk]
    missing_disks: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    started_at: datetime
    ended_at: datetime
