"""Disk filters: which disks of a VM its group selects. A disk that is left out was left out on purpose.

Such a disk is named in the VM's report and in the manifest with its reason, and does not make the VM `Partial`:
that word is for disks that were wanted and could not be had. A VM of which no disk is left is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safehaul.messages.disks import DiskCriteria, DiskSelection
from safehaul.messages.inventory import VmDisk, VmRecord
from safehaul.patterns import matcher

DESELECTED = "deselected"
"""The `transport` of a disk that a filter leaves out."""
_REASON_CHARS = 400


@dataclass(frozen=True)
class DiskChoice:
    """What the filters make of one VM's disks."""

    selected: list[VmDisk]
    deselected: list[tuple[VmDisk, str]]
    """Each with its reason."""

    @property
    def nothing_left(self) -> bool:
        """True when the VM has disks and the filters leave none of them."""
        return bool(self.deselected) and not self.selected

    def complaint(self, vm_name: str) -> str:
        """Why nothing can be backed up of a VM of which nothing is left."""
        reasons = _short("; ".join(f"{disk.label}: {reason}" for disk, reason in self.deselected))
        return (
            f"the VM group's disk filters leave none of the {len(self.deselected)} disks of VM {vm_name!r} "
            f"({reasons}): change disks or exclude_disks, or exclude the VM"
        )


def choose(disks: Sequence[VmDisk], selection: DiskSelection) -> DiskChoice:
    """Apply the filters to a VM's disks."""
    selected: list[VmDisk] = []
    deselected: list[tuple[VmDisk, str]] = []
    for disk in disks:
        reason = why_deselected(disk, selection)
        if reason:
            deselected.append((disk, reason))
        else:
            selected.append(disk)
    return DiskChoice(selected, deselected)


def why_deselected(disk: VmDisk, selection: DiskSelection) -> str:
    """Why a filter leaves the disk out, in words; empty when it is selected."""
    if selection.include and not any(fits(disk, criteria) for criteria in selection.include):
        wanted = " or ".join(map(words, selection.include))
        return f"not selected: no disk filter fits ({_short(wanted)})"
    veto = next((criteria for criteria in selection.exclude if fits(disk, criteria)), None)
    return f"not selected: excluded by disk filter {_short(words(veto))}" if veto is not None else ""


def fits(disk: VmDisk, criteria: DiskCriteria) -> bool:
    """Whether every criterion that is given fits the disk."""
    datastore, file = _base(disk)
    texts = ((criteria.label, disk.label), (criteria.datastore, datastore), (criteria.file, file))
    return (
        all(matcher(glob, ignore_case=criteria.ignore_case)(text) for glob, text in texts if glob)
        and criteria.controller_key in (None, disk.controller_key)
        and criteria.unit_number in (None, disk.unit_number)
        and (criteria.min_size_bytes is None or disk.capacity_bytes >= criteria.min_size_bytes)
        and (criteria.max_size_bytes is None or disk.capacity_bytes <= criteria.max_size_bytes)
    )


def words(criteria: DiskCriteria) -> str:
    """The criteria for a report: `label 'Hard disk 2' and datastore 'nas-*'`."""
    return " and ".join(_words(criteria))


def narrowed(record: VmRecord, choice: DiskChoice) -> VmRecord:
    """The VM with its selected disks only, and without datastores that only deselected ones need."""
    if not choice.deselected:
        return record
    needed = {_datastore(path) for disk in choice.selected for path in (disk.path, *disk.parent_paths)}
    needed.add(_datastore(record.vmx_path))
    spared = {
        _datastore(path) for disk, _ in choice.deselected for path in (disk.path, *disk.parent_paths)
    } - needed
    return record.model_copy(
        update={
            "disks": choice.selected,
            "datastores": [name for name in record.datastores if name not in spared],
        }
    )


def _short(text: str) -> str:
    """A reason travels with each disk and VM: many filters must not make it long."""
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}…"


def _base(disk: VmDisk) -> tuple[str, str]:
    """Datastore and path in it of the lowest descriptor: redo logs come and go with other names."""
    path = disk.parent_paths[-1] if disk.parent_paths else disk.path
    return _datastore(path), path.partition("]")[2].strip()


def _datastore(path: str) -> str:
    """The name in a datastore path. It is only compared here, so a hostile path does no harm."""
    return path.partition("]")[0].removeprefix("[")


def _words(criteria: DiskCriteria) -> Iterator[str]:
    case = " in any case" if criteria.ignore_case else ""
    for name in ("label", "datastore", "file"):
        if glob := getattr(criteria, name):
            yield f"{name} {glob!r}{case}"
    if criteria.controller_key is not None:
        yield f"controller key {criteria.controller_key}"
    if criteria.unit_number is not None:
        yield f"unit number {criteria.unit_number}"
    if criteria.min_size_bytes is not None:
        yield f"size >= {criteria.min_size_bytes} bytes"
    if criteria.max_size_bytes is not None:
        yield f"size <= {criteria.max_size_bytes} bytes"
