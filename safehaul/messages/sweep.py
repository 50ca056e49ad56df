"""What SweepSnapshots is asked, what its steps exchange, and its report. All of it bounded: a message may have 2 MB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import Field

from safehaul.messages.base import Message, Request
from safehaul.messages.certificate import RemovalCertificate
from safehaul.messages.exports import NAME_PATTERN
from safehaul.messages.inventory import SnapshotNode, VmState
from safehaul.messages.marker import SnapshotMarker
from safehaul.messages.steps import SnapshotPlan, VmRef

MAX_TOLD = 200
"""Snapshots, findings and cancelled VMs of which a report tells each; it counts all of them."""
MAX_PROBLEMS_TOLD = 50
MAX_CERTIFICATE_BYTES = 500_000
"""Of all certificates in a report. The others are in the results of the `RemoveSnapshot` workflows."""


class SweepRequest(Request):
    """What a person or a schedule gives to SweepSnapshots: `{"vcenter": "main", "dry_run": true}`, or nothing."""

    vcenter: str = Field(default="", pattern=rf"^$|{NAME_PATTERN}")
    """Name of the one vCenter to look at; empty: all that are configured."""
    dry_run: bool = False
    """True: look and report, and remove and cancel nothing."""
    adopt: UUID | None = None
    """UUID of a Temporal namespace that is lost: the snapshots of its workflows are taken for orphans."""
    thorough: bool = False
    """True: the directories of all VMs are searched for phantom deltas, not only of the next few."""
    going_on: SweepState | None = None
    """Set by the workflow itself when it continues as new."""


class SweepIdentity(Message):
    """Who we are: what a marker must say to be ours."""

    installation_id: str
    namespace_id: str
    """UUID of the Temporal namespace."""
    adopt: str = ""
    """UUID of a lost one whose snapshots are taken for ours; empty: none."""


class SweepSettings(Message):
    """What a sweep works with, from the configuration of the CommServe."""

    ours: SweepIdentity
    vcenters: list[str]


class VmSnapshots(Message):
    """One VM as a sweep sees it."""

    moref: str
    name: str
    vc_guid: str
    """Empty when vCenter tells no instanceUuid."""
    connection_state: str = "connected"
    consolidation_needed: bool = False
    snapshots: list[SnapshotNode] = Field(default_factory=list)
    unreadable: str = ""
    """Why its snapshots cannot be told; empty: they can."""


class FindingKind(StrEnum):
    """What a sweep tells and never touches."""

    OTHER_PRODUCT = "other product"
    """A day old, and named as another product names its temporary snapshots."""
    OTHER_INSTALLATION = "other installation"
    OTHER_NAMESPACE = "other namespace"
    """Ours, of a workflow that another Temporal namespace had or has."""
    UNPROVED = "unproved"
    """It looks like ours, and something does not fit."""
    CONSOLIDATION = "consolidation needed"
    PHANTOM = "phantom delta"
    """A redo log in the VM's directory that neither a disk nor a snapshot names."""
    UNREADABLE = "unreadable"
    """A VM whose snapshots vCenter cannot tell now."""


class Finding(Message):
    """Something that a person should look at."""

    kind: FindingKind
    vcenter: str = ""
    vm_name: str
    """Untrusted."""
    vm_moref: str
    what: str


class FoundSnapshot(Message):
    """A snapshot that is provably ours."""

    vm_moref: str
    vm_name: str
    moref: str
    created: str
    """ISO 8601, vCenter's clock."""
    marker: SnapshotMarker
    copies: int = 1


class SnapshotPageInput(Message):
    """Which snapshots are listed: `limit` of ours at most, of VMs behind `after`."""

    vcenter: str
    ours: SweepIdentity
    after: str = ""
    """Moref of the last VM of the page before; empty: from the first, and then findings are told too."""
    limit: int


class SnapshotPage(Message):
    """What was found of ours, in the order of the VMs' morefs."""

    snapshots: list[FoundSnapshot] = Field(default_factory=list)
    after: str = ""
    ended: bool
    vms: int = 0
    """In the whole vCenter."""
    snapshots_seen: int = 0
    """In the whole vCenter, whoever they belong to."""
    findings: list[Finding] = Field(default_factory=list)
    """The first of them."""
    finding_counts: dict[str, int] = Field(default_factory=dict)


class Owner(Message):
    """Whose life is asked for: the execution that made a snapshot."""

    workflow_id: str
    first_run_id: str
    snapshot_name: str
    adopted: bool = False
    """Its namespace is lost: nobody can be asked, and somebody has said so."""


class OwnersInput(Message):
    """Owners to be looked up by Describe."""

    namespace_id: str
    """In which they are looked up; another one under the same name would know none of them."""
    owners: list[Owner]


class OwnerState(StrEnum):
    """How a snapshot's owner stands."""

    ALIVE = "alive"
    GONE = "gone"
    """Closed, or the server knows it no more: nobody will use the snapshot, nor remove it."""
    REMOVING = "removing"
    """Gone, and a RemoveSnapshot is at work."""
    UNCLEAR = "unclear"


class OwnerFound(Message):
    """What Describe says of one owner."""

    state: OwnerState
    reason: str = ""


class OwnersFound(Message):
    """One for each owner, in the order in which they were asked for."""

    owners: list[OwnerFound]


