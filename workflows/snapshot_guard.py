"""A VM's snapshot, made (steps 6, 7) and removed (13) so that no cancel, failure or dead node leaves it behind.

Three traps are avoided here and in BackupVm: an activity that is cancelled but goes on behind its workflow (all
steps wait for the cancel's completion); a step that ignores the cancel and returns a result (BackupVm looks at
`workflow.cancellation_reason()` after each step); and a cancel that arrives while the removal runs and ends the
workflow before it (`uninterrupted` waits until the task is done, whatever arrives).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.snapshot import Snapshots
    from safehaul.errors import QuiesceRefusedError
    from safehaul.messages.marker import SnapshotMarker, removal_id
    from safehaul.messages.steps import (
        CreateSnapshotInput,
        Inspection,
        Removal,
        RemovalInput,
        RemoveSnapshotInput,
        SnapshotPlan,
        SnapshotRef,
    )
    from safehaul.messages.vm import BackupVmInput, VmOptions
    from workflows import policies
    from workflows.nodes import fell_silent
    from workflows.steps import run_step
    from workflows.vm_node import VmNode
    from workflows.vm_report import explain

ResultT = TypeVar("ResultT")


async def uninterrupted(
    work: Coroutine[Any, Any, ResultT], on_cancel: Callable[[], None] = lambda: None
) -> ResultT:
    """Wait for `work` to end although the workflow may be cancelled meanwhile; `on_cancel` may tell of it.

    `asyncio.shield` would protect the work but not the wait. The cancel is absorbed here and seen by the caller
    afterwards through `workflow.cancellation_reason()`.
    """
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await workflow.wait([task])
        except asyncio.CancelledError:
            on_cancel()
    return task.result()


async def given_time(work: Coroutine[Any, Any, ResultT], after_cancel: timedelta) -> ResultT:
    """Wait for `work` to end; a cancel of the workflow is passed on to it when it has not ended by then.

    For a step whose result outlives the workflow: between two tries nobody knows whether the first one has done it.
    """
    task = asyncio.create_task(work)
    try:
        await workflow.wait([task])
    except asyncio.CancelledError:
        if workflow.patched("step-is-given-time-after-cancel"):
            await uninterrupted(workflow.wait([task], timeout=after_cancel.total_seconds()))
        task.cancel()
        await uninterrupted(workflow.wait([task]))
    return task.result()


def snapshot_plan(vm: BackupVmInput) -> SnapshotPlan:
    """The snapshot's name and marker, known before it is made. Survives reset; differs when an id is reused."""
    info = workflow.info()
    return plan_for(vm, info.workflow_id, info.first_execution_run_id)


def plan_for(vm: BackupVmInput, workflow_id: str, first_run_id: str) -> SnapshotPlan:
    """The plan of the BackupVm execution `workflow_id`/`first_run_id` for the VM."""
    marker = SnapshotMarker(
        installation=vm.installation_id,
        namespace=vm.namespace_id,
        workflow_id=workflow_id,
        first_run_id=first_run_id,
        vc_guid=vm.vc_guid,
    )
    return SnapshotPlan(name=marker.snapshot_name, description=marker.text())


async def take_snapshot(node: VmNode, options: VmOptions, plan: SnapshotPlan) -> SnapshotRef:
    """Steps 6 and 7; once more without quiescing when the guest refuses that and the VM group allows it.

    Two steps, so that each asks vCenter soon after its start (`activities.snapshot.ASK_WITHIN_S`).
    """
    wanted = CreateSnapshotInput(vm=node.vm, plan=plan, options=options)
    try:
        return await _create(wanted, node, "Steps 6–7 · snapshot")
    except ActivityError as error:
        cause = error.cause
        refused = isinstance(cause, ApplicationError) and cause.type == QuiesceRefusedError.__name__
        if not refused or not options.quiesce_fallback or workflow.cancellation_reason() is not None:
            raise
        warning = f"the guest refused to quiesce, the snapshot is crash-consistent: {explain(error)}"
    crash_consistent = options.model_copy(update={"quiesce": False})
    snapshot = await _create(
        wanted.model_copy(update={"options": crash_consistent}),
        node,
        "Steps 6–7 · crash-consistent snapshot",
    )
    return snapshot.model_copy(update={"warnings": [warning, *snapshot.warnings]})


async def _create(wanted: CreateSnapshotInput, node: VmNode, summary: str) -> SnapshotRef:
    try:
        made = await node.run(Snapshots.create_snapshot, wanted, summary=summary, policy=policies.SNAPSHOT)
    except ActivityError:
        if node.dead:
            node.unheard_at = workflow.now()
        raise
    if made.unheard:
        node.unheard_at = workflow.now()
    return made


