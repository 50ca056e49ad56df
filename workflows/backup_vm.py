"""BackupVm: one VM through steps 6 to 15. Whatever happens, its snapshot goes and its job hears of the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.index import MediaAgentIndexing
    from activities.snapshot import Snapshots
    from activities.transfer import Transfers
    from activities.transport import Transport
    from safehaul.messages.steps import (
        BackupSession,
        CheckTransportInput,
        DownloadInput,
        FinishInput,
        HoldInput,
        InspectInput,
        Inspection,
        OpenBackupInput,
        Removal,
        SealedBackup,
        SealInput,
        SnapshotPlan,
        SnapshotRef,
        StoredFiles,
        StoreFilesInput,
        TransferInput,
        TransferResult,
        TransportReport,
        VmRef,
    )
    from safehaul.messages.vm import BackupVmInput, VmProgressDetail, VmReport, VmStatus
    from workflows import policies
    from workflows.cancel_signal import ask_for_cancel, cancelled_first
    from workflows.hold import Hold
    from workflows.inputs import parse_input
    from workflows.job_link import ask_and_report
    from workflows.pause import VmPause
    from workflows.snapshot_guard import remove_snapshot, snapshot_plan, take_snapshot, uninterrupted
    from workflows.steps import run_step
    from workflows.unfinished import Unfinished, keeps
    from workflows.vm_index import Stored, index_backup
    from workflows.vm_node import VmNode
    from workflows.vm_report import VmStory, nothing_readable

EXAMPLE = "the input that BackupJob gives it (start BackupJob instead)"


@workflow.defn(name="BackupVm")
class BackupVm:
    """Backs up one VM on one access node. Started by BackupJob."""

    def __init__(self) -> None:
        self._story = VmStory()
        self._node = VmNode(self._story)
        self._hold = Hold()
        self._pause = VmPause(self._story.paused)
        self._unfinished = Unfinished()
        self._canceller: asyncio.Task[None] | None = None

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> VmReport:
        """Steps 6–15. Returns the report of a Completed or Partial VM; fails or is cancelled otherwise."""
        self._input = parse_input(BackupVmInput, raw, more, EXAMPLE)
        self._node.begin(self._input)
        self._story.begin(self._input, workflow.info().workflow_id, workflow.now())
        ending = await self._try_until_read()
        report = self._story.end(ending, workflow.now())
        self._story.tell(report)
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(report.status)])
        # Step 15 — and step 16 begins when the job gives this node another VM.
        await self._ask_for_another_vm(report)
        await self._unfinished.leave(self._vm)
        if report.status is VmStatus.CANCELLED:
            raise asyncio.CancelledError
        if report.status is VmStatus.FAILED:
            raise ApplicationError(report.reason, report, type="VmFailed", non_retryable=True) from ending
        return report

    @workflow.query(name="progress")
    def progress(self) -> VmProgressDetail:
        """Where this VM stands."""
        return self._story.progress()

    @workflow.signal(name="cancel", description="Cancel this VM's backup; its snapshot is removed first")
    def cancel(self, *raw: Any) -> None:
        """The same as the job's `cancel_vm` for this VM. Of what comes with the signal only `keep` counts."""
        self._unfinished.keep = self._unfinished.keep and keeps(raw)
        if self._canceller is None:
            self._canceller = asyncio.create_task(ask_for_cancel(self._story.reject))

    @workflow.signal(
        name="go_on_at", description="From BackupJob: another access node, because this VM's died"
    )
    def go_on_at(self, *raw: Any) -> None:
        """The job's answer to `node_lost`."""
        self._node.go_on_at(raw)

    @workflow.signal(name="pause", description="Stop reading; the snapshot is held for a while only")
    def pause(self, *_raw: Any) -> None:
        """The VM waits until it is resumed, itself or with its job. Whatever comes with the signal is ignored."""
        self._pause.begin()

    @workflow.signal(name="resume", description="Go on after a pause")
    def resume(self, *_raw: Any) -> None:
        """The VM goes on where it was, or begins anew when its snapshot had to go."""
        self._pause.end()

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, _values: Sequence[RawValue]) -> None:
        """A signal that does not exist here: shown, never failed on."""
        self._story.reject(
            f"signal {name[:80]!r} does not exist for one VM; there are: cancel, pause, resume. The job has others"
        )

    async def _try_until_read(self) -> BaseException | None:
        """Steps 6–14, anew from another snapshot when the VM has moved or was paused for too long.

        Returns what interrupted them for good, if anything.
        """
        tries_left = policies.VM_TRIES
        while True:
            try:
                await self._back_up()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told as the VM's failure
                # Any error: one that escaped would fail this task for ever, and the job would never hear of the VM.
                ending = error if self._story.was_stopped else cancelled_first(error)
                # A pause is none of the tries: nothing is wrong with the VM.
                if not (self._pause.ran_out(ending) and self._story.snapshot_is_gone):
                    tries_left -= 1
                    if not tries_left or not self._story.may_begin_anew(ending):
                        return ending
                    if workflow.cancellation_reason() is not None or not workflow.patched(
                        "vm-moved-try-anew"
                    ):
                        return ending
                self._story.begin_anew(ending)
                await self._unfinished.leave(self._vm)
                if workflow.cancellation_reason() is not None:
                    return asyncio.CancelledError()
            else:
                return None

    async def _back_up(self) -> None:
        plan = snapshot_plan(self._input)
        inspection = await self._look(plan)
        snapshot: SnapshotRef | None = None
        sealed: SealedBackup | None = None
        session: BackupSession | None = None
        ending: BaseException | None = None
        try:
            # Step 6 — the snapshot is asked for; step 7 is vCenter's, and the result is its answer.
            # Step 7
            snapshot = await self._node.wherever(lambda: self._create_snapshot(plan))
            self._stop_if_cancelled()
            session, sealed = await self._read_while_held(snapshot)
            self._stop_if_cancelled()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised again after the removal
            # Not `finally`: when a worker drops this run from its cache, Python closes the coroutine, and a
            # `finally` would then start the removal in whichever workflow is running at that moment.
            self._story.stopped()
            ending = cancelled_first(error)
        removal = await self._remove(plan, snapshot, inspection)
        if ending is not None:
            raise ending
        self._stop_if_cancelled()
        assert snapshot is not None
        assert session is not None
        assert sealed is not None
        # Step 14
        stored = Stored(self._vm, snapshot, session, sealed, removal, self._asked_at)
        await index_backup(stored, self._node, self._story, self._stop_if_cancelled)

    async def _look(self, plan: SnapshotPlan) -> Inspection:
        """The look before step 6. A run that was reset to it may have its snapshot already, which does not stay."""
        try:
            return await self._pause.before_snapshot(lambda: self._node.wherever(lambda: self._inspect(plan)))
        except (Exception, asyncio.CancelledError):
            info = workflow.info()
            if info.run_id != info.first_execution_run_id and workflow.patched("a-failed-look-cleans-up"):
                self._asked_at = info.workflow_start_time
                await self._remove(plan, None, None)
            raise

    async def _remove(
        self, plan: SnapshotPlan, snapshot: SnapshotRef | None, inspection: Inspection | None
    ) -> Removal:
        # Step 13
        with self._story.step(13, "removing the snapshot"):
            removal = await uninterrupted(
                remove_snapshot(
                    self._input,
                    self._node,
                    plan,
                    snapshot,
                    inspection,
                    self._asked_at,
                )
            )
        self._story.removed(removal)
        return removal

    async def _read_while_held(self, snapshot: SnapshotRef) -> tuple[BackupSession, SealedBackup]:
        """Steps 8 to 12, for as long as the snapshot may be held, on another node when this one dies."""
        held = HoldInput(
            vm=self._vm, options=self._input.options, created_at=datetime.fromisoformat(snapshot.created)
        )
        reading = self._pause.through(
            lambda: self._node.wherever(lambda: self._read_and_seal(snapshot)), self._input.options
        )
        return await self._hold.limit(held, reading, lambda: self._node.queue)

    async def _read_and_seal(self, snapshot: SnapshotRef) -> tuple[BackupSession, SealedBackup]:
        # Step 8
        with self._story.step(8, "checking each disk's transport"):
            transport = await self._node.run(
                Transport.check_transport,
                CheckTransportInput(vm=self._vm, snapshot=snapshot, disks=self._input.options.disks),
                summary="Step 8 · verify the NAS transport, disk by disk",
                policy=policies.VM_STEP,
            )
        self._story.transport(transport)
        self._stop_if_cancelled()
        if not transport.readable:
            raise ApplicationError(
                nothing_readable(self._input.name, transport), type="UnsupportedError", non_retryable=True
            )
        # Step 9
        with self._story.step(9, "downloading the VM's files"):
            downloaded = await self._node.run(
                Transport.download_files,
                DownloadInput(vm=self._vm, snapshot=snapshot, unread=transport.unread_paths),
                summary="Step 9 · download the VM's files",
                policy=policies.VM_STEP,
            )
        self._story.downloaded(downloaded)
        self._stop_if_cancelled()
        session = await self._open_backup(snapshot)
        with self._story.step(10, "storing the VM's files"):
            files = await self._node.run(
                Transfers.store_files,
                StoreFilesInput(vm=self._vm, session=session, files=downloaded),
                summary="Step 10 · store the VM's files",
                policy=policies.VM_STEP,
            )
        self._stop_if_cancelled()
        transfers = await self._transfer(snapshot, transport, session)
        return session, await self._complete(snapshot, transport, session, files, transfers)

    async def _inspect(self, plan: SnapshotPlan) -> Inspection:
        with self._story.step(6, "looking at the VM before it is touched"):
            inspection = await self._node.run(
                Snapshots.inspect_vm,
                InspectInput(vm=self._vm, options=self._input.options, own=plan.description),
                summary="Before step 6 · record the VM's snapshots, files and debt",
                policy=policies.VM_STEP_BEFORE,
            )
        self._story.warn(inspection.warnings)
        self._stop_if_cancelled()
        return inspection

    async def _create_snapshot(self, plan: SnapshotPlan) -> SnapshotRef:
        self._asked_at = workflow.now()
        with self._story.step(6, "making the snapshot"):
            snapshot = await take_snapshot(self._node, self._input.options, plan)
        self._story.snapshot(snapshot)
        return snapshot

    async def _open_backup(self, snapshot: SnapshotRef) -> BackupSession:
        # Step 10
        with self._story.step(10, "opening the backup with the MediaAgent"):
            session = await run_step(
                MediaAgentIndexing.open_backup,
                OpenBackupInput(
                    vm=self._vm,
                    session_id=f"{workflow.info().first_execution_run_id}.{snapshot.moref}",
                    vm_group=self._input.vm_group,
                    snapshot=snapshot,
                ),
                queue=policies.media_agent_queue(self._input.media_agent),
                summary="Step 10 · open the backup",
                policy=policies.MEDIA_AGENT,
            )
        self._unfinished.opened(session)
        self._stop_if_cancelled()
        return session

    async def _transfer(
        self, snapshot: SnapshotRef, transport: TransportReport, session: BackupSession
    ) -> list[TransferResult]:
        # Step 11
        created_at = datetime.fromisoformat(snapshot.created)
        transfers: list[TransferResult] = []
        for number, disk in enumerate(transport.readable, start=1):
            with self._story.step(11, f"reading {disk.disk.label}"):
                result = await self._node.run(
                    Transfers.transfer_disk,
                    TransferInput(
                        vm=self._vm,
                        session=session,
                        snapshot=snapshot,
                        transport=disk,
                        options=self._input.options,
                        snapshot_created_at=created_at,
                        done_before_bytes=sum(item.bytes_capacity for item in transfers),
                    ),
                    queue=policies.streams_queue(self._node.name),
                    summary=f"Step 11 · {disk.disk.label} ({number} of {len(transport.readable)})",
                    policy=policies.TRANSFER,
                )
            transfers.append(result)
            self._story.transferred(result)
            self._stop_if_cancelled()
        return transfers

    async def _complete(
        self,
        snapshot: SnapshotRef,
        transport: TransportReport,
        session: BackupSession,
        files: StoredFiles,
        transfers: list[TransferResult],
    ) -> SealedBackup:
        # Step 12
        self._pause.completing()
        with self._story.step(12, "completing the backup"):
            done = await self._node.run(
                Transfers.finish_reading,
                FinishInput(vm=self._vm, snapshot=snapshot, disks=transport.readable),
                summary="Step 12 · compare the source with its start",
                policy=policies.VM_STEP,
            )
            self._stop_if_cancelled()
            sealed = await run_step(
                MediaAgentIndexing.seal_backup,
                SealInput(
                    vm=self._vm,
                    vm_group=self._input.vm_group,
                    job_workflow_id=self._input.job_workflow_id,
                    session=session,
                    snapshot=snapshot,
                    transport=transport,
                    files=files,
                    transfers=transfers,
                    done=done,
                    skipped_files=self._story.skipped_files,
                    warnings=self._story.warnings,
                ),
                queue=policies.media_agent_queue(self._input.media_agent),
                summary="Step 12 · read back and commit the manifest",
                policy=policies.MEDIA_AGENT,
            )
        self._story.sealed(sealed)
        self._unfinished.committed()
        return sealed

    async def _ask_for_another_vm(self, report: VmReport) -> None:
        """Step 15 and the report to the job, as one task that a cancel does not interrupt."""
        await uninterrupted(ask_and_report(self._input, self._node.name, report))

    def _stop_if_cancelled(self) -> None:
        """A step that ignored the cancel has returned its result: the cancel must not be swallowed."""
        if workflow.cancellation_reason() is not None or self._hold.over or self._pause.cuts_off:
            raise asyncio.CancelledError

    @property
    def _vm(self) -> VmRef:
        return self._node.vm
