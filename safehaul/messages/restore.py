"""What RestoreVm and RestoreDisk are asked, plan and answer."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from safehaul.messages.base import Message, Request

Name = Annotated[str, StringConstraints(min_length=1, max_length=80)]
"""Of a VM, datastore, network, …: vSphere allows 80 characters."""
BackupId = Annotated[str, StringConstraints(min_length=1, max_length=400)]
"""As `safehaul backups list` shows it: `VC.GUID/TIME-ID`."""
MAX_NETWORKS = 100
_OF_A_NEW_VM = ("name", "datastore", "datacenter", "folder", "cluster", "resource_pool", "host")


class MacPolicy(StrEnum):
    """Which addresses the new VM's network cards get."""

    NEW = "new"
    """vCenter assigns new ones: the original may live on."""
    KEEP = "keep"
    """Those that the backup recorded: refused while another VM of that vCenter has one of them."""


class RestoreKind(StrEnum):
    """Where a restore goes."""

    NEW_VM = "new-vm"
    IN_PLACE = "in-place"
    DISK = "disk"


class _Parties(Request):
    """Who does it; the defaults fit a site with one of each."""

    media_agent: str | None = None
    """Default: the only MediaAgent of the configuration."""
    vcenter: str | None = None
    """Default: the vCenter that the backup came from."""
    access_node: str | None = None
    """Default: the first access node of the configuration that answers."""


class RestoreVmRequest(_Parties):
    """What a person gives to RestoreVm: which backup becomes which new VM and where, or goes over its own VM."""

    backup: BackupId
    name: Name | None = None
    """Name of the new VM."""
    datastore: Name | None = None
    """NAS datastore that takes the new VM's directory."""
    datacenter: str = Field(default="", max_length=80)
    """Its datacentre (name or moref), where several datacentres have a datastore of that name."""
    folder: str = Field(default="", max_length=1000)
    """Inventory folder below the datacentre's VM folder; empty: that folder itself."""
    cluster: str = Field(default="", max_length=80)
    """Cluster, or lone host; empty: the first by name that mounts the datastore."""
    resource_pool: str = Field(default="", max_length=80)
    """Resource pool of that cluster; empty: its root pool."""
    host: str = Field(default="", max_length=255)
    """ESXi host; empty: vCenter chooses."""
    mac: MacPolicy = MacPolicy.NEW
    networks: dict[Name, Name] = Field(default_factory=dict, max_length=MAX_NETWORKS)
    """Recorded network → network that the card gets instead. Others keep the recorded name's network."""
    connect: bool = False
    """True connects the network cards at power on. Default: all are disconnected."""
    power_on: bool = False
    """Power the VM on once everything is verified."""
    in_place: bool = False
    """Restore over the VM itself: it gets new disks, and keeps its identity and its hardware."""
    confirm: str = Field(default="", max_length=80)
    """In place only: the VM's name, as a sign that this VM is meant."""
    delete_old_disks: bool = False
    """In place only: delete the old disks once the new ones are verified and attached. Default: they are kept."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.in_place:
            if not self.confirm:
                raise _wrong("confirm", "a restore in place needs the VM's name here")
            for field in (*_OF_A_NEW_VM, "networks"):
                if getattr(self, field):
                    raise _wrong(field, "a restore in place keeps the VM where and as it is")
            if self.mac is not MacPolicy.NEW or self.connect:
                field = "connect" if self.connect else "mac"
                raise _wrong(field, "a restore in place leaves the VM's network cards alone")
            return self
        for field in ("name", "datastore"):
            if not getattr(self, field):
                raise _wrong(field, "a restore as a new VM needs it (or say in_place)")
        for field in ("confirm", "delete_old_disks"):
            if getattr(self, field):
                raise _wrong(field, "belongs to in_place only")
        return self


class RestoreDiskRequest(_Parties):
    """What a person gives to RestoreDisk: which disk of which backup becomes a new disk of which VM."""

    backup: BackupId
    disk: Name
    """The disk's key or label, as `safehaul backups show` lists it."""
    to_vm: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """The VM: its VC.GUID, or its name when no other VM of that vCenter has it."""
    datastore: Name | None = None
    """NAS datastore of the new disk, in the VM's datacentre; default: the VM's own."""


