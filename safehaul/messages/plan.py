"""Step 5's result: queues of VMs that travel by reference, in pages of the job's objects."""

from __future__ import annotations

from pydantic import Field

from safehaul.messages.base import Message
from safehaul.messages.job import Excluded


class PlanQueue(Message):
    """A queue of VMs in the plan: a node's own (static) or the common one (dynamic, `node` empty)."""

    node: str = ""
    pages: list[str]
    """Names of the job's objects, each a page of `PlannedVm`s in order."""
    vm_count: int


class Plan(Message):
    """Step 5's result."""

    queues: list[PlanQueue]
    unplaceable: list[Excluded] = Field(default_factory=list)
    power: dict[str, float] = Field(default_factory=dict)
    """Speed of each node relative to the others, from its cores, load and streams."""


class PlannedVm(Message):
    """One VM in the plan: what BackupVm needs to start, little enough for pages of hundreds."""

    vc_guid: str
    name: str
    moref: str
    capacity_bytes: int = 0
    nodes: list[str] = Field(default_factory=list)
    """Nodes that reach the VM's datastores; empty means all."""


class PageInput(Message):
    """Which page of the plan to load."""

    job_id: str
    media_agent: str
    name: str


class PlanPage(Message):
    """A page of the plan."""

    vms: list[PlannedVm]
