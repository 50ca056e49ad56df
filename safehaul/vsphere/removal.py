"""Step 13: removes our snapshot and only ours, and proves that it is gone.

Removal has two steps in vSphere: the snapshot leaves the tree, then its disks are consolidated. Done means: gone
from the tree, no consolidation needed that was not needed before us, and no file of ours left in the directories.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from typing import Final

from pyVmomi import vim

from safehaul.errors import BusyError, NotFoundError, PermanentError, SafehaulError, TransientError
from safehaul.messages.inventory import SnapshotNode, VmState
from safehaul.messages.snapshots import RemovalRecord
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.leftovers import compare, went_with_it
from safehaul.vsphere.snapshots import tree
from safehaul.vsphere.tasks import (
    DEFAULT_TIMEOUT_S,
    Heartbeat,
    no_heartbeat,
    pause,
    wait,
    wait_out_snapshot_tasks,
)
from safehaul.vsphere.vms import vm_state
from safehaul.vsphere.whereabouts import check_deleted, find_holder

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S: Final = 0.5
_LAST_BACKOFF_S: Final = 60.0
# Copies of one snapshot come from lost answers, one for each try.
_MAX_COPIES: Final = 32


class _Removal:
    """One removal under way: what it looks for, and what it has seen and done."""

    def __init__(
        self,
        vcenter: VCenter,
        vm_moref: str,
        *,
        name: str,
        description: str,
        snapshot_moref: str,
        before: VmState | None,
        heartbeat: Heartbeat,
        timeout_s: float,
    ) -> None:
        self.vcenter = vcenter
        self.vm_moref = vm_moref
        self.name = name
        self.description = description
        self.snapshot_moref = snapshot_moref
        self.before = before
        self.heartbeat = heartbeat
        self.deadline = time.monotonic() + timeout_s
        self.started_at = dt.datetime.now(dt.UTC)
        self.removed: list[str] = []
        self.tree_before: list[SnapshotNode] = []
        self.consolidations = 0
        self.polls = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at least one: a started step gets its chance."""
        return max(1.0, self.deadline - time.monotonic())

    def back_off(self, attempt: int, reason: str) -> None:
        """Sleeps before another try; BusyError with the reason when there is no time for one."""
        pause_s = min(_FIRST_BACKOFF_S * 2**attempt, _LAST_BACKOFF_S)
        if time.monotonic() + pause_s > self.deadline:
            raise BusyError(f"snapshot {self.name!r} of {self.vm_moref} is not gone yet: {reason}; try again")
        log.info("snapshot %r of %s: %s; again in %.1f s", self.name, self.vm_moref, reason, pause_s)
        pause(pause_s, self.heartbeat)


