"""The removal certificate: the proof, in a backup's index, that its snapshot is gone and nobody else's was touched.

There is no false one: a certificate of which any part is not as it must be cannot be made, nor read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError, model_validator

from safehaul.errors import PolicyError
from safehaul.messages.base import Message
from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.snapshots import RemovalRecord

# The times come from three clocks (Temporal's server, vCenter's, the access node's), which nobody promises to agree:
# a snapshot that seems to be removed some hours before it was made is no lie of ours. A day is one.
CLOCKS_DIFFER_AT_MOST: Final = timedelta(days=1)
_FILES_NAMED = 5
_ASKED, _BEGUN, _FOUND_GONE = "it was asked for", "its removal began", "it was found gone"


class RemovalCertificate(Message):
    """The removal of one snapshot, proved. Times are ISO 8601, paths are datastore paths."""

    vc_guid: str
    vm_moref: str
    name: str
    """The snapshot's."""
    marker: str
    """Its description, which says whose it was."""
    morefs: list[str]
    """The recorded one first; more than one when a lost answer had brought copies."""
    asked_at: str = ""
    """When the snapshot was asked for, by Temporal's clock; empty when whoever asked can tell nobody."""
    created_at: str
    """When it was made, by vCenter's clock."""
    started_at: str
    """When the removal that found it gone in the end began, by the access node's clock."""
    finished_at: str
    """When everything had been looked at, by the same clock."""
    tree_before: list[SnapshotNode]
    """The VM's snapshots when that removal began. Ours is missing when an earlier try had taken it out already."""
    tree_after: list[SnapshotNode]
    consolidation_needed_before: bool
    """Before our snapshot was made: debt of somebody else."""
    consolidation_needed_after: bool
    consolidations: int = 0
    """How often we consolidated what our snapshot had left."""
    files_checked: bool
    """The VM's directories were listed before the snapshot was made, and after it was removed."""
    snapshot_files: list[str]
    """Files that the snapshot brought, and that are gone; what an earlier try had removed is not among them."""
    files_left: list[str]
    """A snapshot's files that appeared since, that no snapshot and no disk of the VM names. None."""
    files_of_others: list[str]
    """Files that appeared since and that the VM names: a later snapshot of somebody, for one."""
    other_files: list[str]
    """What else appeared in the VM's directories and is no snapshot's: logs, copies, other VMs' files."""

    @model_validator(mode="after")
    def _is_true(self) -> RemovalCertificate:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def issue(
    record: RemovalRecord, *, vc_guid: str, vm_name: str, moref: str, created_at: str, asked_at: str = ""
) -> RemovalCertificate:
    """The certificate of a removal.

    Args:
        record: what the removal has seen and done.
        vc_guid: the VM's.
        vm_name: for messages.
        moref: the snapshot's, as it was recorded when it was made.
        created_at: when vCenter made it.
        asked_at: when it was asked for, if somebody knows.

    Raises:
        PolicyError: some part is not as it must be; names each.
    """
    refused = f"the removal of snapshot {record.name!r} of VM {vm_name!r} is not certified: "
    if record.vm_gone:
        raise PolicyError(
            f"{refused}its VM has left vCenter's inventory, so that nobody can look at its tree"
        )
    try:
        return RemovalCertificate(
            vc_guid=vc_guid,
            vm_moref=record.vm_moref,
            name=record.name,
            marker=record.description,
            morefs=[each for each in dict.fromkeys([moref, *record.morefs]) if each],
            asked_at=asked_at,
            created_at=created_at,
            started_at=record.started_at,
            finished_at=record.finished_at,
            tree_before=record.tree_before,
            tree_after=record.tree_after,
            consolidation_needed_before=record.consolidation_needed_before,
            consolidation_needed_after=record.consolidation_needed_after,
            consolidations=record.consolidations,
            files_checked=record.files_checked,
            snapshot_files=record.snapshot_files,
            files_left=record.files_left,
            files_of_others=record.appeared,
            other_files=record.left,
        )
    except ValidationError as error:
        told = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors())
        raise PolicyError(f"{refused}{told}") from None


def _problems(made: RemovalCertificate) -> Iterator[str]:
    """Every part that is not as it must be, in words."""
    for what, text in (("VC.GUID", made.vc_guid), ("name", made.name), ("marker", made.marker)):
        if not text:
            yield f"it has no {what}"
    if not made.morefs:
        yield "which snapshot it was is not recorded"
    still = [each.moref for each in made.tree_after if _is_ours(made, each)]
    if still:
        yield f"{', '.join(still)} is still in the VM's tree"
    after = {each.moref for each in made.tree_after}
    for each in made.tree_before:
        if each.moref not in after and not _is_ours(made, each):
            yield f"snapshot {each.moref} ({each.name!r}), which is not ours, went while ours was removed"
    if made.consolidation_needed_after and not made.consolidation_needed_before:
        yield "the VM's disks need consolidation, which they did not before our snapshot"
    if not made.files_checked:
        yield "nobody has looked for its files"
    if made.files_left:
        yield f"{len(made.files_left)} files of it are left: {', '.join(made.files_left[:_FILES_NAMED])}"
    yield from _wrong_times(made)


def _is_ours(made: RemovalCertificate, node: SnapshotNode) -> bool:
    return node.moref in made.morefs or node.description == made.marker


def _wrong_times(made: RemovalCertificate) -> Iterator[str]:
    told = {
        _ASKED: made.asked_at,
        "it was made": made.created_at,
        _BEGUN: made.started_at,
        _FOUND_GONE: made.finished_at,
    }
    times: list[tuple[str, datetime]] = []
    for what, text in told.items():
        if what == _ASKED and not text:
            continue
        at = _time(text)
        if at is None:
            yield f"when {what} is not recorded ({text!r})"
        else:
            times.append((what, at))
    for index, (what, at) in enumerate(times):
        for earlier_what, earlier in times[:index]:
            one_clock = (earlier_what, what) == (_BEGUN, _FOUND_GONE)
            if earlier - at > (timedelta() if one_clock else CLOCKS_DIFFER_AT_MOST):
                yield f"its times are out of order: {earlier_what} {earlier}, {what} {at}"


def _time(text: str) -> datetime | None:
    """A time with its zone; None for anything else."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
