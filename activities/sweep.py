"""The sweep's looks at vCenter, on any access node: all snapshots, an orphan, phantom deltas. None changes anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from activities.beat import beat
from activities.errors import step
from activities.peers import Peers
from safehaul.errors import SafehaulError
from safehaul.messages.sweep import (
    Finding,
    FindingKind,
    FoundSnapshot,
    OrphanInput,
    OrphanLook,
    Phantoms,
    PhantomsInput,
    SnapshotPage,
    SnapshotPageInput,
    VmSnapshots,
)
from safehaul.ownership import found_on
from safehaul.vsphere import all_snapshots, whereabouts

MAX_FINDINGS = 200
"""Of one vCenter that are told; all are counted."""
MAX_TEXT = 500


class SnapshotLooks:
    """Activities of the common queue `access-nodes`."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("list_snapshots")
    def list_snapshots(self, arg: SnapshotPageInput) -> SnapshotPage:
        """Reads the snapshots of all VMs of a vCenter and tells a page of those that are provably ours.

        Proved means: the marker holds our installation, our Temporal namespace (or the lost one that is adopted), the
        VC.GUID of the very VM that holds it, which no other VM has, and the snapshot's name. Keyed by nothing: a second
        run looks again. Heartbeats with each page of the inventory. Errors: vCenter cannot be asked.
        """
        found = all_snapshots.all_snapshots(self._peers.vcenter(arg.vcenter), heartbeat=beat)
        return page_of(found, arg, datetime.now(UTC))

    @step("look_at_orphan")
    def look_at_orphan(self, arg: OrphanInput) -> OrphanLook:
        """Before an orphan's removal: is it still there, and what is the VM without it?

        A second run looks again. Heartbeats while directories are listed. Errors: the VM cannot be read now, or one of
        its snapshot tasks runs.
        """
        node, before = all_snapshots.look_at_orphan(
            self._peers.vcenter(arg.vm.vcenter),
            arg.vm.moref,
            whereabouts.instance_uuid_of(arg.vm.vc_guid),
            (arg.plan.name, arg.plan.description),
            beat,
        )
        return OrphanLook(there=node is not None, created=node.created if node else "", before=before)

    @step("find_phantom_deltas")
    def find_phantom_deltas(self, arg: PhantomsInput) -> Phantoms:
        """Searches the directories of some VMs for redo logs that no disk and no snapshot names.

        Which VMs is decided by `skip` and `limit`, round and round. A second run looks again. Heartbeats while
        directories are listed. Errors: vCenter cannot be asked; a VM that cannot be looked at is passed over.
        """
        vcenter = self._peers.vcenter(arg.vcenter)
        vms = [vm for vm in all_snapshots.all_snapshots(vcenter, heartbeat=beat) if not vm.unreadable]
        count = min(arg.limit, len(vms))
        chosen = [vms[(arg.skip + number) % len(vms)] for number in range(count)]
        findings: list[Finding] = []
        looked = 0
        for vm in chosen:
            try:
                paths = all_snapshots.phantom_deltas(vcenter, vm.moref, heartbeat=beat)
            except SafehaulError:
                # It has gone, or its directory may not be listed: this look is a courtesy, and others follow.
                continue
            looked += 1
            findings += [_finding(vm, FindingKind.PHANTOM, path) for path in paths]
        return Phantoms(
            findings=_told(findings, arg.vcenter), counts=_counts(findings), vms=len(vms), looked=looked
        )


def page_of(vms: list[VmSnapshots], arg: SnapshotPageInput, now: datetime) -> SnapshotPage:
    """The page of ours that is asked for, and with the first one what else is worth telling."""
    guids = Counter(vm.vc_guid.lower() for vm in vms if vm.vc_guid)
    ours: list[FoundSnapshot] = []
    findings: list[Finding] = []
    ended, after = True, ""
    for vm in sorted(vms, key=lambda each: each.moref):
        mine, others = found_on(vm, arg.ours, twins=guids[vm.vc_guid.lower()] > 1, now=now)
        findings += [*others, *_debts(vm)]
        if vm.moref <= arg.after or not mine:
            continue
        if ours and len(ours) + len(mine) > arg.limit:
            # Whole VMs: the page may be a little longer when one VM alone fills it.
            ended = False
            continue
        if ended:
            ours += mine
            after = vm.moref
    first = not arg.after
    return SnapshotPage(
        snapshots=ours,
        after=after,
        ended=ended,
        vms=len(vms),
        snapshots_seen=sum(len(vm.snapshots) for vm in vms),
        findings=_told(findings, arg.vcenter) if first else [],
        finding_counts=_counts(findings) if first else {},
    )


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    return dict(Counter(each.kind.value for each in findings))


def _debts(vm: VmSnapshots) -> list[Finding]:
    found = []
    if vm.unreadable:
        found.append(_finding(vm, FindingKind.UNREADABLE, vm.unreadable))
    if vm.consolidation_needed:
        found.append(_finding(vm, FindingKind.CONSOLIDATION, "its disks need consolidation"))
    return found


def _finding(vm: VmSnapshots, kind: FindingKind, what: str) -> Finding:
    return Finding(kind=kind, vm_name=vm.name, vm_moref=vm.moref, what=what)


def _told(findings: Iterable[Finding], vcenter: str) -> list[Finding]:
    """The first of each kind in turn, so that many of one do not hide the others."""
    by_kind: dict[FindingKind, list[Finding]] = {}
    for each in findings:
        by_kind.setdefault(each.kind, []).append(each)
    share = MAX_FINDINGS // max(1, len(by_kind))
    return [
        each.model_copy(update={"vcenter": vcenter, "what": each.what[:MAX_TEXT]})
        for kind in FindingKind
        for each in by_kind.get(kind, [])[:share]
    ]
