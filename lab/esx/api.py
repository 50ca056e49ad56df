"""What the simulated hosts are asked and what they answer, as pydantic models (objects: lab.esx.objects).

The hosts (`python -m lab.esx`) own everything that is true in the lab: inventory, files, snapshots, tasks,
guests. Others read it and ask for changes over HTTP on loopback: `POST /call/NAME` with one JSON object,
answered by `{"result": …}` or by `{"fault": {…}}`; `lab.esx.client.HostClient` has one method for each call.
Fault types are names of the vSphere API (`FileLocked`, `NoPermission`, …).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from lab.esx.objects import (
    SECTOR_BYTES,
    Backing,
    Cluster,
    Controller,
    Datacenter,
    Datastore,
    Disk,
    DiskMode,
    Folder,
    FrozenFile,
    Hardware,
    Host,
    Labels,
    Layout,
    LayoutDisk,
    LayoutFile,
    LayoutSnapshot,
    Model,
    Network,
    Nic,
    PowerState,
    Snapshot,
    Vm,
)

__all__ = [
    "SECTOR_BYTES",
    "AddDisk",
    "Backing",
    "Cluster",
    "Controller",
    "Datacenter",
    "Datastore",
    "DirectoryEntry",
    "Disk",
    "DiskMode",
    "EditNic",
    "Event",
    "Fault",
    "FaultRule",
    "Folder",
    "FrozenDigest",
    "FrozenFile",
    "FrozenRecord",
    "Hardware",
    "Host",
    "Labels",
    "Layout",
    "LayoutDisk",
    "LayoutFile",
    "LayoutSnapshot",
    "Model",
    "Network",
    "Nic",
    "Operation",
    "PowerState",
    "ReconfigSpec",
    "Seconds",
    "Settings",
    "Snapshot",
    "State",
    "Task",
    "TaskStarted",
    "User",
    "Violation",
    "Vm",
    "WaitAnswer",
]


class Fault(Model):
    """A refusal or failure: `type` is the vSphere fault's name, `fields` its own properties as text."""

    type: str
    message: str
    fields: dict[str, str] = Field(default_factory=dict)


class Operation(StrEnum):
    """What a task does."""

    CREATE_SNAPSHOT = "CreateSnapshot"
    REMOVE_SNAPSHOT = "RemoveSnapshot"
    CONSOLIDATE = "ConsolidateVMDisks"
    RECONFIGURE = "ReconfigVM"
    POWER_ON = "PowerOnVM"
    POWER_OFF = "PowerOffVM"
    REGISTER = "RegisterVM"
    RELOCATE = "RelocateVM"
    DESTROY = "Destroy"


class Task(Model):
    """A task. `result` is a moref (a new snapshot or VM). It goes on when every client is gone."""

    id: str
    operation: Operation
    entity: str
    entity_name: str
    user: str
    state: Literal["queued", "running", "success", "error"] = "queued"
    progress: int = 0
    cancelable: bool = True
    cancelled: bool = False
    result: str | None = None
    error: Fault | None = None
    queue_time: datetime
    start_time: datetime | None = None
    complete_time: datetime | None = None
    arguments: dict[str, object] = Field(default_factory=dict)
    changed: int = 0


class TaskStarted(Model):
    """The answer to a call that starts a task. `drop_connection`: vCenter must hang up without an answer."""

    task: str
    drop_connection: bool = False


class Event(Model):
    """Something happened. `type`: vm-registered, snapshot-created, task-completed, … `id` only grows.

    `other` and `mac` are set on vm-mac-conflict: the other VM's moref, and the address.
    """

    id: int
    time: datetime
    type: str
    entity: str
    entity_name: str
    user: str
    message: str
    task: str | None = None
    other: str | None = None
    mac: str | None = None


class FaultRule(Model):
    """A planned fault.

    It applies to the `nth` start of `operation` that it sees (1 = the next; None = each), `times` times in a
    row, on `vm` (moref or name; None = any). `operation` is an `Operation` value, or `Quiesce`. `phase`:
    before anything (`start`), after the first effect (`middle`: the snapshot is frozen / has left the tree),
    or just before the task ends (`end`); default `start`, but `middle` for `locked` and `no-space`.
    Effects: `fail` (with `fault`), `locked` (FileLocked), `no-space` (NoDiskSpace); `stall` for `seconds`;
    `drop-after-start` (the front hangs up, the task runs); `migrate` (Storage vMotion to `datastore`, then
    the operation goes on); `crash` (the hosts' process is killed).
    """

    operation: str
    effect: Literal["fail", "stall", "drop-after-start", "no-space", "locked", "migrate", "crash"]
    nth: int | None = Field(default=1, ge=1)
    times: int = Field(default=1, ge=1)
    vm: str | None = None
    phase: Literal["start", "middle", "end"] | None = None
    fault: str = "GenericVmConfigFault"
    message: str = "failed by the lab's plan"
    seconds: float = Field(default=0.0, ge=0.0, le=3600.0)
    datastore: str | None = None
    seen: int = 0
    fired: int = 0


