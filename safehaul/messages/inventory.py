"""What discovery tells of vCenter's inventory: VMs, their disks, and the NAS volumes below them."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from safehaul.messages.base import Message


class DiskBacking(StrEnum):
    """How a virtual disk is backed, as far as the NAS transport cares."""

    FLAT = "flat"
    """An ordinary disk, whatever the format of its redo logs."""
    RDM_PHYSICAL = "rdm-physical"
    RDM_VIRTUAL = "rdm-virtual"
    OTHER = "other"


class UnidentifiedReason(StrEnum):
    """Why a VM of the inventory cannot be told by a VC.GUID."""

    NOT_CONNECTED = "not-connected"
    """Orphaned, inaccessible, invalid or disconnected, and therefore without a readable configuration."""
    NO_CONFIGURATION = "no-configuration"
    """No `config` or no `instanceUuid`, though connected: being created, or no permission."""
    DUPLICATE = "duplicate"
    """Another VM of this vCenter has the same VC.GUID."""
    UNREADABLE = "unreadable"
    """VCenter's answer about it cannot be understood."""


class InventoryDetail(StrEnum):
    """What discovery reads only when a rule asks for it."""

    TAGS = "tags"
    """From vCenter's REST endpoint, with a session of its own."""
    ATTRIBUTES = "attributes"
    """Custom attributes."""


class Unidentified(Message):
    """A VM that discovery saw and cannot tell by a VC.GUID of its own. Names are untrusted."""

    moref: str
    name: str
    kind: UnidentifiedReason
    reason: str
    """For a person: what is wrong and what can be done."""
    vcenter: str = ""
    connection_state: str = ""
    datacenter: str = ""
    folder: str = ""
    vc_guid: str = ""
    """Only for a duplicate."""
    record: VmRecord | None = None
    """What is known of it all the same, so that rules can tell whether it was to be backed up."""


class DatastoreRef(Message):
    """Which datastore. A name is unique in its datacentre only, so the moref tells two of one name apart."""

    name: str
    moref: str = ""
    """Empty in what earlier versions recorded: then the name alone says which."""
    datacenter: str = ""
    """Name of its datacentre, for messages."""

    @property
    def key(self) -> str:
        """What plans compare; readable, and unique in a vCenter."""
        return f"{self.name} ({self.moref})" if self.moref else self.name


class NasVolume(Message):
    """A datastore as one ESXi host sees it (`HostNasVolume` for NFS; other types keep only name and kind)."""

    datastore: str
    """Its name: unique in its datacentre only."""
    moref: str
    datacenter: str = ""
    datacenter_moref: str = ""
    """Datacentre that has it; empty when the account may not see that."""
    type: str
    """`NFS` (v3), `NFS41`, or another filesystem's name such as `VMFS`."""
    remote_host: str = ""
    remote_path: str = ""
    security_type: str = ""
    """`AUTH_SYS` or empty; `SEC_KRB5`, `SEC_KRB5I` are refused by the NAS transport."""
    capacity_bytes: int = 0
    free_bytes: int = 0
    accessible: bool = True

    @property
    def is_nas(self) -> bool:
        """True for NFS v3 and v4.1 datastores."""
        return self.type in {"NFS", "NFS41"}


class VmDisk(Message):
    """One virtual disk, from a VM's (or a snapshot's) `config.hardware.device`."""

    key: int
    """Device key: unique in the VM, stable over snapshots."""
    label: str
    capacity_bytes: int
    path: str
    """Datastore path of the top descriptor: `[datastore] folder/name.vmdk`. Untrusted."""
    parent_paths: list[str] = Field(default_factory=list)
    """Descriptors below `path`, nearest first; empty for a disk without a chain."""
    backing: DiskBacking = DiskBacking.FLAT
    mode: str = "persistent"
    sharing: str = "sharingNone"
    uuid: str = ""
    change_id: str = ""
    controller_key: int = 0
    unit_number: int = 0
    key_id: str = ""
    """Not empty: the disk is encrypted by vSphere, its bytes on the filer are ciphertext."""

    @property
    def independent(self) -> bool:
        """True for modes that a VM snapshot does not freeze."""
        return self.mode.startswith("independent")


