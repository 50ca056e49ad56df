"""The story of a restore as its workflow tells it: progress while it runs, the report at its end; and shared steps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.restore import Restores
    from safehaul.messages.restore import (
        DiscardInput,
        OldDisk,
        PowerOnInput,
        RestoredDisk,
        RestoreDiskInput,
        RestoredVm,
        RestoreKind,
        RestorePlan,
        RestoreProgress,
        RestoreRef,
        RestoreReport,
        RestoreSettings,
        RestoreStatus,
    )
    from workflows import policies
    from workflows.nodes import ping, run_on_node
    from workflows.snapshot_guard import uninterrupted
    from workflows.steps import run_step
    from workflows.vm_report import explain, table_cell

SelfT = TypeVar("SelfT")
ResultT = TypeVar("ResultT")

RESTORE_ERRORS = (ActivityError, ApplicationError, asyncio.CancelledError)
# Safehaul's class of the error, as the failure of a workflow that was given a wrong input calls it.
_FAILURE_TYPES = {"InvalidInputError": "InvalidInput"}
# The search attribute's values: those of backups are other words.
_SHOWN = {
    RestoreStatus.RUNNING: "Restoring",
    RestoreStatus.RESTORED: "Restored",
    RestoreStatus.PARTIAL: "RestoredPartially",
    RestoreStatus.FAILED: "RestoreFailed",
    RestoreStatus.CANCELLED: "RestoreCancelled",
}


class RestoreStory:
    """Collects what happened to one restore."""

    def __init__(self, kind: RestoreKind) -> None:
        self._kind = kind
        self._backup = ""
        self._name = ""
        self._started_at = workflow.now()
        self._ref: RestoreRef | None = None
        self._plan: RestorePlan | None = None
        self._disks: list[RestoredDisk] = []
        self._vm: RestoredVm | None = None
        self._old: list[OldDisk] = []
        self._powered_on = False
        self._undone: list[str] = []
        self._progress = RestoreProgress()

    def begin(self, backup: str, name: str) -> None:
        """The input was good."""
        self._backup, self._name = backup, name
        self._show(stage="opening", name=name)

    def opened(self, ref: RestoreRef) -> None:
        """It is known who takes part."""
        self._ref = ref
        workflow.upsert_search_attributes(
            [
                policies.VM_NAME.value_set(ref.settings.name),
                policies.VC_GUID.value_set(ref.settings.vc_guid),
                policies.ACCESS_NODE.value_set(ref.node),
                policies.BACKUP_STATUS.value_set(_SHOWN[RestoreStatus.RUNNING]),
            ]
        )
        self._show(stage="checking", node=ref.node)

    def planned(self, plan: RestorePlan) -> None:
        """It is known what is written."""
        self._plan = plan
        if plan.vm_name:
            self._name = plan.vm_name
        total = 2 * sum(disk.capacity_bytes for disk in plan.disks)
        self._show(stage="writing", name=self._name, disks=len(plan.disks), bytes_total=total)

    def disk_begun(self, label: str) -> None:
        """A disk's turn."""
        self._show(disk=label)

    def disk_done(self, disk: RestoredDisk) -> None:
        """A disk is written and compared."""
        self._disks.append(disk)
        done = self._progress.bytes_done + 2 * disk.capacity_bytes
        self._show(disk="", disks_done=len(self._disks), bytes_done=done)

    def stage(self, stage: str) -> None:
        """What happens now."""
        self._show(stage=stage)

    def committed(self, vm: RestoredVm) -> None:
        """From here the restore is whole, whatever else fails."""
        self._vm = vm
        if self._plan is not None and self._kind is RestoreKind.IN_PLACE:
            kept = "kept: delete it when the restored VM has proved good"
            self._old = [
                OldDisk(path=disk.replaces, reason=kept) for disk in self._plan.disks if disk.replaces
            ]

    def old_disks(self, disks: list[OldDisk]) -> None:
        """What became of the old disks that were to be deleted."""
        self._old = disks
        self._undone += [f"{disk.path} was not deleted: {disk.reason}" for disk in disks if not disk.removed]

    def powered_on(self) -> None:
        """The VM is on."""
        self._powered_on = True

    def undone(self, what: str) -> None:
        """Something that was asked for besides the restore did not happen: makes it Partial."""
        self._undone.append(what)

    def left_behind(self, reason: str) -> None:
        """The clean-up of a failed restore failed too."""
        self._undone.append(reason)

    @property
    def progress(self) -> RestoreProgress:
        """Where it stands."""
        return self._progress

    def report(self) -> RestoreReport:
        """The report of a restore that is whole."""
        missing = self._plan.missing_disks if self._plan is not None else []
        reasons = [*(f"not in the backup: {item}" for item in missing), *self._undone]
        status = RestoreStatus.PARTIAL if reasons else RestoreStatus.RESTORED
        return self._close(status, "; ".join(reasons))

    def failure(self, error: BaseException) -> BaseException:
        """What the workflow ends with: a failure that carries the report, or the cancel."""
        if workflow.cancellation_reason() is not None:
            self._close(RestoreStatus.CANCELLED, "; ".join(["it was cancelled", *self._undone]))
            return asyncio.CancelledError()
        reason = "; ".join([explain(error), *self._undone])
        return ApplicationError(
            reason,
            self._close(RestoreStatus.FAILED, reason),
            type=_failure_type(error),
            non_retryable=True,
        )

    def _close(self, status: RestoreStatus, reason: str) -> RestoreReport:
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(_SHOWN[status])])
        self._show(status=status, stage="done", disk="")
        plan, vm, ref = self._plan, self._vm, self._ref
        return RestoreReport(
            kind=self._kind,
            status=status,
            reason=reason,
            backup=self._backup,
            name=self._name,
            vc_guid=vm.vc_guid if vm else "",
            moref=vm.moref if vm else "",
            node=ref.node if ref else "",
            directory=plan.directory if plan else "",
            disks=self._disks,
            cards=vm.cards if vm else [],
            powered_on=self._powered_on,
            old_disks=self._old,
            missing_disks=plan.missing_disks if plan else [],
            warnings=plan.warnings if plan else [],
            started_at=self._started_at,
            ended_at=workflow.now(),
        )

    def _show(self, **changes: Any) -> None:
        self._progress = self._progress.model_copy(update=changes)
        now = self._progress
        where = f" on `{now.node}`" if now.node else ""
        disk = f": {table_cell(now.disk)}" if now.disk else ""
        count = f" ({now.disks_done} of {now.disks} disks done)" if now.disks else ""
        workflow.set_current_details(
            f"Restore of **{table_cell(now.name)}**{where}: {now.stage}{disk}{count}"
        )