class OrphanInput(Message):
    """A snapshot without an owner, to be looked at before its removal."""

    vm: VmRef
    plan: SnapshotPlan
    moref: str


class OrphanLook(Message):
    """What must be known before an orphan's removal."""

    there: bool
    """False: it went by itself since it was listed."""
    created: str = ""
    before: VmState | None = None
    """The VM as it was without the snapshot: what files its removal is compared with."""


class JoblessInput(Message):
    """Running BackupVm workflows whose job has ended are looked for."""

    namespace_id: str
    dry_run: bool = False


class JoblessVm(Message):
    """A BackupVm that lives although its job does not."""

    workflow_id: str
    vm_name: str
    job: str
    """The job's workflow id, and how it ended."""
    already: bool = False
    """Its cancel had been asked for before."""


class Jobless(Message):
    """Those that were found, and cancelled unless it was only a look."""

    vms: list[JoblessVm]
    more: bool = False
    """True: there may be others, for the next sweep."""
    problems: list[str] = Field(default_factory=list)


class PhantomsInput(Message):
    """Of which VMs the directories are searched: `limit` of them from `skip` on, round and round."""

    vcenter: str
    skip: int
    limit: int


class Phantoms(Message):
    """Redo logs that nothing names."""

    findings: list[Finding]
    """The first of them."""
    counts: dict[str, int] = Field(default_factory=dict)
    vms: int
    """Of the vCenter."""
    looked: int


class Verdict(StrEnum):
    """What became of a snapshot of ours."""

    REMOVED = "removed"
    PENDING = "pending"
    """Its removal was started and goes on in RemoveSnapshot."""
    WOULD_REMOVE = "would be removed"
    UNCLEAR = "unclear"
    """Nothing was done: it cannot be told whether its owner lives, or what its VM is like."""
    UNCERTIFIED = "uncertified"
    """The removal ended, and its certificate cannot be made."""
    LEFT = "left"
    """For the next sweep: this one had enough to do."""
    REMOVING = "being removed"
    """A RemoveSnapshot is at work on it already."""
    GONE = "gone"
    """It went by itself while the sweep ran."""
    HELD = "held"
    """Its owner lives."""


IMPORTANCE = {verdict: number for number, verdict in enumerate(Verdict)}


class SweptSnapshot(Message):
    """One snapshot of ours, and what became of it."""

    verdict: Verdict
    vcenter: str
    vm_name: str
    """Untrusted."""
    vc_guid: str
    vm_moref: str
    moref: str
    name: str
    owner: str
    """Workflow id."""
    reason: str = ""
    certificate: RemovalCertificate | None = None


class SweepReport(Message):
    """SweepSnapshots' result."""

    dry_run: bool = False
    adopt: str = ""
    vcenters: list[str] = Field(default_factory=list)
    vms: int = 0
    snapshots_seen: int = 0
    snapshots: list[SweptSnapshot] = Field(default_factory=list)
    """The first of ours, those with trouble before those that are held."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Verdict → how many."""
    cancelled: list[JoblessVm] = Field(default_factory=list)
    cancelled_count: int = 0
    findings: list[Finding] = Field(default_factory=list)
    finding_counts: dict[str, int] = Field(default_factory=dict)
    directories_searched: int = 0
    """Of so many VMs the directories were searched for phantom deltas."""
    problems: list[str] = Field(default_factory=list)
    """What could not be looked at or done. With one the sweep fails."""
    started_at: datetime
    ended_at: datetime

    def with_snapshots(self, more: Iterable[SweptSnapshot]) -> SweepReport:
        """This report with more snapshots, the important ones kept."""
        added = list(more)
        told = sorted([*self.snapshots, *added], key=lambda item: IMPORTANCE[item.verdict])[:MAX_TOLD]
        return self.model_copy(
            update={
                "snapshots": _within_room(told),
                "counts": _plus(self.counts, Counter(item.verdict.value for item in added)),
            }
        )

    def with_findings(self, more: Iterable[Finding], counts: dict[str, int]) -> SweepReport:
        """This report with more findings, of which `counts` has the whole numbers."""
        return self.model_copy(
            update={
                "findings": [*self.findings, *more][:MAX_TOLD],
                "finding_counts": _plus(self.finding_counts, counts),
            }
        )

    def with_problem(self, problem: str) -> SweepReport:
        """This report with one more thing that went wrong."""
        return self.model_copy(update={"problems": [*self.problems, problem][:MAX_PROBLEMS_TOLD]})


class SweepState(Message):
    """How far a sweep is: what it hands to its next run when it continues as new."""

    settings: SweepSettings
    report: SweepReport
    waiting: list[str]
    """vCenters that are not done; the first is under way."""
    after: str = ""
    removals: int = 0
    """Started so far."""


def _plus(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))


def _within_room(told: list[SweptSnapshot]) -> list[SweptSnapshot]:
    """Without the certificates that would make the report too large for a message."""
    kept: list[SweptSnapshot] = []
    room = MAX_CERTIFICATE_BYTES
    for item in told:
        if item.certificate is not None:
            room -= len(item.certificate.model_dump_json())
        where = f"its certificate is made from the result of workflow `remove-snapshot {item.name}`"
        without: dict[str, Any] = {"certificate": None, "reason": where}
        kept.append(item.model_copy(update=without) if room < 0 and item.certificate is not None else item)
    return kept


SweepRequest.model_rebuild()