def _wrong(field: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("restore", "{field}: {reason}", {"field": field, "reason": reason})


class OpenRestoreInput(Message):
    """What the CommServe resolves for RestoreVm."""

    request: RestoreVmRequest


class OpenDiskRestoreInput(Message):
    """What the CommServe resolves for RestoreDisk."""

    request: RestoreDiskRequest


class RestoreSettings(Message):
    """A restore's parties and wishes, resolved. Fields of other kinds keep their defaults."""

    kind: RestoreKind
    vc_guid: str
    backup_id: str
    media_agent: str
    vcenter: str
    access_nodes: list[str]
    name: str
    """Of the new VM; else how the person named the VM."""
    datastore: str = ""
    datacenter: str = ""
    folder: str = ""
    cluster: str = ""
    resource_pool: str = ""
    host: str = ""
    mac: MacPolicy = MacPolicy.NEW
    networks: dict[str, str] = Field(default_factory=dict)
    connect: bool = False
    power_on: bool = False
    delete_old_disks: bool = False
    disk_key: int | None = None

    @property
    def backup(self) -> str:
        """As a person writes it."""
        return f"{self.vc_guid}/{self.backup_id}"


class RestoreRef(Message):
    """Which restore a step works on. `owner` marks what was written as ours across tries."""

    settings: RestoreSettings
    node: str
    owner: str


class PlannedDisk(Message):
    """One disk to write."""

    key: int
    """In the backup."""
    label: str
    capacity_bytes: int
    path: str
    """Datastore path of the new descriptor; its extent lies beside it."""
    controller_key: int = 0
    unit_number: int = 0
    """Its place in an existing VM."""
    replaces: str = ""
    """In place: datastore path of the descriptor that the VM has at that place now; empty: nothing."""
    uuid: str = ""
    """In place: the disk's own UUID, which guests may know it by. Else the new disk gets one of its own."""


class CardReport(Message):
    """A network card of the restored VM."""

    label: str
    network: str
    mac: str = ""
    """Empty until vCenter has given it one."""
    connected: bool = False
    """At power on."""


class RestorePlan(Message):
    """What will be written, and what cannot be."""

    directory: str
    """Datastore path of the directory that takes the new files (that of the .vmx for disks in several)."""
    disks: list[PlannedDisk]
    vm_moref: str = ""
    """Of the existing VM."""
    vm_name: str = ""
    vc_guid: str = ""
    new_directory: bool = False
    """True: the directory for a single disk is made by us."""
    datastore_morefs: dict[str, str] = Field(default_factory=dict)
    """Which datastores the names in its paths mean; missing in plans of earlier versions."""
    missing_disks: list[str] = Field(default_factory=list)
    """Disks that the backup skipped, each with its reason: a restored VM lacks them."""
    warnings: list[str] = Field(default_factory=list)


class RestoreStep(Message):
    """A step of a planned restore."""

    ref: RestoreRef
    plan: RestorePlan


class RestoreDiskInput(Message):
    """One disk's step."""

    ref: RestoreRef
    plan: RestorePlan
    disk: PlannedDisk


class DiscardInput(Message):
    """What a restore that ends early leaves; without a plan only what `ref` alone names."""

    ref: RestoreRef
    plan: RestorePlan | None = None


class PowerOnInput(Message):
    """Which VM is powered on."""

    ref: RestoreRef
    moref: str


class RestoredDisk(Message):
    """One disk, written, read back and compared."""

    key: int
    label: str
    capacity_bytes: int
    bytes_written: int
    bytes_compared: int
    seconds: float
    path: str = ""


class RestoredVm(Message):
    """The VM in vCenter when its restore is committed."""

    moref: str
    vc_guid: str = ""
    cards: list[CardReport] = Field(default_factory=list)


class RegisteredVm(Message):
    """The new VM's registration."""

    moref: str
    vmx_path: str


class OldDisk(Message):
    """A disk that a restore in place has taken off the VM."""

    path: str
    removed: bool = False
    reason: str = ""
    """Why it is still there."""


class OldDisks(Message):
    """What became of them."""

    disks: list[OldDisk]


class RestoreStatus(StrEnum):
    """How a restore stands or ended. Partial: restored, but something that was asked for or recorded is missing."""

    RUNNING = "Running"
    RESTORED = "Restored"
    PARTIAL = "Partial"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class RestoreReport(Message):
    """The result of RestoreVm and RestoreDisk; a failed one carries it as its failure's detail."""

    kind: RestoreKind
    status: RestoreStatus
    reason: str = ""
    """Why it is not Restored."""
    backup: str
    name: str
    vc_guid: str = ""
    """Of the VM that has the disks now."""
    moref: str = ""
    node: str = ""
    directory: str = ""
    disks: list[RestoredDisk] = Field(default_factory=list)
    cards: list[CardReport] = Field(default_factory=list)
    powered_on: bool = False
    old_disks: list[OldDisk] = Field(default_factory=list)
    missing_disks: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    started_at: datetime
    ended_at: datetime


class RestoreProgress(Message):
    """Answer of the query `progress`. The bytes of the disk that is being restored stand in its step's heartbeat."""

    status: RestoreStatus = RestoreStatus.RUNNING
    stage: str = "starting"
    name: str = ""
    node: str = ""
    disk: str = ""
    """Label of the disk that is being restored."""
    disks_done: int = 0
    disks: int = 0
    bytes_done: int = 0
    """Of whole disks: each byte counts twice, written and compared."""
    bytes_total: int = 0