class VmTag(Message):
    """A tag of a VM. Names are untrusted; a name is unique in its category only."""

    category: str
    name: str


class VmRecord(Message):
    """One VM as discovery read it. Names are untrusted; everything is keyed by `vc_guid`."""

    vc_guid: str
    """VC.GUID: vCenter's instance UUID, a dot, the VM's instanceUuid."""
    vcenter: str
    """The vCenter's name in our configuration."""
    moref: str
    name: str
    power_state: str = "poweredOff"
    connection_state: str = "connected"
    template: bool = False
    guest_id: str = ""
    guest_name: str = ""
    annotation: str = ""
    hardware_version: str = ""
    datacenter: str = ""
    folder: str = ""
    """Path below the datacentre's `vm` folder, `/`-separated; empty for the root."""
    host: str = ""
    host_moref: str = ""
    cluster: str = ""
    resource_pool: str = ""
    """Path below the cluster's (or lone host's) root pool, `/`-separated, vApps included; empty for the root."""
    vmx_path: str = ""
    """Datastore path of the .vmx. Untrusted."""
    datastores: list[str] = Field(default_factory=list)
    """Names: unique in the VM's datacentre."""
    datastore_morefs: dict[str, str] = Field(default_factory=dict)
    """The same datastores' morefs by name; missing in what earlier versions recorded."""
    disks: list[VmDisk] = Field(default_factory=list)
    change_tracking: bool = False
    consolidation_needed: bool = False
    snapshot_count: int = 0
    disabled_methods: list[str] = Field(default_factory=list)
    change_version: str = ""
    tags: list[VmTag] = Field(default_factory=list)
    """Only when they were asked for (`InventoryDetail.TAGS`)."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """Custom attributes by name, without empty ones; only when they were asked for."""

    @property
    def capacity_bytes(self) -> int:
        """Sum of the disks' capacities."""
        return sum(disk.capacity_bytes for disk in self.disks)

    @property
    def datastore_refs(self) -> list[DatastoreRef]:
        """Its datastores, as they are told apart in the whole vCenter."""
        return [
            DatastoreRef(name=name, moref=self.datastore_morefs.get(name, ""), datacenter=self.datacenter)
            for name in self.datastores
        ]


class SnapshotNode(Message):
    """One snapshot in a VM's tree."""

    moref: str
    name: str
    description: str = ""
    created: str = ""
    """ISO 8601, vCenter's clock."""
    parent_moref: str = ""
    state: str = ""
    quiesced: bool = False


class VmFile(Message):
    """One file of a VM: as `layoutEx` names it, or as a directory's listing does."""

    path: str
    """Datastore path. Untrusted."""
    type: str = ""
    """`layoutEx` type: `config`, `nvram`, `diskDescriptor`, `diskExtent`, …; empty in a listing."""
    size_bytes: int = 0
    modified: str = ""
    """ISO 8601; only in a listing."""


class VmState(Message):
    """What must be compared before and after a backup: the debt of a VM (vmware-facts 13)."""

    moref: str
    consolidation_needed: bool
    snapshots: list[SnapshotNode] = Field(default_factory=list)
    current_snapshot_moref: str = ""
    files: list[VmFile] = Field(default_factory=list)
    disks: list[VmDisk] = Field(default_factory=list)
    """The running VM's current disks, not a snapshot's."""
    power_state: str = "poweredOff"
    connection_state: str = "connected"
    vmx_path: str = ""
    snapshot_directory: str = ""
    change_version: str = ""
    running_snapshot_tasks: list[str] = Field(default_factory=list)
    """Morefs of snapshot tasks of this VM that are queued or running."""
    template: bool = False
    name: str = ""
    instance_uuid: str = ""
    disabled_methods: list[str] = Field(default_factory=list)
    directories: list[str] = Field(default_factory=list)
    """Datastore paths of the directories that hold the VM's files, disks and snapshots."""
    datastore_morefs: list[str] = Field(default_factory=list)
    """The datastores that these paths mean, whatever other datacentres call theirs."""
    listed: list[VmFile] = Field(default_factory=list)
    """What is in `directories`, files of others included; empty when they were not listed."""
    recorded_at: str = ""
    """ISO 8601, this process's clock."""
