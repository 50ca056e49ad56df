"""Step 14 of one VM: marked by an access node, indexed by the MediaAgent. Only when its snapshot is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.index import AccessNodeIndexing, MediaAgentIndexing
    from safehaul.messages.steps import (
        BackupSession,
        IndexInput,
        MarkInput,
        Removal,
        SealedBackup,
        SnapshotRef,
        VmRef,
    )
    from workflows import policies
    from workflows.snapshot_guard import given_time
    from workflows.steps import run_step
    from workflows.vm_node import VmNode
    from workflows.vm_report import VmStory


@dataclass(frozen=True)
class Stored:
    """A backup that is committed (step 12), and what came of its snapshot (step 13)."""

    vm: VmRef
    snapshot: SnapshotRef
    session: BackupSession
    sealed: SealedBackup
    removal: Removal
    asked_at: datetime
    """When the snapshot was asked for."""


async def index_backup(stored: Stored, node: VmNode, story: VmStory, stop: Callable[[], None]) -> None:
    """Mark the VM completed and write its index; `stop` raises between the two when it was cancelled.

    A cancel that comes later does not undo the index: it only ends the wait for a MediaAgent that is away.

    Raises ApplicationError RemovalPending while the snapshot is not gone, and what the steps raise.
    """
    vm, removal = stored.vm, stored.removal
    if not removal.gone:
        raise ApplicationError(
            f"the backup of VM {vm.name!r} is stored, but its snapshot's removal is pending: "
            f"{removal.reason}. RemoveSnapshot goes on with it; look at the snapshot {stored.snapshot.moref} of the "
            "VM in vCenter",
            type="RemovalPending",
            non_retryable=True,
        )
    # Step 14
    with story.step(14, "marking the VM completed"):
        mark = await node.run_anywhere(
            AccessNodeIndexing.mark_completed,
            MarkInput(vm=vm, snapshot=stored.snapshot, removal=removal),
            summary="Step 14 · mark the VM completed",
            policy=policies.VM_STEP_AFTER,
        )
        stop()
        writing = run_step(
            MediaAgentIndexing.write_index,
            IndexInput(
                vm=vm,
                session=stored.session,
                backup_id=stored.sealed.backup_id,
                mark=mark,
                removal=removal,
                report=story.end(None, workflow.now()),
                asked_at=stored.asked_at,
            ),
            queue=policies.media_agent_queue(vm.media_agent),
            summary="Step 14 · write the VM's index",
            policy=policies.MEDIA_AGENT_AFTER,
        )
        written = await given_time(writing, policies.INDEX_AFTER_CANCEL)
    story.indexed(written)
