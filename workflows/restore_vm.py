"""RestoreVm: a backup becomes a new VM on a NAS datastore, powered off, under another name and identity."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.restore import RestoreDesk, Restores
    from safehaul.messages.restore import (
        OpenRestoreInput,
        RestoredDisk,
        RestoreDiskInput,
        RestorePlan,
        RestoreRef,
        RestoreReport,
        RestoreSettings,
        RestoreStep,
        RestoreVmRequest,
    )
    from workflows import policies
    from workflows.coordinator import ping
    from workflows.inputs import parse_input
    from workflows.snapshot_guard import uninterrupted
    from workflows.steps import run_step
    from workflows.vm_report import explain, table_cell

EXAMPLE = '{"backup": "VC.GUID/TIME-ID", "name": "web-1 restored", "datastore": "nfs-gold"}'


@workflow.defn(name="RestoreVm")
class RestoreVm:
    """Restores one VM as a new one; refuses to overwrite anything."""

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> RestoreReport:
        """Plans, writes and compares each disk, writes the VM's files, registers the VM in vCenter."""
        request = parse_input(RestoreVmRequest, raw, more, EXAMPLE)
        started_at = workflow.now()
        settings = await run_step(
            RestoreDesk.open_restore,
            OpenRestoreInput(request=request),
            summary=f"Open the restore of {request.backup}",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        workflow.upsert_search_attributes(
            [
                policies.VM_NAME.value_set(settings.name),
                policies.VC_GUID.value_set(settings.vc_guid),
                policies.BACKUP_STATUS.value_set("Restoring"),
            ]
        )
        ref = RestoreRef(
            settings=settings,
            node=await _answering_node(settings),
            owner=workflow.info().first_execution_run_id,
        )
        try:
            plan = await self._prepare(ref)
            disks = await self._write_disks(ref, plan)
            moref = await self._finish(ref, plan)
        except (ActivityError, ApplicationError, asyncio.CancelledError) as error:
            await uninterrupted(_discard(ref))
            workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set("RestoreFailed")])
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError from error
            raise ApplicationError(explain(error), type="RestoreFailed", non_retryable=True) from error
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set("Restored")])
        return RestoreReport(
            backup=request.backup,
            name=settings.name,
            moref=moref,
            directory=plan.directory,
            disks=disks,
            missing_disks=plan.missing_disks,
            warnings=plan.warnings,
            started_at=started_at,
            ended_at=workflow.now(),
        )

    async def _prepare(self, ref: RestoreRef) -> RestorePlan:
        plan = await run_step(
            Restores.prepare_restore,
            ref,
            queue=policies.control_queue(ref.node),
            summary="Check the target and make the new VM's directory",
            policy=policies.VM_STEP,
        )
        _stop_if_cancelled()
        return plan

    async def _write_disks(self, ref: RestoreRef, plan: RestorePlan) -> list[RestoredDisk]:
        disks: list[RestoredDisk] = []
        for number, disk in enumerate(plan.disks, start=1):
            workflow.set_current_details(
                f"Restoring **{table_cell(ref.settings.name)}** on `{ref.node}`: "
                f"{table_cell(disk.label)} ({number} of {len(plan.disks)})"
            )
            disks.append(
                await run_step(
                    Restores.restore_disk,
                    RestoreDiskInput(ref=ref, plan=plan, disk=disk),
                    queue=policies.streams_queue(ref.node),
                    summary=f"Write and compare {disk.label} ({number} of {len(plan.disks)})",
                    policy=policies.RESTORE_DISK,
                )
            )
            _stop_if_cancelled()
        return disks

    async def _finish(self, ref: RestoreRef, plan: RestorePlan) -> str:
        await run_step(
            Restores.write_vm_files,
            RestoreStep(ref=ref, plan=plan),
            queue=policies.control_queue(ref.node),
            summary="Write the new VM's .vmx and its other files",
            policy=policies.VM_STEP,
        )
        _stop_if_cancelled()
        registered = await run_step(
            Restores.register_vm,
            RestoreStep(ref=ref, plan=plan),
            queue=policies.control_queue(ref.node),
            summary="Register the VM in vCenter, powered off",
            policy=policies.VM_STEP,
        )
        return registered.moref


async def _answering_node(settings: RestoreSettings) -> str:
    for node in settings.access_nodes:
        if await ping(node) is not None:
            return node
    raise ApplicationError(
        f"no access node answers (asked: {', '.join(settings.access_nodes)}): start their workers with "
        "`safehaul worker access-node NAME`",
        type="PolicyError",
        non_retryable=True,
    )


async def _discard(ref: RestoreRef) -> None:
    """Remove what this restore made; a failure of that is told by the directory's own marker file."""
    try:
        await run_step(
            Restores.discard_restore,
            ref,
            queue=policies.control_queue(ref.node),
            summary="Remove what was written",
            policy=policies.VM_STEP,
        )
    except ActivityError as error:
        workflow.logger.warning("the directory of %s is left behind: %s", ref.settings.name, explain(error))


def _stop_if_cancelled() -> None:
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError
