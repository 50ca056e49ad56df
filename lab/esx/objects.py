"""The simulated data centre's objects: inventory, VMs, disks, snapshots, file layout.

Words: a *moref* is an object's id (`vm-12`, `snapshot-7`, `task-3`, `group-v4`, `host-1`); a *datastore
path* is VMware's `[datastore] directory/file`; sizes are bytes; times are UTC. `changed` on an object is the
state version (a counter) at which it changed last.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lab.guests.pattern import GuestDisk

SECTOR_BYTES = 512
# The lab has one distributed switch at most; the form is vSphere's.
SWITCH_UUID = "50 2c 51 5a 4c 41 42 00-11 22 33 44 55 66 77 88"


class Model(BaseModel):
    """Base of all: an unknown field is a mistake of the caller."""

    model_config = ConfigDict(extra="forbid")


PowerState = Literal["poweredOn", "poweredOff", "suspended"]
ConnectionState = Literal["connected", "disconnected", "orphaned", "inaccessible", "invalid"]
DiskMode = Literal["persistent", "independent_persistent", "independent_nonpersistent"]


class Folder(Model):
    """A folder. `kind` says which of the datacentre's four trees it is in, or `datacenter` for the root."""

    moref: str
    name: str
    parent: str | None
    kind: Literal["datacenter", "vm", "host", "datastore", "network"]


class Datacenter(Model):
    """The datacentre and its four root folders (morefs)."""

    moref: str
    name: str
    parent: str
    vm_folder: str
    host_folder: str
    datastore_folder: str
    network_folder: str


class Pool(Model):
    """A resource pool below a cluster's root pool, or below another one."""

    moref: str
    name: str
    parent: str


class Cluster(Model):
    """A cluster: its hosts, its root resource pool (morefs), and the pools below that."""

    moref: str
    name: str
    parent: str
    resource_pool: str
    hosts: list[str]
    pools: list[Pool] = Field(default_factory=list)


class CustomField(Model):
    """A custom attribute of VMs."""

    key: int
    name: str


class TagCategory(Model):
    """A category of tags; ids are vCenter's URNs."""

    id: str
    name: str


class Tag(Model):
    """A tag. Its name is unique in its category."""

    id: str
    name: str
    category_id: str


class Labels(Model):
    """What people hang on VMs: the definitions of custom attributes and tags."""

    fields: list[CustomField] = Field(default_factory=list)
    categories: list[TagCategory] = Field(default_factory=list)
    tags: list[Tag] = Field(default_factory=list)


class Host(Model):
    """An ESXi host. It mounts all datastores of its datacentre."""

    moref: str
    name: str
    cluster: str
    connection_state: Literal["connected", "disconnected", "notResponding"] = "connected"
    maintenance: bool = False


class Network(Model):
    """A port group. `switch`: the UUID of its distributed switch; empty on a standard one."""

    moref: str
    name: str
    switch: str = ""


class Datastore(Model):
    """A datastore. `type` is as in `HostFileSystemVolume.type`; NFS and NFS41 have the remote fields.

    `directory` is the local directory that holds its files; `free_bytes` = capacity - what the files occupy.
    """

    moref: str
    name: str
    folder: str = ""
    """Moref of the datacentre's datastore folder; empty for the first datacentre's."""
    shown_as: str = ""
    """The name that vCenter tells; empty: `name`, which is unique in the lab."""
    type: Literal["NFS", "NFS41", "VMFS"]
    remote_host: str = ""
    remote_hosts: list[str] = Field(default_factory=list)
    remote_path: str = ""
    security_type: str = "AUTH_SYS"
    uuid: str
    directory: str
    capacity_bytes: int
    free_bytes: int
    accessible: bool = True
    maintenance: bool = False
    changed: int = 0

    @property
    def shown(self) -> str:
        """The name that vCenter tells: unique in its datacentre only."""
        return self.shown_as or self.name


class Backing(Model):
    """One link of a disk's chain. `path` names the descriptor, `extent_path` the file with the data.

    `kind`: `flat` (createType vmfs), `cowd` (vmfsSparse redo log) or `rdm` (raw device mapping).
    `content_id` / `parent_content_id` are the descriptor's CID and parentCID (8 hex digits).
    """

    path: str
    extent_path: str
    kind: Literal["flat", "cowd", "rdm"]
    content_id: str
    parent_content_id: str = "ffffffff"
    change_id: str | None = None


class Disk(Model):
    """A virtual disk. `chain[0]` is what the VM (or the snapshot) names; the base comes last."""

    key: int
    label: str
    controller_key: int
    unit_number: int
    capacity_bytes: int
    datastore: str
    mode: DiskMode = "persistent"
    sharing: Literal["sharingNone", "sharingMultiWriter"] = "sharingNone"
    rdm: Literal["physicalMode", "virtualMode"] | None = None
    key_id: str | None = None
    uuid: str
    chain: list[Backing]
    content: str = "pattern"
    content_fallback: str | None = None
    # Index among the guest's disks (lab.guests.pattern); None when no guest writes to it.
    guest: int | None = None

    @property
    def takes_snapshots(self) -> bool:
        """Whether a snapshot freezes this disk: independent disks and physical RDMs stay as they are."""
        return self.mode == "persistent" and self.rdm is None


