"""The CommServe's own steps: opens a job, chooses its coordinator, looks after its children, records its end."""

from __future__ import annotations

from datetime import UTC, datetime

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import step, translated
from activities.namespaces import namespace_id
from activities.peers import Peers
from activities.pending import hindrance
from activities.records import catalog_job, read_job_report, status_of, tolerated, write_job_report
from safehaul.config.inline import group_of
from safehaul.errors import BusyError, PolicyError, SafehaulError
from safehaul.messages.job import (
    ChildRef,
    ChooseInput,
    ClosedChild,
    CloseJobInput,
    CoordinatorChoice,
    JobReport,
    JobSettings,
    JobTotals,
    OpenJobInput,
    ReconcileInput,
    Reconciliation,
    RecordJobInput,
)
from safehaul.messages.vm import VmOptions, VmReport

# Of a thousand VMs that all wait for one filer.
MAX_HINDRANCE_CHARS = 200


class CommServe:
    """Activities of the queue `commserve`."""

    def __init__(self, peers: Peers, client: Client) -> None:
        self._peers = peers
        self._client = client
        self._namespace_id = ""

    @activity.defn(name="open_job")
    async def open_job(self, job: OpenJobInput) -> JobSettings:
        """Resolves the VM group from the configuration, or checks the one that the job was given whole. A second run
        answers the same. Errors: an unknown group lists those that exist; a wrong inline group names each key.
        """
        namespace = await self._namespace()
        with translated():
            settings = self._peers.settings
            group = group_of(settings, job.request.group_name, job.request.inline_group)
            return JobSettings(
                vm_group=group.name,
                vcenter=group.vcenter,
                access_nodes=[node.name for node in settings.access_nodes_of(group)],
                media_agent=group.media_agent,
                installation_id=str(settings.installation_id),
                namespace_id=namespace,
                distribution=group.distribution,
                order=group.order,
                max_streams=group.streams,
                allow_empty=group.allow_empty,
                options=VmOptions(
                    quiesce=group.quiesce,
                    quiesce_fallback=group.quiesce_fallback,
                    debt=group.snapshot_debt,
                    pending_snapshot=group.pending_snapshot,
                    min_free_bytes=group.min_free_bytes,
                    max_hold_s=group.max_hold_s,
                    pause_hold_s=group.pause_hold_s,
                    disks=group.disk_selection,
                    removal_handover_s=group.removal_handover_after_s,
                    node_dead_after_s=group.node_dead_after_s,
                ),
            )

    @step("choose_coordinator")
    def choose_coordinator(self, choice: ChooseInput) -> CoordinatorChoice:
        """Step 1: the CommServe picks the least loaded of the access nodes that answered as the coordinator.

        A second run with the same answers picks the same. Errors: none answered.
        """
        if not choice.answers:
            raise PolicyError(
                f"no access node of VM group {choice.vm_group!r} answers (asked: {', '.join(choice.asked)}): "
                "start their workers with `safehaul worker access-node NAME`"
            )
        best = min(choice.answers, key=lambda answer: (answer.load / max(answer.cores, 1), answer.node))
        answered = {answer.node for answer in choice.answers}
        return CoordinatorChoice(
            coordinator=best.node,
            reason=f"least loaded of {len(answered)}: {best.load:.2f} on {best.cores} cores",
            silent_nodes=[node for node in choice.asked if node not in answered],
        )

    @activity.defn(name="request_cancel")
    async def request_cancel(self, workflow_id: str) -> None:
        """Asks the server to cancel the workflow, which cannot cancel itself. A second run changes nothing."""
        try:
            await self._client.get_workflow_handle(workflow_id).cancel()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:  # it has ended meanwhile: nothing to cancel
                raise

    @activity.defn(name="reconcile")
    async def reconcile(self, arg: ReconcileInput) -> Reconciliation:
        """Looks each child up by Describe (never by visibility, which lags): which are closed, what hinders others."""
        result = Reconciliation(closed=[])
        for child in arg.children:
            found = await self._look_up(child)
            if isinstance(found, ClosedChild):
                result.closed.append(found)
            elif found:
                result.hindered[child.child_id] = found[:MAX_HINDRANCE_CHARS]
        return result

    @step("record_job")
    def record_job(self, record: RecordJobInput) -> None:
        """After step 17: writes the coordinator's report to the catalogue. Keyed by job id; a second run
        replaces the same rows. Errors: the coordinator has left no report.
        """
        report, vms = read_job_report(self._peers.repository(record.media_agent), record.job_id)
        catalog_job(self._peers.catalog(), report, vms)

    @step("report_unled_job")
    def report_unled_job(self, close: CloseJobInput) -> JobReport:
        """The result of a job that ended before any coordinator led it, written where a coordinator would have.

        Keyed by job id: a second run returns the report that the first one wrote. Errors: neither the repository
        nor the catalogue can be written.
        """
        status, reason = status_of(close, JobTotals())
        report = JobReport(
            job_id=close.job_id,
            workflow_id=close.workflow_id,
            vm_group=close.vm_group,
            status=status,
            reason=reason,
            distribution=close.distribution,
            totals=JobTotals(),
            vms=[],
            pages=[],
            left_out=close.left_out,
            noteworthy=close.noteworthy,
            started_at=close.started_at,
            ended_at=datetime.now(UTC),
        )
        stands, lost = self._keep_report(close.media_agent, report)
        problem = tolerated(lambda: catalog_job(self._peers.catalog(), stands, []))
        if problem and lost:
            raise BusyError(f"the report of job {close.job_id} cannot be kept: {lost}; {problem}")
        if problem or lost:
            activity.logger.error("job %s is not kept everywhere: %s", close.job_id, problem or lost)
        return stands

    def _keep_report(self, media_agent: str, report: JobReport) -> tuple[JobReport, str]:
        """Write the job's report to the repository; returns the one that stands, and why it could not be written."""
        try:
            return write_job_report(self._peers.repository(media_agent), report), ""
        except SafehaulError as error:
            # Often the very reason why nobody led the job. The catalogue has the row, until it is rebuilt.
            return report, str(error)

    async def _look_up(self, child: ChildRef) -> ClosedChild | str:
        """The closed child, or what hinders the running one."""
        handle = self._client.get_workflow_handle(child.child_id)
        try:
            description = await handle.describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return ClosedChild(child_id=child.child_id, status="not found")
        if description.status in (None, WorkflowExecutionStatus.RUNNING):
            return hindrance(description.raw_description.pending_activities)
        name = description.status.name.lower()
        report: VmReport | None = None
        try:
            if description.status is WorkflowExecutionStatus.COMPLETED:
                report = VmReport.model_validate(await handle.result())
            elif description.status is WorkflowExecutionStatus.FAILED:
                await handle.result()
        except WorkflowFailureError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.details:
                report = VmReport.model_validate(error.cause.details[0])
        return ClosedChild(
            child_id=child.child_id,
            status=name,
            report=report,
            first_run_id=description.raw_description.workflow_execution_info.first_run_id,
        )

    async def _namespace(self) -> str:
        if not self._namespace_id:
            self._namespace_id = await namespace_id(self._client)
        return self._namespace_id
