"""What a data centre of the lab ("site") is made of: the input of `lab.esx.provision`, see lab.site."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lab.esx.api import DiskMode, Model, PowerState, Settings
from lab.esx.objects import SECTOR_BYTES, ConnectionState


class DatastoreSpec(Model):
    """A datastore; NFS and NFS41 need the remote fields. `shown_as` is the name that vCenter tells, by default `name`,
    by which the hosts know it: two datacentres may each have a datastore of one name.
    """

    name: str
    type: Literal["NFS", "NFS41", "VMFS"]
    remote_host: str = "127.0.0.1"
    remote_path: str = "/"
    security_type: str = "AUTH_SYS"
    capacity_bytes: int = 20 * 1024**3
    datacenter: str = ""
    shown_as: str = ""


class DiskSpec(Model):
    """A disk. `content`: `pattern` (checkable, the guest writes to it), `ext4` (a clean file system with a
    file that the guest overwrites in place), `zero`, or `random` (half noise, half text; nobody writes to
    it). `datastore` defaults to the VM's, `unit` to the next free one of its controller.
    """

    size_bytes: int = Field(ge=SECTOR_BYTES)
    datastore: str | None = None
    mode: DiskMode = "persistent"
    rdm: Literal["physicalMode", "virtualMode"] | None = None
    sharing: Literal["sharingNone", "sharingMultiWriter"] = "sharingNone"
    key_id: str | None = None
    content: Literal["pattern", "ext4", "zero", "random"] = "pattern"
    controller: int = Field(default=0, ge=0, le=3)
    unit: int | None = Field(default=None, ge=0, le=15)
    label: str | None = None

    @field_validator("size_bytes")
    @classmethod
    def _whole_sectors(cls, value: int) -> int:
        if value % SECTOR_BYTES:
            message = f"{value} is no multiple of {SECTOR_BYTES}"
            raise ValueError(message)
        return value


class SnapshotSpec(Model):
    """A snapshot that a user took before the story begins; `writes_after` blocks were written since."""

    name: str
    description: str = ""
    writes_after: int = Field(default=200, ge=0, le=100_000)


class VmSpec(Model):
    """A VM. `folder` is a path below the datacentre's VM folder, as `prod/web` (`/` separates), and `pool` one below
    the cluster's root pool. It stands in the first datacentre and cluster unless it says otherwise; `tags` are
    written `category/name`.
    """

    name: str
    folder: str = ""
    datastore: str
    directory: str | None = None
    power_state: PowerState = "poweredOn"
    connection_state: ConnectionState = "connected"
    hardware_version: str = "vmx-19"
    guest_id: str = "otherLinux64Guest"
    template: bool = False
    annotation: str = ""
    change_tracking: bool = False
    bus_sharing: Literal["noSharing", "virtualSharing", "physicalSharing"] = "noSharing"
    instance_uuid: str | None = None
    datacenter: str = ""
    cluster: str = ""
    host: str = ""
    pool: str = ""
    tags: list[str] = Field(default_factory=list)
    attributes: dict[str, str] = Field(default_factory=dict)
    extra_config: dict[str, str] = Field(default_factory=dict)
    disabled_methods: list[str] = Field(default_factory=list)
    disks: list[DiskSpec] = Field(default_factory=list)
    snapshots: list[SnapshotSpec] = Field(default_factory=list)
    guest_rate: int = Field(default=0, ge=0, le=2000)
    writes_before: int = Field(default=300, ge=0, le=100_000)


class UserSpec(Model):
    """A user of vCenter; `*` in `privileges` means all."""

    name: str
    password: str = Field(repr=False)
    privileges: list[str]


class ClusterSpec(Model):
    """A cluster with its hosts, and resource pools by their paths below its root pool."""

    name: str
    hosts: list[str] = Field(min_length=1)
    pools: list[str] = Field(default_factory=list)


class DatacenterSpec(Model):
    """A datacentre of the vCenter beside the first one."""

    name: str
    clusters: list[ClusterSpec] = Field(min_length=1)
    folders: list[str] = Field(default_factory=list)


class Site(Model):
    """A data centre: one vCenter. The first datacentre and its first cluster are described by this table itself.

    `attributes` and `tags` are definitions beside those that VMs use.
    """

    name: str = "lab"
    datacenter: str = "DC-Lab"
    cluster: str = "cluster-a"
    hosts: list[str] = Field(default_factory=lambda: ["esx-1.lab", "esx-2.lab"], min_length=1)
    pools: list[str] = Field(default_factory=list)
    more_clusters: list[ClusterSpec] = Field(default_factory=list)
    more_datacenters: list[DatacenterSpec] = Field(default_factory=list)
    attributes: list[str] = Field(default_factory=list)
    tags: list[str] = Field(default_factory=list)
    networks: list[str] = Field(default_factory=lambda: ["VM Network", "Isolated"], min_length=1)
    distributed_networks: list[str] = Field(default_factory=list)
    folders: list[str] = Field(default_factory=list)
    datastores: list[DatastoreSpec]
    vms: list[VmSpec] = Field(default_factory=list)
    users: list[UserSpec] = Field(default_factory=list)
    settings: Settings = Field(default_factory=Settings)
