"""What a job reports: VMs that cannot report themselves, pages that fit into one message, and step 17."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.commserve import CommServe
    from activities.coordination import JobCoordination
    from safehaul.messages.job import ChildRef, CloseJobInput, JobReport, RecordJobInput, ReportPageInput
    from safehaul.messages.vm import VmReport, VmStatus
    from workflows import policies
    from workflows.coordinator import Coordinator
    from workflows.job_signals import Mailbox
    from workflows.ledger import Ledger
    from workflows.snapshot_guard import uninterrupted
    from workflows.steps import run_step
    from workflows.vm_report import explain


class JobReporter:
    """Makes the reports of a job's VMs durable, and reports its end."""

    def __init__(self, ledger: Ledger, mailbox: Mailbox, coordinator: Coordinator) -> None:
        self._ledger = ledger
        self._mailbox = mailbox
        self._coordinator = coordinator

    async def write(self, *, at_least: int) -> None:
        """Make finished VMs' reports durable, a page at a time."""
        state = self._ledger.state
        while state.unwritten and len(state.unwritten) >= at_least:
            await self._write_page(page_of(state.unwritten))

    async def close(self, close: CloseJobInput, record: RecordJobInput) -> JobReport:
        """Step 17: the coordinator reports the job's result to the CommServe, whatever arrives meanwhile."""
        return await uninterrupted(self._close(close, record))

    async def _close(self, close: CloseJobInput, record: RecordJobInput) -> JobReport:
        if not self._coordinator.leased:
            # The job failed before it had a coordinator with a lease: the CommServe reports it itself.
            return await run_step(
                CommServe.report_unled_job,
                close.model_copy(update={"media_agent": record.media_agent}),
                summary="Report the job",
                queue=policies.COMMSERVE_QUEUE,
                policy=policies.COMMSERVE,
            )
        await self.write(at_least=1)
        report = await self._coordinator.ask_surely(
            JobCoordination.close_job,
            lambda: close.model_copy(
                update={
                    "pages": self._ledger.state.report_pages,
                    "lease": self._coordinator.lease,
                    "coordinator": self._coordinator.name,
                    "left_out": self._coordinator.left_out,
                    "media_agent": record.media_agent,
                }
            ),
            "Step 17 · report the job's result",
        )
        try:
            await run_step(
                CommServe.record_job,
                record,
                summary="Record the job in the catalogue",
                queue=policies.COMMSERVE_QUEUE,
                policy=policies.COMMSERVE,
            )
        except ActivityError as error:
            # The report stands in the repository, which is the truth. The catalogue only lists it.
            self._mailbox.reject(f"the catalogue does not list this job: {explain(error)}")
            workflow.logger.error("job %s is not in the catalogue: %s", record.job_id, explain(error))
        return report

    async def _write_page(self, reports: list[VmReport]) -> None:
        settings = self._coordinator.settings
        assert settings is not None, "the job has been opened"
        page = f"reports/{workflow.uuid4()}"
        await self._coordinator.ask_surely(
            JobCoordination.write_reports,
            lambda: ReportPageInput(
                job_id=workflow.info().first_execution_run_id,
                media_agent=settings.media_agent,
                page=page,
                reports=reports,
            ),
            f"Keep the reports of {len(reports)} VMs",
        )
        state = self._ledger.state
        state.unwritten = state.unwritten[len(reports) :]
        state.report_pages.append(page)


def report_of(child: ChildRef, status: VmStatus, reason: str) -> VmReport:
    """The report of a child that cannot report itself."""
    return VmReport(
        vc_guid=child.vc_guid,
        name=child.name,
        status=status,
        reason=reason,
        node=child.node,
        given_by=child.given_by,
        child_id=child.child_id,
        started_at=child.started_at,
        ended_at=workflow.now(),
    )


def page_of(reports: list[VmReport]) -> list[VmReport]:
    """The first reports, as many as fit into one message."""
    page: list[VmReport] = []
    size_bytes = 0
    for report in reports[: policies.REPORT_PAGE_VMS]:
        size_bytes += len(report.model_dump_json())
        if page and size_bytes > policies.REPORT_PAGE_BYTES:
            break
        page.append(report)
    return page
