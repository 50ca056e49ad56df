"""RestoreDisk: one disk of a backup becomes a new disk of a VM that exists."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.restore_desk import RestoreDesk
    from activities.restore_into import RestoresInto
    from safehaul.messages.restore import (
        OpenDiskRestoreInput,
        RestoreDiskRequest,
        RestoreKind,
        RestoreProgress,
        RestoreRef,
        RestoreReport,
        RestoreStep,
    )
    from workflows.inputs import parse_input
    from workflows.restore_story import (
        RESTORE_ERRORS,
        RestoreStory,
        control_step,
        discard,
        open_with,
        stop_if_cancelled,
        write_disks,
    )

EXAMPLE = '{"backup": "VC.GUID/TIME-ID", "disk": "2000", "to_vm": "web-1"}'


@workflow.defn(name="RestoreDisk")
class RestoreDisk:
    """Adds a disk to a VM; nothing that the VM has is touched."""

    def __init__(self) -> None:
        self._story: RestoreStory | None = None

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> RestoreReport:
        """Checks, writes and compares the disk, attaches it; until then every failure and cancel undoes all of it."""
        request = parse_input(RestoreDiskRequest, raw, more, EXAMPLE)
        story = self._story = RestoreStory(RestoreKind.DISK)
        story.begin(request.backup, request.to_vm)
        try:
            ref = await open_with(
                RestoreDesk.open_disk_restore,
                OpenDiskRestoreInput(request=request),
                f"Open the restore of disk {request.disk} of {request.backup}",
            )
            story.opened(ref)
            await self._into_vm(story, ref)
        except RESTORE_ERRORS as error:
            raise story.failure(error) from error
        return story.report()

    @workflow.query(name="progress")
    def progress(self) -> RestoreProgress:
        """Where the restore stands."""
        return self._story.progress if self._story is not None else RestoreProgress()

    async def _into_vm(self, story: RestoreStory, ref: RestoreRef) -> None:
        plan = await control_step(
            ref, RestoresInto.prepare_disk, ref, "Find the VM and a free place for the disk"
        )
        story.planned(plan)
        try:
            stop_if_cancelled()
            await write_disks(story, ref, plan)
            story.stage("attaching")
            vm = await control_step(
                ref, RestoresInto.switch_disks, RestoreStep(ref=ref, plan=plan), "Attach the new disk"
            )
        except RESTORE_ERRORS:
            await discard(story, ref, plan, RestoresInto.discard_disks)
            raise
        story.committed(vm)
