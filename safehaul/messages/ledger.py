"""The job's ledger as it travels through continue-as-new."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from safehaul.messages.base import Message
from safehaul.messages.job import (
    ChildRef,
    Excluded,
    JobSettings,
    JobTotals,
    Lease,
    NodeLost,
    VmFinished,
)
from safehaul.messages.plan import (
    PlannedVm,
)
from safehaul.messages.requests import BackupJobRequest
from safehaul.messages.vm import VmReport


class NodeLedger(BaseModel):
    """One node's account."""

    name: str
    streams: int
    credits: int
    """Streams that may be given a VM now."""
    asked: bool = False
    """True once the node has asked (step 15): later VMs are given by request, not by plan."""
    lost: bool = False
    power: float = 1.0
    """Speed relative to the other nodes, as step 5 judged it."""


class QueueLedger(BaseModel):
    """A queue of the plan: which pages are still to load, and the VMs loaded and not given yet."""

    node: str = ""
    pages: list[str] = Field(default_factory=list)
    pending: list[PlannedVm] = Field(default_factory=list)
    unloaded_count: int = 0


class LedgerState(BaseModel):
    """Everything that the job must remember between two runs of its workflow."""

    nodes: dict[str, NodeLedger] = Field(default_factory=dict)
    queues: list[QueueLedger] = Field(default_factory=list)
    running: dict[str, ChildRef] = Field(default_factory=dict)
    homeless: dict[str, datetime] = Field(default_factory=dict)
    """Of these the children whose node has died and that wait for another one, and since when."""
    totals: JobTotals = Field(default_factory=JobTotals)
    capacity_bytes: int = 0
    """Of all VMs that the group selected."""
    capacity_ended_bytes: int = 0
    """By the plan, of the VMs that have ended: what is left of the job is told from it."""
    unwritten: list[VmReport] = Field(default_factory=list)
    report_pages: list[str] = Field(default_factory=list)
    recent: list[VmReport] = Field(default_factory=list)
    plan_pages: list[str] = Field(default_factory=list)
    """All pages of the plan in force."""
    plan_epoch: int = 0
    """The lease under which that plan was made."""
    unwanted: list[str] = Field(default_factory=list)
    """Names and VC.GUIDs that a person cancelled and that are in no page loaded so far."""


class JobState(Message):
    """The input of a job's next run after continue-as-new."""

    request: BackupJobRequest
    settings: JobSettings
    lease: Lease
    silent_nodes: list[str]
    left_out: list[str]
    noteworthy: list[Excluded]
    ledger: LedgerState
    inbox: list[VmFinished] = Field(default_factory=list)
    lost: list[NodeLost] = Field(default_factory=list)
    to_cancel: list[ChildRef] = Field(default_factory=list)
    started_at: datetime
    cancel_asked: bool = False
    keep: bool = True
    """What the cancelled VMs have stored serves later backups; else it is given up."""
    paused_since: datetime | None = None
    rejected_signals: list[str] = Field(default_factory=list)


class ContinuedJob(Message):
    """How BackupJob tells its own continuation from what a person types."""

    continued: JobState
