"""RestoreVm: a backup becomes a new VM on a NAS datastore, or goes over its own VM as new disks."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.restore import Restores
    from activities.restore_desk import RestoreDesk
    from activities.restore_into import RestoresInto
    from safehaul.messages.restore import (
        OpenRestoreInput,
        RestoreKind,
        RestorePlan,
        RestoreProgress,
        RestoreRef,
        RestoreReport,
        RestoreStep,
        RestoreVmRequest,
    )
    from workflows.inputs import parse_input
    from workflows.restore_story import (
        RESTORE_ERRORS,
        RestoreStory,
        control_step,
        discard,
        open_with,
        power_on,
        stop_if_cancelled,
        write_disks,
    )
    from workflows.vm_report import explain

EXAMPLE = (
    '{"backup": "VC.GUID/TIME-ID", "name": "web-1 restored", "datastore": "nfs-gold"} or '
    '{"backup": "VC.GUID/TIME-ID", "in_place": true, "confirm": "web-1"}'
)


@workflow.defn(name="RestoreVm")
class RestoreVm:
    """Restores one VM; nothing is overwritten: in place, too, the new disks are new files beside the old ones."""

    def __init__(self) -> None:
        self._story: RestoreStory | None = None

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> RestoreReport:
        """Checks, writes and compares each disk, commits; until then every failure and cancel undoes all of it."""
        request = parse_input(RestoreVmRequest, raw, more, EXAMPLE)
        kind = RestoreKind.IN_PLACE if request.in_place else RestoreKind.NEW_VM
        story = self._story = RestoreStory(kind)
        story.begin(request.backup, request.name or request.confirm)
        try:
            ref = await open_with(
                RestoreDesk.open_restore,
                OpenRestoreInput(request=request),
                f"Open the restore of {request.backup}",
            )
            story.opened(ref)
            if kind is RestoreKind.IN_PLACE:
                await self._over_itself(story, ref)
            else:
                await self._as_new_vm(story, ref)
        except RESTORE_ERRORS as error:
            raise story.failure(error) from error
        return story.report()

    @workflow.query(name="progress")
    def progress(self) -> RestoreProgress:
        """Where the restore stands."""
        return self._story.progress if self._story is not None else RestoreProgress()

    async def _as_new_vm(self, story: RestoreStory, ref: RestoreRef) -> None:
        plan: RestorePlan | None = None
        try:
            plan = await control_step(
                ref, Restores.prepare_restore, ref, "Check the target and make the new VM's directory"
            )
            story.planned(plan)
            stop_if_cancelled()
            await write_disks(story, ref, plan)
            step = RestoreStep(ref=ref, plan=plan)
            story.stage("registering")
            await control_step(
                ref, Restores.write_vm_files, step, "Write the new VM's .vmx and its other files"
            )
            stop_if_cancelled()
            await control_step(ref, Restores.register_vm, step, "Register the VM in vCenter, powered off")
            stop_if_cancelled()
            vm = await control_step(
                ref, Restores.finish_vm, step, "Put the VM's cards on their networks; the restore is whole"
            )
        except RESTORE_ERRORS:
            await discard(story, ref, plan, Restores.discard_restore)
            raise
        story.committed(vm)
        if ref.settings.power_on:
            await power_on(story, ref, vm.moref)

    async def _over_itself(self, story: RestoreStory, ref: RestoreRef) -> None:
        plan = await control_step(
            ref, RestoresInto.prepare_in_place, ref, "Check that the VM may get new disks"
        )
        story.planned(plan)
        step = RestoreStep(ref=ref, plan=plan)
        try:
            stop_if_cancelled()
            await write_disks(story, ref, plan)
            story.stage("giving the VM its new disks")
            vm = await control_step(
                ref, RestoresInto.switch_disks, step, "Give the VM its new disks; the old ones stay as files"
            )
        except RESTORE_ERRORS:
            await discard(story, ref, plan, RestoresInto.discard_disks)
            raise
        story.committed(vm)
        if ref.settings.delete_old_disks:
            await self._delete_old_disks(story, step)
        if ref.settings.power_on:
            await power_on(story, ref, vm.moref)

    async def _delete_old_disks(self, story: RestoreStory, step: RestoreStep) -> None:
        if workflow.cancellation_reason() is not None:
            story.undone("it was cancelled when it was whole: the old disks were not deleted")
            return
        story.stage("deleting the old disks")
        try:
            old = await control_step(
                step.ref, RestoresInto.remove_old_disks, step, "Delete the disks that were replaced"
            )
        except (ActivityError, asyncio.CancelledError) as error:
            story.undone(f"the old disks were not all deleted: {explain(error)}")
        else:
            story.old_disks(old.disks)