class Controller(Model):
    """A SCSI controller; `bus_sharing` other than noSharing forbids snapshots."""

    key: int
    bus_number: int
    kind: Literal["pvscsi", "lsilogic"] = "pvscsi"
    bus_sharing: Literal["noSharing", "virtualSharing", "physicalSharing"] = "noSharing"


class Nic(Model):
    """A network card; `network` is a port group's moref, empty when the hosts have none of `network_name`.

    `connected`: at power on. `address_checked`: whether ESXi refuses a static address outside its range.
    """

    key: int
    label: str
    network: str
    network_name: str = ""
    mac_address: str
    address_type: Literal["assigned", "generated", "manual"] = "assigned"
    address_checked: bool = True
    connected: bool = True


class Hardware(Model):
    """What a VM's (and each snapshot's) `config` says beside names and paths."""

    version: str = "vmx-19"
    num_cpu: int = 1
    memory_mb: int = 256
    guest_id: str = "otherLinux64Guest"
    firmware: Literal["bios", "efi"] = "bios"
    controllers: list[Controller] = Field(default_factory=list)
    nics: list[Nic] = Field(default_factory=list)
    disks: list[Disk] = Field(default_factory=list)


class Snapshot(Model):
    """A snapshot. `hardware.disks` are the frozen chains; independent disks show what they had.

    `frozen_sequence` is the guest writer's last sequence number before the freeze (see lab.guests.pattern).
    `number` is the id within the VM (`VirtualMachineSnapshotTree.id`).
    """

    moref: str
    number: int
    name: str
    description: str
    create_time: datetime
    parent: str | None
    power_state: PowerState
    quiesced: bool = False
    frozen_sequence: int = 0
    hardware: Hardware
    annotation: str = ""
    change_tracking_enabled: bool = False
    change_version: str = ""
    extra_config: dict[str, str] = Field(default_factory=dict)
    data_path: str
    # What a quiesced Windows guest leaves: the writers' metadata as a zip.
    manifest_path: str | None = None


class LayoutFile(Model):
    """A file of `VirtualMachineFileLayoutEx`; `type` as there: config, diskExtent and so on."""

    key: int
    path: str
    type: str
    size_bytes: int


class LayoutDisk(Model):
    """A disk's chain: for each link, base first, the keys of its files (descriptor, extent)."""

    disk_key: int
    chain: list[list[int]]


class LayoutSnapshot(Model):
    """A snapshot's files: key of its .vmsn, and its disks' chains."""

    snapshot: str
    data_key: int
    disks: list[LayoutDisk]


class Layout(Model):
    """The equivalent of `VirtualMachine.layoutEx`."""

    files: list[LayoutFile] = Field(default_factory=list)
    disks: list[LayoutDisk] = Field(default_factory=list)
    snapshots: list[LayoutSnapshot] = Field(default_factory=list)


class FrozenFile(Model):
    """A frozen file's identity at its freeze: a difference while it is frozen is an error of the lab."""

    path: str
    size_bytes: int
    mtime_ns: int


class Vm(Model):
    """A virtual machine. `directory` is the datastore path of its home (`[nfs-gold] web01/`)."""

    moref: str
    name: str
    parent: str
    host: str
    resource_pool: str
    datastore: str
    directory: str
    vmx_path: str
    bios_uuid: str
    instance_uuid: str
    power_state: PowerState
    connection_state: Literal["connected", "disconnected", "orphaned", "inaccessible", "invalid"] = (
        "connected"
    )
    template: bool = False
    tags: list[str] = Field(default_factory=list)
    """Ids of tags."""
    attributes: dict[int, str] = Field(default_factory=dict)
    """Values of custom attributes by their key."""
    annotation: str = ""
    change_tracking_enabled: bool = False
    change_version: str
    extra_config: dict[str, str] = Field(default_factory=dict)
    hardware: Hardware
    snapshots: list[Snapshot] = Field(default_factory=list)
    current_snapshot: str | None = None
    next_snapshot_number: int = 1
    consolidation_needed: bool = False
    disabled_methods: list[str] = Field(default_factory=list)
    layout: Layout = Field(default_factory=Layout)
    guest_rate: int = 0
    guest_seed: int = 0
    guest_disks: list[GuestDisk] = Field(default_factory=list)
    guest_generation: int = 0
    guest_sequence: int = 0
    frozen_files: list[FrozenFile] = Field(default_factory=list)
    # Files that the state no longer needs, or does not need yet: deleted when the hosts start.
    discarded: list[str] = Field(default_factory=list)
    # Extents that a merge is writing to: the only writes to a frozen file that are no error.
    merging: list[str] = Field(default_factory=list)
    create_time: datetime
    changed: int = 0