def remove(
    vcenter: VCenter,
    vm_moref: str,
    *,
    name: str,
    description: str,
    snapshot_moref: str = "",
    before: VmState | None = None,
    instance_uuid: str = "",
    heartbeat: Heartbeat = no_heartbeat,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> RemovalRecord:
    """Removes our snapshot and returns when it is proved to be gone. A second run finds it gone and proves it again.

    Args:
        vcenter: the session.
        vm_moref: the VM's.
        name: the snapshot's, exactly.
        description: our marker, exactly.
        snapshot_moref: the recorded one; without it name and description decide.
        before: the VM before the snapshot was made, directories listed. Without it consolidation is run only when
            this very removal brought the need, and files are not compared.
        instance_uuid: the VM's: finds it under another moref after it was registered anew, and tells a VM that was
            deleted (the record's `vm_gone`) from one that is only out of the inventory.
        heartbeat: called at least every other second; may raise to stop, and then vCenter's task goes on.
        timeout_s: for the whole.

    Raises:
        PermanentError: the snapshot of that moref, or with our marker, has another name or description. Nothing is
            removed.
        BusyError: locked or leftover files, other tasks, a VM out of the inventory: run it again.
        SafehaulError: vCenter's refusal, translated.
    """
    removal = _Removal(
        vcenter,
        vm_moref,
        name=name,
        description=description,
        snapshot_moref=snapshot_moref,
        before=before,
        heartbeat=heartbeat,
        timeout_s=timeout_s,
    )
    found = find_holder(vcenter, vm_moref, instance_uuid, description)
    if found is None:
        return _went_with_its_vm(removal)
    first = _readable(found)
    removal.vm_moref = first.moref
    needed_before = before.consolidation_needed if before is not None else first.consolidation_needed
    _remove_copies(removal, first)
    final = _settle(removal, needed_before)
    return _record(removal, first, final, needed_before)


def _record(removal: _Removal, first: VmState, final: VmState, needed_before: bool) -> RemovalRecord:
    before = removal.before if removal.before is not None and removal.before.listed else None
    left = compare(before, final) if before is not None else None
    return RemovalRecord(
        vm_moref=first.moref,
        name=removal.name,
        description=removal.description,
        morefs=removal.removed,
        already_gone=not removal.removed,
        started_at=removal.started_at.isoformat(),
        finished_at=dt.datetime.now(dt.UTC).isoformat(),
        tree_before=removal.tree_before,
        tree_after=final.snapshots,
        consolidation_needed_before=needed_before,
        consolidation_needed_after=final.consolidation_needed,
        consolidations=removal.consolidations,
        files_checked=left is not None,
        snapshot_files=went_with_it(before, first, final) if before is not None else [],
        files_left=left.ours if left is not None else [],
        appeared=left.named if left is not None else [],
        left=left.unexplained if left is not None else [],
        polls=removal.polls,
    )


def _went_with_its_vm(removal: _Removal) -> RemovalRecord:
    """The VM was deleted, and its snapshot with it; `files_checked` says whether its directories were looked at."""
    listed = check_deleted(
        removal.vcenter, removal.before.name if removal.before else "?", removal.before, removal.heartbeat
    )
    return RemovalRecord(
        vm_moref=removal.vm_moref,
        name=removal.name,
        description=removal.description,
        vm_gone=True,
        already_gone=True,
        started_at=removal.started_at.isoformat(),
        finished_at=dt.datetime.now(dt.UTC).isoformat(),
        consolidation_needed_before=False,
        consolidation_needed_after=False,
        files_checked=listed is not None,
        left=[file.path for file in listed or []],
    )


def _ours(nodes: list[SnapshotNode], name: str, description: str, snapshot_moref: str) -> list[SnapshotNode]:
    """Which snapshots of a tree are ours: the recorded one first, then copies by name and description.

    Raises:
        PermanentError: the recorded moref belongs to a snapshot that is not ours, or ours was renamed.
    """
    if not name or not description:
        raise PermanentError("a snapshot is removed by its exact name and description; one of them is empty")
    recorded = next((node for node in nodes if snapshot_moref and node.moref == snapshot_moref), None)
    if recorded is not None and (recorded.name, recorded.description) != (name, description):
        raise PermanentError(
            f"snapshot {snapshot_moref} is named {recorded.name!r}, expected is {name!r} with our description: "
            "it is not ours, and is left alone; look at the VM's snapshots in vCenter"
        )
    same = [node for node in nodes if (node.name, node.description) == (name, description)]
    renamed = next((node for node in nodes if node.description == description and node.name != name), None)
    if not same and renamed is not None:
        # It holds our marker, so to say that ours is gone would be a lie; a name that we did not give is left alone.
        raise PermanentError(
            f"snapshot {renamed.moref} holds our marker and is named {renamed.name!r}, not {name!r}: somebody renamed "
            "it; name it as before, or remove it in vCenter"
        )
    return sorted(same, key=lambda node: node.moref != snapshot_moref)


def _start(vcenter: VCenter, snapshot_moref: str) -> str:
    task = vcenter.mutate(
        # Children stay: they are other people's. Consolidation is part of the task where vCenter can do it.
        lambda session: session.managed(vim.vm.Snapshot, snapshot_moref).RemoveSnapshot_Task(
            removeChildren=False, consolidate=True
        )
    )
    return moref(task)


def _remove_copies(removal: _Removal, first: VmState) -> None:
    """Removes until neither the tree nor a running task can bring our snapshot back."""
    nodes = first.snapshots
    # A removal under way (an earlier try's) is waited for and not asked for again.
    if first.running_snapshot_tasks and wait_out_snapshot_tasks(
        removal.vcenter, removal.vm_moref, removal.heartbeat, timeout_s=removal.left_s
    ):
        nodes = tree(removal.vcenter, removal.vm_moref)
    removal.tree_before = nodes
    for attempt in range(_MAX_COPIES):
        found = _ours(nodes, removal.name, removal.description, removal.snapshot_moref)
        if found:
            _remove_one(removal, found[0], attempt)
        elif not wait_out_snapshot_tasks(
            removal.vcenter, removal.vm_moref, removal.heartbeat, timeout_s=removal.left_s
        ):
            return
        nodes = tree(removal.vcenter, removal.vm_moref)
    raise BusyError(f"snapshot {removal.name!r} of {removal.vm_moref} comes back or stays: look at its tasks")


def _remove_one(removal: _Removal, node: SnapshotNode, attempt: int) -> None:
    """One call and its task. What may have worked, or may work later, is looked at again by the caller."""
    try:
        task = _start(removal.vcenter, node.moref)
        if node.moref not in removal.removed:
            removal.removed.append(node.moref)
        wait(removal.vcenter, task, removal.heartbeat, timeout_s=removal.left_s)
    except NotFoundError:
        log.info("snapshot %s of %s is gone already", node.moref, removal.vm_moref)
    except TransientError as error:
        still = any(each.moref == node.moref for each in tree(removal.vcenter, removal.vm_moref))
        if not still:
            return
        wait_out_snapshot_tasks(
            removal.vcenter, removal.vm_moref, removal.heartbeat, timeout_s=removal.left_s
        )
        removal.back_off(attempt, str(error))


def _settle(removal: _Removal, needed_before: bool) -> VmState:
    """Waits until the disks are consolidated and our files are gone; consolidates where we brought the need."""
    attempt = 0
    before = removal.before if removal.before is not None and removal.before.listed else None
    while True:
        state = _look(removal, before)
        if state.consolidation_needed and not needed_before:
            reason = _consolidate(removal)
            if not reason:
                state = _look(removal, before)
                reason = "vCenter still asks for consolidation" if state.consolidation_needed else ""
        else:
            reason = ""
        if not reason and before is not None and (ours := compare(before, state).ours):
            reason = f"{len(ours)} files of it are still there: {', '.join(ours[:5])}"
        if not reason:
            return state
        removal.back_off(attempt, reason)
        attempt += 1


def _look(removal: _Removal, before: VmState | None) -> VmState:
    removal.polls += 1
    removal.heartbeat(None)
    state = vm_state(
        removal.vcenter,
        removal.vm_moref,
        list_directories=before is not None,
        also_list=before.directories if before is not None else (),
        heartbeat=removal.heartbeat,
    )
    return _readable(state)


def _readable(state: VmState) -> VmState:
    """A VM that vCenter cannot read shows no snapshot either: that proves nothing."""
    if state.connection_state != "connected":
        raise BusyError(
            f"VM {state.name!r} ({state.moref}) is {state.connection_state}: vCenter cannot tell its snapshots now; "
            "bring its host or datastore back"
        )
    return state


def _consolidate(removal: _Removal) -> str:
    """Runs one consolidation. Returns why another try is needed, or nothing."""
    try:
        task = removal.vcenter.mutate(
            lambda session: session.managed(vim.VirtualMachine, removal.vm_moref).ConsolidateVMDisks_Task()
        )
        removal.consolidations += 1
        wait(removal.vcenter, moref(task), removal.heartbeat, timeout_s=removal.left_s)
    except (TransientError, NotFoundError) as error:
        return f"its disks are not consolidated: {error}"
    except SafehaulError as error:
        raise type(error)(
            f"the snapshot left the tree but its disks are not consolidated: {error}"
        ) from error
    return ""
