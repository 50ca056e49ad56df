"""Making and removing a snapshot, as recorded: what was there before, what was done, what is left."""

from __future__ import annotations

from pydantic import Field

from safehaul.messages.base import Message
from safehaul.messages.inventory import SnapshotNode


class TakenSnapshot(Message):
    """A snapshot of ours that exists."""

    moref: str
    name: str
    description: str
    created: str
    """ISO 8601, vCenter's clock."""
    quiesced: bool = False
    adopted: bool = False
    """An earlier try had made it already."""


class RemovalRecord(Message):
    """The proof that a snapshot is gone: from the tree, from the disks and from the datastore."""

    vm_moref: str
    name: str
    description: str
    morefs: list[str] = Field(default_factory=list)
    """What this call removed; empty when the snapshot was gone already."""
    already_gone: bool = False
    vm_gone: bool = False
    """VCenter knows the VM no more, and nothing of the snapshot is in its directories (if `files_checked`)."""
    started_at: str
    """ISO 8601, this process's clock."""
    finished_at: str
    tree_before: list[SnapshotNode] = Field(default_factory=list)
    """Just before the removal, ours included, when other tasks of the VM had ended."""
    tree_after: list[SnapshotNode] = Field(default_factory=list)
    consolidation_needed_before: bool
    """As it was before our snapshot was made: debt that is not ours, and that we do not pay."""
    consolidation_needed_after: bool
    consolidations: int = 0
    """How often ConsolidateVMDisks_Task was run."""
    files_checked: bool = False
    """False: nobody had listed the directories before the snapshot was made, so there was nothing to compare."""
    snapshot_files: list[str] = Field(default_factory=list)
    """Datastore paths that our snapshot had brought, by `layoutEx` just before the removal, and that are gone."""
    files_left: list[str] = Field(default_factory=list)
    """A snapshot's files that appeared and that nothing names any more: ours. None when the removal is done."""
    appeared: list[str] = Field(default_factory=list)
    """Datastore paths that were not there before our snapshot and are now, named by `layoutEx`: not ours."""
    left: list[str] = Field(default_factory=list)
    """Files that appeared, that nothing names and that are no snapshot's either; listed for a human."""
    polls: int = 0
    """How often the VM was looked at until everything was gone."""
