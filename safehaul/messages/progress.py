"""Where a job stands while it runs: the answer of its query `progress`, and a transfer's heartbeat."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from safehaul.messages.base import Message
from safehaul.messages.job import JobStatus, JobTotals
from safehaul.messages.vm import VmReport


class VmProgress(Message):
    """A running VM in the query `progress`."""

    name: str
    vc_guid: str
    node: str
    child_id: str
    started_at: datetime
    capacity_bytes: int = 0
    """Of its disks, as the plan knows it; 0: not known."""
    waits_for: str = ""
    """What hindered it when the job last looked; empty: nothing."""


class NodeProgress(Message):
    """An access node that takes part in the job."""

    name: str
    streams: int
    lost: bool = False
    """True: it does not answer, and is given nothing until it does."""


class JobProgress(Message):
    """Answer of the query `progress`."""

    job_id: str
    vm_group: str
    status: JobStatus
    stage: str
    started_at: datetime | None = None
    """Of the job's first run; None: the CommServe is of an earlier version."""
    paused_since: datetime | None = None
    """None: the job is not paused."""
    coordinator: str = ""
    waiting: int = 0
    running: list[VmProgress] = Field(default_factory=list)
    nodes: list[NodeProgress] = Field(default_factory=list)
    totals: JobTotals = Field(default_factory=JobTotals)
    """Of the VMs that have ended."""
    capacity_bytes: int = 0
    """Of the disks of all selected VMs; 0: not known (yet)."""
    capacity_ended_bytes: int = 0
    """The part of it that belongs to VMs that have ended, however."""
    left_out: list[str] = Field(default_factory=list)
    recent: list[VmReport] = Field(default_factory=list)
    rejected_signals: list[str] = Field(default_factory=list)


class TransferBeat(Message):
    """A transfer's heartbeat (step 11), as the web UI's pending activities show it."""

    disk: str
    done_bytes: int
    """Offset on the disk up to which it has been read, holes included."""
    capacity_bytes: int
    vm_done_bytes: int = 0
    """The same over the VM's disks: those that were read before this one, and this one so far."""
    waits_for: str = ""
    """`filer` while a read is awaited, `repository` while what was read is written."""
