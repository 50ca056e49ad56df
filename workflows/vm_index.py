"""Step 14 of one VM: marked by an access node, indexed by the MediaAgent. Only when its snapshot is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.index import AccessNodeIndexing, MediaAgentIndexing
    from safehaul.messages.steps import (
        BackupSession,
        CompletionMark,
        IndexInput,
        MarkInput,
        Removal,
        SealedBackup,
        SnapshotRef,
        VmRef,
    )
    from workflows import policies
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


async def index_backup(stored: Stored, node: VmNode, story: VmStory, stop: Callable[[], None]) -> None:
    """Mark the VM completed and write its index; `stop` raises between the two when it was cancelled.

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
        mark = await _mark(node, MarkInput(vm=vm, snapshot=stored.snapshot, removal=removal))
        stop()
        written = await run_step(
            MediaAgentIndexing.write_index,
            IndexInput(
                vm=vm,
                session=stored.session,
                backup_id=stored.sealed.backup_id,
                mark=mark,
                removal=removal,
                report=story.end(None, workflow.now()),
            ),
            queue=policies.media_agent_queue(vm.media_agent),
            summary="Step 14 · write the VM's index",
            policy=policies.MEDIA_AGENT_AFTER,
        )
    story.indexed(written)


async def _mark(node: VmNode, mark: MarkInput) -> CompletionMark:
    """Step 14's look, which any node can take: nothing of the VM is on its own one any more."""
    summary, policy = "Step 14 · mark the VM completed", policies.VM_STEP_AFTER
    try:
        return await node.run(AccessNodeIndexing.mark_completed, mark, summary=summary, policy=policy)
    except ActivityError:
        if not node.dead or not workflow.patched("any-node-marks-the-vm"):
            raise
    return await run_step(
        AccessNodeIndexing.mark_completed,
        mark,
        queue=policies.ACCESS_NODES_QUEUE,
        summary=f"{summary} ({node.name} does not answer)",
        policy=policy,
    )
