"""What a backup job is asked, told and answers: BackupJob's input, its settings, nodes, plan and report.

Its progress is in `safehaul.messages.progress`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from safehaul.messages.base import Message, Request
from safehaul.messages.inventory import DatastoreRef
from safehaul.messages.requests import BackupJobRequest
from safehaul.messages.vm import VmOptions, VmReport


class CancelVmRequest(Request):
    """What a person gives to the signal `cancel_vm`: the VM's name or its VC.GUID."""

    vm: str = Field(min_length=1, max_length=300)
    keep: bool = Field(default=True, strict=True)
    """What was stored of it serves later backups; else it is given up."""


class JobStatus(StrEnum):
    """How a job stands or ended."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    PARTIAL = "Partial"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class OpenJobInput(Message):
    """What the CommServe needs to open a job."""

    request: BackupJobRequest
    job_id: str
    workflow_id: str


class JobSettings(Message):
    """A VM group resolved from the configuration when the job opened; valid for the whole job."""

    vm_group: str
    vcenter: str
    access_nodes: list[str]
    media_agent: str
    installation_id: str
    namespace_id: str
    """UUID of the Temporal namespace: part of the snapshots' marker."""
    distribution: str = "dynamic"
    order: str = "size"
    max_streams: int | None = None
    """The most VMs of the job in work at once, over all its nodes."""
    allow_empty: bool = False
    options: VmOptions = Field(default_factory=VmOptions)


class PingInput(Message):
    """Which node is asked for a sign of life."""

    node: str


class PingAnswer(Message):
    """A node's sign of life; `load` is the 1-minute average."""

    node: str
    version: str
    cores: int
    load: float
    streams: int


class CoordinatorChoice(Message):
    """Step 1: which node coordinates, and which did not answer."""

    coordinator: str
    reason: str
    silent_nodes: list[str] = Field(default_factory=list)


class ChooseInput(Message):
    """The answers among which step 1 chooses."""

    job_id: str
    vm_group: str
    asked: list[str]
    answers: list[PingAnswer]


class DiscoverInput(Message):
    """Step 2's input."""

    job_id: str
    settings: JobSettings
    inline_group: dict[str, Any] | None = None
    """The VM group when the job was given it whole; else it is looked up by name."""


class Excluded(Message):
    """A VM that discovery saw and did not take, or a GUID that it did not find."""

    name: str
    vc_guid: str = ""
    reason: str


class Discovery(Message):
    """Step 2's result: the VMs stand in pages in the repository, never in one payload."""

    pages: list[str]
    """Names of the job's objects, each a page of `VmRecord`s."""
    vm_count: int
    capacity_bytes: int
    seen_count: int = 0
    noteworthy: list[Excluded] = Field(default_factory=list)
    """Bounded: VMs that were excluded or have something special about them."""
    failed: list[Excluded] = Field(default_factory=list)
    """VMs that were asked for and cannot be backed up at all: GUIDs not found or not unique. Reported as Failed."""
    datastores: list[str] = Field(default_factory=list)
    """Names of the VMs' datastores, for people."""
    datastore_refs: list[DatastoreRef] = Field(default_factory=list)
    """The same, told apart in the whole vCenter; missing in histories of earlier versions."""

    @property
    def needed_datastores(self) -> list[DatastoreRef]:
        """What the nodes must reach."""
        return self.datastore_refs or [DatastoreRef(name=name) for name in self.datastores]


class LeaseInput(Message):
    """Step 3's input."""

    job_id: str
    coordinator: str
    holder: str
    """Who takes the lease: the same text when the same activity is tried again."""
    settings: JobSettings


class Lease(Message):
    """Step 3's result: one coordinator at a time; a successor has a higher epoch."""

    job_id: str
    coordinator: str
    epoch: int


class PrepareInput(Message):
    """Step 4's input, for one node."""

    job_id: str
    node: str
    settings: JobSettings
    datastores: list[str]
    """Names, for people."""
    lease: Lease
    datastore_refs: list[DatastoreRef] = Field(default_factory=list)
    """The same, told apart in the whole vCenter; missing in histories of earlier versions."""

    @property
    def needed_datastores(self) -> list[DatastoreRef]:
        """What the node must reach."""
        return self.datastore_refs or [DatastoreRef(name=name) for name in self.datastores]


class NodeAnswer(Message):
    """Step 4's answer of one node."""

    node: str
    version: str
    cores: int
    load: float
    memory_bytes: int
    streams: int
    reachable_datastores: list[str]
    """Keys of `DatastoreRef`."""
    problems: list[str] = Field(default_factory=list)
    """One line for each export or peer that this node could not reach; `unreachable` has them by datastore."""
    unreachable: dict[str, str] = Field(default_factory=dict)
    """Why, by key."""
    may_return: list[str] = Field(default_factory=list)
    """Keys among `unreachable` whose filer does not answer now, so that waiting may help; the others are refusals."""


class AdmitInput(Message):
    """What the coordinator judges in step 4."""

    job_id: str
    lease: Lease
    settings: JobSettings
    answers: list[NodeAnswer]
    refusals: list[str] = Field(default_factory=list)
    """`node: reason` of nodes whose preparation failed."""


