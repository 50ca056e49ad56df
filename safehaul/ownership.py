"""Whose a snapshot is: provably ours, somebody else's, or one that nobody can tell. Only the first may ever be removed.

What is not ours is told where it looks like a leftover: a person decides about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.marker import PREFIX, SnapshotMarker
from safehaul.messages.sweep import Finding, FindingKind, FoundSnapshot, SweepIdentity, VmSnapshots

# How other products call their temporary snapshots, in lower case. The beginning of the name decides.
PRODUCTS: Final = {
    "veeam backup temporary snapshot": "Veeam Backup & Replication",
    "__gx_backup__": "Commvault",
    "nbu_snapshot": "NetBackup",
    "tsm-vm snapshot": "IBM Spectrum Protect",
    "bareostmpsnap": "Bareos",
    "consolidate helper": "vSphere (a consolidation that failed)",
}
# A backup of theirs may be under way: younger ones are no leftover.
LEFTOVER_AFTER: Final = timedelta(days=1)
_NAME_LIKE_OURS: Final = "safehaul "


def found_on(
    vm: VmSnapshots, ours: SweepIdentity, *, twins: bool, now: datetime
) -> tuple[list[FoundSnapshot], list[Finding]]:
    """The snapshots of a VM that are provably ours, and what looks like somebody else's leftover.

    Args:
        vm: as vCenter tells it.
        ours: who we are.
        twins: other VMs have the same VC.GUID, so that a marker proves nothing.
        now: what ages are counted from.
    """
    mine: dict[str, FoundSnapshot] = {}
    findings: list[Finding] = []
    for node in vm.snapshots:
        marker = SnapshotMarker.parse(node.description)
        doubts = _looks_like(node, now) if marker is None else _doubts(vm, node, marker, ours, twins=twins)
        doubt = next(doubts, None)
        if doubt is not None:
            kind, what = doubt
            told = f"snapshot {node.moref} ({node.name!r}): {what}"
            findings.append(Finding(kind=kind, vm_name=vm.name, vm_moref=vm.moref, what=told))
        elif marker is not None and marker.text() in mine:
            # After a lost answer there may be two: both are ours, and one removal takes both.
            known = mine[marker.text()]
            mine[marker.text()] = known.model_copy(update={"copies": known.copies + 1})
        elif marker is not None:
            mine[marker.text()] = FoundSnapshot(
                vm_moref=vm.moref,
                vm_name=vm.name,
                moref=node.moref,
                created=node.created,
                marker=marker,
            )
    return list(mine.values()), findings


def _doubts(
    vm: VmSnapshots, node: SnapshotNode, marker: SnapshotMarker, ours: SweepIdentity, *, twins: bool
) -> Iterator[tuple[FindingKind, str]]:
    """Why a snapshot with a marker is not provably ours; nothing for one that is."""
    if marker.installation != ours.installation_id:
        yield FindingKind.OTHER_INSTALLATION, f"of the safehaul installation {marker.installation[:100]}"
    if marker.namespace not in {ours.namespace_id, ours.adopt} - {""}:
        told = f"of Temporal namespace {marker.namespace[:100]}: if that one is lost for good, `--adopt` removes it"
        yield FindingKind.OTHER_NAMESPACE, told
    if node.description != marker.text():
        yield FindingKind.UNPROVED, "its marker is not ours to the letter"
    if marker.vc_guid.lower() != vm.vc_guid.lower():
        yield FindingKind.UNPROVED, f"its marker is for VM {marker.vc_guid[:200]}, and this is {vm.vc_guid}"
    if twins:
        yield FindingKind.UNPROVED, f"several VMs have VC.GUID {vm.vc_guid}: give all but one a new one"
    if node.name != marker.snapshot_name:
        yield FindingKind.UNPROVED, f"it holds our marker under another name than {marker.snapshot_name!r}"


def _looks_like(node: SnapshotNode, now: datetime) -> Iterator[tuple[FindingKind, str]]:
    """What a snapshot without a marker of ours looks like, if it looks like a leftover."""
    if node.description.startswith(PREFIX) or node.name.startswith(_NAME_LIKE_OURS):
        yield FindingKind.UNPROVED, "it looks like ours, and has no whole marker"
    name = node.name.lower()
    product = next((product for begin, product in PRODUCTS.items() if name.startswith(begin)), "")
    if product and now - _made(node, now) >= LEFTOVER_AFTER:
        yield FindingKind.OTHER_PRODUCT, f"of {product}, made {node.created}"


def _made(node: SnapshotNode, now: datetime) -> datetime:
    """When it was made; now when nobody can tell."""
    try:
        made = datetime.fromisoformat(node.created)
    except ValueError:
        return now
    return made if made.tzinfo is not None else made.replace(tzinfo=UTC)