class User(Model):
    """A user of vCenter and the ids of the privileges that he holds (`*` = all). Passwords are never told."""

    name: str
    privileges: list[str]


class Violation(Model):
    """Something the lab must never do was tried or seen, e.g. a write to a frozen file."""

    time: datetime
    vm: str
    path: str
    message: str


class FrozenDigest(Model):
    """The digest of a disk at a snapshot's point in time."""

    disk_key: int
    label: str
    capacity_bytes: int
    sha256: str


class FrozenRecord(Model):
    """What a snapshot froze, kept after the snapshot is gone. `disks` is empty until the digests are made."""

    snapshot: str
    vm: str
    vm_name: str
    instance_uuid: str
    name: str
    create_time: datetime
    removed_time: datetime | None = None
    frozen_sequence: int
    disks: list[FrozenDigest] = Field(default_factory=list)


class State(Model):
    """All of it, or with `since` only the VMs and tasks that changed after that version.

    `vm_morefs` and `task_ids` are always complete, so that a reader sees what is gone.
    """

    version: int
    site: str
    instance_uuid: str
    last_event: int
    datacenter: Datacenter
    """The first one."""
    other_datacenters: list[Datacenter] = Field(default_factory=list)
    labels: Labels = Field(default_factory=Labels)
    clusters: list[Cluster]
    hosts: list[Host]
    networks: list[Network]
    folders: list[Folder]
    datastores: list[Datastore]
    users: list[User]
    vms: list[Vm]
    tasks: list[Task]
    vm_morefs: list[str]
    task_ids: list[str]
    fault_rules: list[FaultRule]
    violations: list[Violation]

    @property
    def datacenters(self) -> list[Datacenter]:
        """All datacentres."""
        return [self.datacenter, *self.other_datacenters]

    def datacenter_of(self, cluster: str) -> Datacenter:
        """The datacentre of a cluster."""
        parents = {each.moref: each.parent for each in self.clusters}
        return next(
            (each for each in self.datacenters if each.host_folder == parents.get(cluster)), self.datacenter
        )

    def datastores_in(self, datacenter: Datacenter) -> list[Datastore]:
        """The datastores that the datacentre's hosts mount."""
        return [
            each
            for each in self.datastores
            if (each.folder or self.datacenter.datastore_folder) == datacenter.datastore_folder
        ]


class DirectoryEntry(Model):
    """A file or directory in a datastore; `path` is the name within the directory that was asked for."""

    path: str
    size_bytes: int
    modified: datetime
    directory: bool = False


class AddDisk(Model):
    """Attach the disk whose descriptor is at `path`. The key is chosen when it is None."""

    path: str
    controller_key: int = 1000
    unit_number: int | None = None
    mode: DiskMode = "persistent"


class EditNic(Model):
    """Change a network card; None means unchanged. `network` is a moref."""

    key: int
    network: str | None = None
    connected: bool | None = None


class ReconfigSpec(Model):
    """What to change; None and empty mean unchanged. An `extra_config` value of "" removes the key."""

    name: str | None = None
    annotation: str | None = None
    change_tracking_enabled: bool | None = None
    extra_config: dict[str, str] = Field(default_factory=dict)
    add_disks: list[AddDisk] = Field(default_factory=list)
    remove_disks: list[int] = Field(default_factory=list)
    delete_files: bool = False
    edit_nics: list[EditNic] = Field(default_factory=list)
    num_cpu: int | None = Field(default=None, ge=1, le=768)
    memory_mb: int | None = Field(default=None, ge=4)


Seconds = Annotated[float, Field(ge=0.0, le=600.0)]


class Settings(Model):
    """What can be changed while it runs. `durations_s`: `Operation` value to seconds that it takes.

    `files_within_s`: how long RegisterVM waits for files that a client has written to the filer. The lab's
    writable filer stores a file some time after its last write; a real one does at once.
    """

    durations_s: dict[str, Seconds] = Field(default_factory=dict)
    default_duration_s: Seconds = 0.2
    record_frozen: bool = False
    files_within_s: Seconds = 0.0


class WaitAnswer(Model):
    """The state's version now, and the id of the newest event."""

    version: int
    last_event: int