class Admission(Message):
    """Step 4's result: the nodes that take part, and those left out with the reason."""

    nodes: list[NodeAnswer]
    left_out: list[str] = Field(default_factory=list)


class DistributeInput(Message):
    """Step 5's input."""

    job_id: str
    lease: Lease
    settings: JobSettings
    discovery: Discovery
    nodes: list[NodeAnswer]
    taken: list[str] = Field(default_factory=list)
    """VC.GUIDs that run or have ended and stand in no report page yet: a successor plans for the others alone."""
    report_pages: list[str] = Field(default_factory=list)
    """Names of the job's objects that hold the reports of the VMs that have ended."""
    earlier_pages: list[str] = Field(default_factory=list)
    """Names of the pages of the plan that this one follows."""


class NodeRequest(Message):
    """Step 15: a dry node asks for another VM."""

    node: str
    free_streams: int
    load: float
    asked_at: datetime


class VmFinished(Message):
    """What BackupVm signals to its job when it ends, whatever the end."""

    job_id: str
    child_id: str
    report: VmReport
    request: NodeRequest | None = None
    orphaned: bool = False
    """Set by the job itself when a child closed without a report: its snapshot must be removed."""


class ChildRef(Message):
    """A running child as the ledger and the reconciliation know it."""

    child_id: str
    first_run_id: str = ""
    vc_guid: str
    name: str
    moref: str
    node: str
    capacity_bytes: int = 0
    given_by: str = "plan"
    started_at: datetime
    nodes: list[str] = Field(default_factory=list)
    """Nodes that reach its datastores; empty means all."""
    moves: int = 0
    """How often it has been given another node because its own had died."""
    keep: bool = True
    """When it is cancelled: see CancelVmRequest."""


class NodeLost(Message):
    """From BackupVm to its job, as the signal `node_lost`: its node does not answer, and it waits for another one."""

    job_id: str
    child_id: str
    node: str
    moves: int = 0
    """How often it has moved before."""


class GoOnAt(Message):
    """The job's answer, as the signal `go_on_at`."""

    node: str
    """Empty: there is none."""
    moves: int = 0
    """Of the NodeLost that it answers."""
    reason: str = ""
    """Why there is none."""


class ReconcileInput(Message):
    """Children to look up by Describe."""

    job_id: str
    children: list[ChildRef]


class ClosedChild(Message):
    """A child that Describe shows closed."""

    child_id: str
    status: str
    report: VmReport | None = None
    """The child's own report, when it ended by itself."""
    first_run_id: str = ""
    """Names the child's snapshot. Empty when the server does not know the child."""


class Reconciliation(Message):
    """What the server says of the children."""

    closed: list[ClosedChild]
    """Those that are closed although the job knows them as running."""
    hindered: dict[str, str] = Field(default_factory=dict)
    """Of those that run: what a child's step waits for, by child id."""


class ReportPageInput(Message):
    """Finished VMs' reports, to be made durable a page at a time."""

    job_id: str
    media_agent: str
    page: str
    reports: list[VmReport]


class JobTotals(Message):
    """Sums over a job's VMs; bytes."""

    vms: int = 0
    completed: int = 0
    partial: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes_capacity: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0

    def plus(self, report: VmReport) -> JobTotals:
        """These totals with one more VM."""
        return JobTotals(
            vms=self.vms + 1,
            completed=self.completed + (report.status == "Completed"),
            partial=self.partial + (report.status == "Partial"),
            failed=self.failed + (report.status == "Failed"),
            cancelled=self.cancelled + (report.status == "Cancelled"),
            bytes_capacity=self.bytes_capacity + report.bytes_capacity,
            bytes_read=self.bytes_read + report.bytes_read,
            bytes_stored=self.bytes_stored + report.bytes_stored,
        )


class CloseJobInput(Message):
    """Step 17's input: the coordinator makes the job's report from the durable pages."""

    job_id: str
    workflow_id: str
    vm_group: str
    media_agent: str = ""
    lease: Lease | None = None
    coordinator: str = ""
    pages: list[str]
    not_started: int = 0
    """VMs that no node had been given when the job was stopped."""
    cancelled: bool = False
    failure: str = ""
    """Why the job ended before its VMs could be dealt with, if so."""
    left_out: list[str] = Field(default_factory=list)
    noteworthy: list[Excluded] = Field(default_factory=list)
    started_at: datetime
    distribution: str = ""


class JobReport(Message):
    """A job's result. `vms` holds the first 200 VMs, those with trouble first; all stand in `pages`."""

    job_id: str
    workflow_id: str
    vm_group: str
    status: JobStatus
    reason: str = ""
    coordinator: str = ""
    lease_epoch: int = 0
    distribution: str = ""
    totals: JobTotals
    vms: list[VmReport]
    pages: list[str]
    left_out: list[str] = Field(default_factory=list)
    noteworthy: list[Excluded] = Field(default_factory=list)
    started_at: datetime
    ended_at: datetime


class RecordJobInput(Message):
    """What the CommServe writes to the catalogue when a job ends."""

    job_id: str
    media_agent: str
