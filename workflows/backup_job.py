"""BackupJob: the job's story. Finds a coordinator, plans with it, hands VMs to nodes, reports.

The job's history stays bounded by continue-as-new; the VMs' workflows are abandoned children that report by
signal. Signals are hints: every half minute the ledger is compared with what the server says of each child.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.commserve import CommServe
    from safehaul.errors import InvalidInputError
    from safehaul.messages.job import (
        ChildRef,
        CloseJobInput,
        JobReport,
        JobSettings,
        JobStatus,
        OpenJobInput,
        RecordJobInput,
    )
    from safehaul.messages.ledger import ContinuedJob, JobState
    from safehaul.messages.progress import JobProgress, NodeProgress, VmProgress
    from safehaul.messages.requests import BackupJobRequest
    from workflows import policies
    from workflows.coordinator import Coordinator
    from workflows.histories import history_is_long
    from workflows.inputs import parse_input
    from workflows.job_details import job_details
    from workflows.job_plan import Planner
    from workflows.job_reports import JobReporter
    from workflows.job_signals import Mailbox
    from workflows.ledger import Ledger
    from workflows.steps import run_step
    from workflows.vm_report import explain
    from workflows.vm_runner import VmRunner

EXAMPLE = '{"vm_group": "nightly"}'


@workflow.defn(name="BackupJob")
class BackupJob:
    """Backs up the VMs of one VM group."""

    def __init__(self) -> None:
        self._mailbox = Mailbox()
        self._ledger = Ledger()
        self._coordinator = Coordinator()
        self._stage = "starting"
        self._status = JobStatus.RUNNING
        self._request = BackupJobRequest(vm_group="?")
        self._settings: JobSettings | None = None
        self._started_at = datetime.fromtimestamp(0, UTC)

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> JobReport:
        """Steps 1–5, the VMs (6–16, in BackupVm), and step 17."""
        continued = self._read_input(raw, more)
        canceller = asyncio.create_task(self._mailbox.turn_signal_into_cancel())
        failure: BaseException | None = None
        try:
            if not continued:
                await self._plan()
                # What was to be cancelled before there was a plan is looked up in it.
                self._mailbox.open(self._ledger)
            await self._run_vms(reconcile_at_once=continued)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told as the job's failure
            # Any error: one that escaped would fail this task for ever, with the VMs' snapshots held.
            failure = error
            self._tell("stopping the VMs")
            await self._runner.stop_everything()
        finally:
            canceller.cancel()
        return await self._close(failure)

    async def _plan(self) -> None:
        """Steps 1 to 5; again with another coordinator when one dies before its plan is durable."""
        self._stage = "opening the job"
        self._settings = await run_step(
            CommServe.open_job,
            OpenJobInput(request=self._request, job_id=self._job_id, workflow_id=workflow.info().workflow_id),
            summary=f"Open the job for VM group {self._request.group_name}",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        self._coordinator.settings = self._settings
        # Steps 1 to 5
        await self._planner.plan(self._settings)

    async def _run_vms(self, *, reconcile_at_once: bool) -> None:
        """Steps 6 to 16, one BackupVm a VM, as streams become free."""
        reconciler = asyncio.create_task(self._runner.reconcile_for_ever(at_once=reconcile_at_once))
        try:
            while not self._ledger.finished:
                await self._planner.follow_successor()
                self._tell("backing up")
                await self._runner.hand_out()
                self._show()
                # A long history wakes it too: while no VM ends for days, the reconciliation still adds events.
                await workflow.wait_condition(
                    lambda: self._mailbox.has_mail or reconciler.done() or self._history_is_long()
                )
                if reconciler.done():
                    reconciler.result()
                await self._runner.take_mail()
                if workflow.cancellation_reason() is not None:
                    raise asyncio.CancelledError
                await self._reporter.write(at_least=policies.REPORT_PAGE_VMS)
                if self._history_is_long():
                    await workflow.wait_condition(workflow.all_handlers_finished)
                    workflow.continue_as_new({"continued": self._state().model_dump(mode="json")})
        finally:
            reconciler.cancel()

    async def _close(self, failure: BaseException | None) -> JobReport:
        """Step 17, whatever happened before it; then the end that the failure calls for."""
        self._tell("reporting")
        cancelled = workflow.cancellation_reason() is not None
        reason = "" if failure is None or cancelled else explain(failure)
        if self._settings is None:
            # The group could not even be resolved: there is nobody to report through.
            self._finish(JobStatus.CANCELLED if cancelled else JobStatus.FAILED)
            if cancelled:
                raise asyncio.CancelledError
            raise ApplicationError(reason, type=_type_of(failure), non_retryable=True) from failure
        try:
            report = await self._report(reason, cancelled=cancelled)
        except FailureError as error:
            self._finish(JobStatus.FAILED)
            raise ApplicationError(
                f"the job's result cannot be kept: {explain(error)}"
                + (f"; before that: {reason}" if reason else ""),
                type="ReportFailed",
                non_retryable=True,
            ) from error
        self._finish(report.status)
        if report.status is JobStatus.CANCELLED:
            raise asyncio.CancelledError
        if report.status is JobStatus.FAILED:
            raise ApplicationError(
                report.reason, report, type=_type_of(failure) if failure else "JobFailed", non_retryable=True
            ) from failure
        return report

    async def _report(self, failure: str, *, cancelled: bool) -> JobReport:
        # Step 17
        assert self._settings is not None
        return await self._reporter.close(
            CloseJobInput(
                job_id=self._job_id,
                workflow_id=workflow.info().workflow_id,
                vm_group=self._request.group_name,
                pages=[],
                cancelled=cancelled,
                failure=failure,
                not_started=self._runner.not_started,
                left_out=self._coordinator.left_out,
                noteworthy=self._planner.noteworthy,
                started_at=self._started_at,
                distribution=self._settings.distribution,
            ),
            RecordJobInput(job_id=self._job_id, media_agent=self._settings.media_agent),
        )

    @workflow.signal(name="cancel", description="Cancel the job; its snapshots are removed first")
    def cancel(self, *raw: Any) -> None:
        """Ask for the job's cancel. Of what comes with the signal only `keep` counts."""
        self._mailbox.cancel_job(raw)

    @workflow.signal(name="cancel_vm", description='Cancel one VM: {"vm": "its name or VC.GUID"}')
    def cancel_vm(self, *raw: Any) -> None:
        """Ask for the cancel of one VM's backup."""
        self._mailbox.cancel_vm(raw, self._ledger)
        self._show()

    @workflow.signal(name="pause", description="Give out no VM, and have the running ones stop reading")
    def pause(self, *_raw: Any) -> None:
        """Pause the job. Whatever comes with the signal is ignored."""
        self._mailbox.pause.begin()
        self._show()

    @workflow.signal(name="resume", description="Go on after a pause")
    def resume(self, *_raw: Any) -> None:
        """Go on with the job and all its VMs. Whatever comes with the signal is ignored."""
        self._mailbox.pause.end()
        self._show()

    @workflow.signal(name="vm_finished", description="From BackupVm: a VM has ended")
    def vm_finished(self, *raw: Any) -> None:
        """A child's report."""
        self._mailbox.finished(raw, self._job_id)

    @workflow.signal(name="node_lost", description="From BackupVm: its access node has died")
    def node_lost(self, *raw: Any) -> None:
        """A child that waits for another access node."""
        self._mailbox.node_lost(raw, self._job_id)

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, _values: Sequence[RawValue]) -> None:
        """A signal that does not exist: shown, never failed on."""
        self._mailbox.reject(
            f"signal {name[:80]!r} does not exist; there are: cancel, cancel_vm, pause, resume"
        )
        self._show()

    @workflow.update(name="request_cancel", description="Cancel the job")
    def request_cancel(self, raw: Any = None) -> str:
        """As the signal, with an answer."""
        self._mailbox.cancel_job((raw,))
        return (
            f"job {workflow.info().workflow_id} is being cancelled; {len(self._ledger.state.running)} VMs run"
        )

    @workflow.update(name="request_cancel_vm", description="Cancel one VM's backup")
    def request_cancel_vm(self, raw: Any = None) -> str:
        """As the signal, with an answer."""
        return self._mailbox.cancel_vm((raw,), self._ledger)

    @request_cancel_vm.validator
    def _check_cancel_vm(self, raw: Any = None) -> None:
        self._mailbox.check_cancel_vm((raw,), self._ledger)

    @workflow.update(name="request_pause", description="Pause the job")
    def request_pause(self) -> str:
        """As the signal, with an answer."""
        self.pause()
        count = len(self._ledger.state.running)
        name = workflow.info().workflow_id
        return f"job {name} is paused: no further VM is given out, {count} running VMs stop reading"

    @request_pause.validator
    def _check_pause(self) -> None:
        cancelled = self._mailbox.cancel_asked or workflow.cancellation_reason() is not None
        if cancelled or self._status is not JobStatus.RUNNING:
            raise InvalidInputError(
                f"job {workflow.info().workflow_id} is being cancelled or has ended: it cannot be paused"
            )

    @workflow.update(name="request_resume", description="Resume the job")
    def request_resume(self) -> str:
        """As the signal, with an answer."""
        self.resume()
        return f"job {workflow.info().workflow_id} goes on"

    @workflow.query(name="progress")
    def progress(self) -> JobProgress:
        """Where the job stands."""
        return JobProgress(
            job_id=self._job_id,
            vm_group=self._request.group_name,
            status=self._status,
            stage=self._stage + self._mailbox.pause.note,
            started_at=self._started_at,
            paused_since=self._mailbox.pause.since,
            coordinator=self._coordinator.name,
            waiting=self._ledger.waiting,
            running=[
                VmProgress(
                    name=child.name,
                    vc_guid=child.vc_guid,
                    node=child.node,
                    child_id=child.child_id,
                    started_at=child.started_at,
                    capacity_bytes=child.capacity_bytes,
                    waits_for=self._waits_for(child),
                )
                for child in self._ledger.state.running.values()
            ],
            nodes=[
                NodeProgress(name=node.name, streams=node.streams, lost=node.lost)
                for node in self._ledger.state.nodes.values()
            ],
            totals=self._ledger.state.totals,
            capacity_bytes=self._ledger.state.capacity_bytes,
            capacity_ended_bytes=self._ledger.state.capacity_ended_bytes,
            left_out=self._coordinator.left_out,
            recent=self._ledger.state.recent,
            rejected_signals=self._mailbox.rejected,
        )

    def _read_input(self, raw: Any, more: tuple[Any, ...]) -> bool:
        """Set up from what a person typed (False), or from this job's earlier run (True)."""
        self._started_at = workflow.info().workflow_start_time
        if isinstance(raw, dict) and set(raw) == {"continued"}:
            state = parse_input(ContinuedJob, raw, more, EXAMPLE).continued
            self._request, self._settings = state.request, state.settings
            self._started_at = state.started_at
            self._ledger = Ledger(state.ledger)
            self._coordinator.resume(state)
            self._mailbox.resume(state)
            self._assemble()
            self._mailbox.open(self._ledger)
            self._planner.noteworthy = state.noteworthy
            return True
        self._request = parse_input(BackupJobRequest, raw, more, EXAMPLE)
        self._assemble()
        if not workflow.patched("early-cancels-are-kept"):
            self._mailbox.open(self._ledger)
        workflow.upsert_search_attributes(
            [
                policies.JOB_ID.value_set(self._job_id),
                policies.VM_GROUP.value_set(self._request.group_name),
                policies.BACKUP_STATUS.value_set(JobStatus.RUNNING),
            ]
        )
        return False

    def _assemble(self) -> None:
        self._runner = VmRunner(self._ledger, self._mailbox, self._coordinator)
        self._reporter = JobReporter(self._ledger, self._mailbox, self._coordinator)
        self._planner = Planner(
            self._coordinator, self._ledger, self._runner, self._request.inline_group, self._tell
        )

    def _state(self) -> JobState:
        assert self._settings is not None
        return JobState(
            # With a group that was given whole: a coordinator's successor may have to plan by it again.
            request=self._request,
            settings=self._settings,
            lease=self._coordinator.lease,
            silent_nodes=self._coordinator.silent_nodes,
            left_out=self._coordinator.left_out,
            noteworthy=self._planner.noteworthy,
            ledger=self._ledger.state,
            inbox=self._mailbox.inbox,
            lost=self._mailbox.lost,
            to_cancel=self._mailbox.to_cancel,
            started_at=self._started_at,
            cancel_asked=self._mailbox.cancel_asked,
            keep=self._mailbox.keep,
            paused_since=self._mailbox.pause.since,
            rejected_signals=self._mailbox.rejected,
        )

    def _history_is_long(self) -> bool:
        """True when this run should end; what was asked to be cancelled is dealt with in it first."""
        return history_is_long() and not (
            self._mailbox.cancel_asked or self._mailbox.to_cancel or self._mailbox.pause.has_news
        )

    def _finish(self, status: JobStatus) -> None:
        self._status = status
        self._stage = "done"
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(status)])
        self._show()

    def _waits_for(self, child: ChildRef) -> str:
        if child.child_id in self._ledger.state.homeless:
            return f"another access node: {child.node} does not answer"
        return self._runner.hindered.get(child.child_id, "")

    def _tell(self, stage: str) -> None:
        self._stage = stage
        self._show()

    def _show(self) -> None:
        workflow.set_current_details(job_details(self.progress(), workflow.info().namespace))

    @property
    def _job_id(self) -> str:
        return workflow.info().first_execution_run_id


def _type_of(failure: BaseException | None) -> str:
    cause = failure.cause if isinstance(failure, ActivityError) else failure
    return (cause.type if isinstance(cause, ApplicationError) else None) or "JobFailed"