async def remove_snapshot(
    vm: BackupVmInput,
    node: VmNode,
    plan: SnapshotPlan,
    snapshot: SnapshotRef | None,
    inspection: Inspection | None,
    asked_at: datetime,
) -> Removal:
    """Step 13: on the VM's node, else on any node, else handed to RemoveSnapshot. Never raises for a refusal.

    Args:
        vm: the workflow's input.
        node: where the VM is; a dead one is passed over. When one has died while it was making the snapshot, or a later
            try than the first has made it, what an earlier try has asked vCenter for may be made yet.
        plan: the snapshot's name and marker.
        snapshot: None when the creation failed, or its answer was lost.
        inspection: the VM before.
        asked_at: when the creation began. One that failed sooner than a worker can be taken for dead is over; of one
            that failed later a try may still be under way, unheard, and ask vCenter: then a second look is taken.
    """
    removal = RemovalInput(
        vm=node.vm,
        plan=plan,
        moref=snapshot.moref if snapshot else "",
        before=inspection.state if inspection else None,
        within_s=policies.REMOVAL_TRY.total_seconds(),
    )
    wait = timedelta()
    if snapshot is None and workflow.now() - asked_at >= policies.LEAST_SILENCE:
        wait = policies.LATE_CREATION_WITHIN
    if node.unheard_at is not None:
        wait = max(wait, node.unheard_at + policies.LATE_CREATION_WITHIN - workflow.now())
    passed_over = node.dead and workflow.patched("dead-node-is-passed-over")
    done = await _remove_or_hand_over(removal, vm, passed_over=passed_over)
    if wait and done.gone and not done.vm_gone and workflow.patched("look-for-late-creation"):
        await workflow.sleep(wait, summary="Step 13 · until no lost try can ask for the snapshot")
        done = await _remove_or_hand_over(removal, vm, passed_over=passed_over)
    return done


async def _remove_or_hand_over(removal: RemovalInput, vm: BackupVmInput, *, passed_over: bool) -> Removal:
    handover = timedelta(seconds=vm.options.removal_handover_s)
    anyone = policies.ACCESS_NODES_QUEUE
    for queue in (anyone,) if passed_over else (policies.control_queue(removal.vm.node), anyone):
        try:
            done = await _try_on(queue, removal, handover, vm.options.node_dead_after_s)
        except ActivityError as error:
            if queue == anyone or not fell_silent(error):
                return await hand_over(removal, vm.vm_group, explain(error))
        else:
            break
    return done if done.gone else await hand_over(removal, vm.vm_group, done.reason)


async def hand_over(removal: RemovalInput, vm_group: str, reason: str) -> Removal:
    """Start RemoveSnapshot, which retries without limit, and wait for its start only."""
    await start_removal(removal, vm_group, reason)
    return Removal(gone=False, pending=True, moref=removal.moref, reason=reason)


async def start_removal(
    removal: RemovalInput, vm_group: str, reason: str
) -> workflow.ChildWorkflowHandle[Any, Removal] | None:
    """Start RemoveSnapshot for the snapshot; None when one is at work on it already. It outlives whoever starts it."""
    workflow_id = removal_id(removal.plan.name)
    try:
        return await workflow.start_child_workflow(
            "RemoveSnapshot",
            RemoveSnapshotInput(removal=removal, vm_group=vm_group, reason=reason),
            id=workflow_id,
            task_queue=policies.COMMSERVE_QUEUE,
            result_type=Removal,
            parent_close_policy=ParentClosePolicy.ABANDON,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            static_summary=f"Snapshot of {removal.vm.name} must go",
            search_attributes=TypedSearchAttributes(
                [
                    _pair(policies.VM_NAME, removal.vm.name),
                    _pair(policies.VC_GUID, removal.vm.vc_guid),
                    _pair(policies.VM_GROUP, vm_group),
                    _pair(policies.BACKUP_STATUS, "RemovalPending"),
                ]
            ),
        )
    except WorkflowAlreadyStartedError:
        # One RemoveSnapshot per snapshot: it is already at work on this one.
        workflow.logger.info("RemoveSnapshot %s already runs", workflow_id)
        return None


async def _try_on(
    queue: str, removal: RemovalInput, handover: timedelta, node_dead_after_s: float
) -> Removal:
    policy = replace(policies.REMOVAL, schedule_to_close=handover)
    if queue != policies.ACCESS_NODES_QUEUE:
        policy = policies.noticing(policy, node_dead_after_s)
    return await run_step(
        Snapshots.remove_snapshot,
        removal,
        queue=queue,
        summary="Step 13 · remove the snapshot",
        policy=policy,
    )


def _pair(key: SearchAttributeKey[str], value: str) -> SearchAttributePair[str]:
    return SearchAttributePair(key, value)