async def open_with(
    method: Callable[[SelfT, ResultT], RestoreSettings], arg: ResultT, summary: str
) -> RestoreRef:
    """Resolve who takes part, with an access node that answers."""
    settings = await run_step(
        method, arg, summary=summary, queue=policies.COMMSERVE_QUEUE, policy=policies.COMMSERVE
    )
    stop_if_cancelled()
    node = await _answering_node(settings)
    stop_if_cancelled()
    return RestoreRef(settings=settings, node=node, owner=workflow.info().first_execution_run_id)


async def _answering_node(settings: RestoreSettings) -> str:
    for node in settings.access_nodes:
        if await ping(node) is not None:
            return node
    raise ApplicationError(
        f"no access node answers (asked: {', '.join(settings.access_nodes)}): start their workers with "
        "`safehaul worker access-node NAME`",
        type="ConnectionLostError",
        non_retryable=True,
    )


async def control_step(
    ref: RestoreRef, method: Callable[[Any, Any], ResultT], arg: Any, summary: str
) -> ResultT:
    """Run a short step on the restore's node; afterwards the cancel is looked at by the caller."""
    return await run_on_node(
        ref.node,
        method,
        arg,
        summary=summary,
        policy=policies.VM_STEP,
        dead_after_s=policies.RESTORE_NODE_DEAD_AFTER_S,
    )


async def write_disks(story: RestoreStory, ref: RestoreRef, plan: RestorePlan) -> None:
    """Write, read back and compare each disk in turn."""
    for number, disk in enumerate(plan.disks, start=1):
        story.disk_begun(disk.label)
        done = await run_on_node(
            ref.node,
            Restores.restore_disk,
            RestoreDiskInput(ref=ref, plan=plan, disk=disk),
            queue=policies.streams_queue(ref.node),
            summary=f"Write and compare {disk.label} ({number} of {len(plan.disks)})",
            policy=policies.RESTORE_DISK,
            dead_after_s=policies.RESTORE_NODE_DEAD_AFTER_S,
        )
        story.disk_done(done)
        stop_if_cancelled()


async def power_on(story: RestoreStory, ref: RestoreRef, moref: str) -> None:
    """Power on a restored VM; a failure makes the restore Partial, since the VM is whole."""
    if workflow.cancellation_reason() is not None:
        story.undone("it was cancelled when it was whole: the VM was not powered on")
        return
    story.stage("powering on")
    try:
        await control_step(ref, Restores.power_on_vm, PowerOnInput(ref=ref, moref=moref), "Power the VM on")
    except (ActivityError, asyncio.CancelledError) as error:
        story.undone(f"the VM was not powered on: {explain(error)}")
    else:
        story.powered_on()


async def discard(
    story: RestoreStory,
    ref: RestoreRef,
    plan: RestorePlan | None,
    method: Callable[[SelfT, DiscardInput], Awaitable[None]] | Callable[[SelfT, DiscardInput], None],
) -> None:
    """Undo what a restore has made, whatever arrives: on its node, else on any. A failure is told in the report."""
    story.stage("discarding")
    await uninterrupted(_discard(story, DiscardInput(ref=ref, plan=plan), method))


async def _discard(story: RestoreStory, arg: DiscardInput, method: Callable[[Any, Any], Any]) -> None:
    reason = ""
    for queue in (policies.control_queue(arg.ref.node), policies.ACCESS_NODES_QUEUE):
        try:
            await run_step(
                method, arg, queue=queue, summary="Remove what was written", policy=policies.DISCARD
            )
        except ActivityError as error:
            reason = explain(error)
        else:
            return
    where = arg.plan.directory if arg.plan else f"[{arg.ref.settings.datastore}] {arg.ref.settings.name}"
    story.left_behind(f"what was written is left in {where}: {reason}")


def stop_if_cancelled() -> None:
    """After a step: it may have ignored the cancel and returned a result."""
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


def _failure_type(error: BaseException) -> str:
    cause = error.cause if isinstance(error, ActivityError) else error
    kind = cause.type if isinstance(cause, ApplicationError) else None
    return _FAILURE_TYPES.get(kind or "", kind or "RestoreFailed")
