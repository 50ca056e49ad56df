"""CopyBackups: brings the backups that another repository lacks there, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.upkeep_copy import BackupCopies, CopyDesk
    from safehaul.messages.copy import (
        FAILURES_LIMIT,
        CopiedBackup,
        CopyBackupInput,
        CopyBackupsRequest,
        CopyFailure,
        CopyItem,
        CopyPageInput,
        CopyProgress,
        CopyReport,
        CopyState,
    )
    from workflows import policies
    from workflows.cancel_signal import ask_for_cancel
    from workflows.histories import history_is_long
    from workflows.inputs import parse_input
    from workflows.markdown import bounded, cell, size, table
    from workflows.steps import run_step
    from workflows.vm_report import explain

EXAMPLE = '{"source": "vault"}'
_SHOWN = 20
# What is wrong with one backup alone. A full target or a refused password would fail all the others too.
_OF_ONE_BACKUP = {"IntegrityError", "NotFoundError", "AlreadyExistsError", "UnsupportedError"}
WARNINGS_LIMIT = 20


@workflow.defn(name="CopyBackups")
class CopyBackups:
    """Ends Completed when every backup is copied, and Failed with `CopyIncomplete` and the report when one is not."""

    def __init__(self) -> None:
        self._progress = CopyProgress()
        self._started_at = workflow.now()
        self._canceller: asyncio.Task[None] | None = None
        self._rejected: list[str] = []

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> CopyReport:
        """A page of missing backups after the other. One that cannot be copied does not hold up the others."""
        request = parse_input(CopyBackupsRequest, raw, more, EXAMPLE)
        try:
            request = await self._open(request)
            await self._pages(request)
        except (ActivityError, asyncio.CancelledError) as error:
            raise self._failure(error) from error
        report = self._progress.report
        self._tell("CopyIncomplete" if report.failed else "Copied")
        self._show(stage="done", current=None)
        if report.failed:
            raise ApplicationError(_verdict(report), report, type="CopyIncomplete", non_retryable=True)
        return report

    @workflow.query(name="progress")
    def progress(self) -> CopyProgress:
        """Where it stands."""
        return self._progress

    @workflow.signal(
        name="cancel", description="Stop; what is copied stays, and the next copy goes on from there"
    )
    def cancel(self, *_raw: Any) -> None:
        """Whatever comes with the signal is ignored."""
        if self._canceller is None:
            self._canceller = asyncio.create_task(ask_for_cancel(self._reject))

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, _args: Sequence[RawValue]) -> None:
        """An unknown signal is shown, and changes nothing."""
        self._reject(f"signal {name[:100]!r} is not known: there is `cancel`")

    def _reject(self, message: str) -> None:
        self._rejected = [*self._rejected, message][-5:]
        self._show()

    async def _open(self, request: CopyBackupsRequest) -> CopyBackupsRequest:
        if request.going_on is not None:
            self._started_at = request.going_on.started_at
            self._progress = CopyProgress(stage="copying", report=request.going_on.report)
            return request
        self._tell("Copying")
        opened = await run_step(
            CopyDesk.open_copy,
            request,
            summary=f"Copy backups of {request.source}",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        self._progress = CopyProgress(
            stage="planning", report=CopyReport(source=opened.source, target=opened.target)
        )
        return opened

    async def _pages(self, request: CopyBackupsRequest) -> None:
        after, done = request.going_on.after if request.going_on is not None else "", False
        while not done:
            _stop_if_cancelled()
            if history_is_long():
                state = CopyState(after=after, report=self._progress.report, started_at=self._started_at)
                workflow.continue_as_new(request.model_copy(update={"going_on": state}))
            self._show(stage="planning", current=None)
            page = await run_step(
                BackupCopies.plan_copy,
                CopyPageInput(request=request, after=after),
                summary="Which backups are missing",
                queue=policies.upkeep_queue(request.target),
                policy=policies.UPKEEP_PART,
            )
            for item in page.items:
                _stop_if_cancelled()
                await self._copy(request, item)
            after, done = page.next, page.done

    async def _copy(self, request: CopyBackupsRequest, item: CopyItem) -> None:
        self._show(stage="copying", current=item)
        try:
            copied = await run_step(
                BackupCopies.copy_backup,
                CopyBackupInput(source=request.source, target=request.target, item=item),
                summary=f"Copy {item.vm_name or item.vc_guid} {item.backup_id} ({size(item.capacity_bytes)})",
                queue=policies.upkeep_queue(request.target),
                policy=policies.UPKEEP_PART,
            )
        except ActivityError as error:
            cause = error.cause
            of_backup = isinstance(cause, ApplicationError) and cause.type in _OF_ONE_BACKUP
            if workflow.cancellation_reason() is not None or not of_backup:
                raise
            self._failed(item, explain(error))
        else:
            self._copied(copied)

    def _copied(self, copied: CopiedBackup) -> None:
        report = self._progress.report
        changes = {
            "copied": report.copied + (not copied.already and not copied.gone),
            "already": report.already + copied.already,
            "gone": report.gone + copied.gone,
            "bytes_capacity": report.bytes_capacity + copied.bytes_capacity,
            "bytes_read": report.bytes_read + copied.bytes_read,
            "bytes_stored": report.bytes_stored + copied.bytes_stored,
            "warnings": [*report.warnings, *copied.warnings][:WARNINGS_LIMIT],
        }
        self._show(report=report.model_copy(update=changes))

    def _failed(self, item: CopyItem, reason: str) -> None:
        report = self._progress.report
        failure = CopyFailure(
            vc_guid=item.vc_guid, backup_id=item.backup_id, vm_name=item.vm_name, reason=reason[:1000]
        )
        failures = [*report.failures, failure][:FAILURES_LIMIT]
        self._show(report=report.model_copy(update={"failed": report.failed + 1, "failures": failures}))

    def _failure(self, error: BaseException) -> BaseException:
        if workflow.cancellation_reason() is not None:
            self._tell("CopyCancelled")
            return asyncio.CancelledError()
        self._tell("CopyFailed")
        cause = error.cause if isinstance(error, ActivityError) else error
        kind = cause.type if isinstance(cause, ApplicationError) else None
        kind = "InvalidInput" if kind == "InvalidInputError" else kind
        return ApplicationError(
            explain(error), self._progress.report, type=kind or "CopyFailed", non_retryable=True
        )

    def _tell(self, status: str) -> None:
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(status)])

    def _show(self, **changes: Any) -> None:
        self._progress = self._progress.model_copy(update=changes)
        now, report = self._progress, self._progress.report
        what = ""
        if now.current is not None:
            what = f": **{cell(now.current.vm_name or now.current.vc_guid)}** {cell(now.current.backup_id)}"
        seconds = (workflow.now() - self._started_at).total_seconds()
        rate = f", {size(int(report.bytes_read / seconds))}/s" if seconds >= 1 and report.bytes_read else ""
        sums = (
            f"{report.copied:,} copied, {report.failed:,} failed; {size(report.bytes_capacity)} of disks, "
            f"{size(report.bytes_read)} read{rate}, {size(report.bytes_stored)} stored"
        )
        lines = [
            f"Copy from **{cell(report.source)}** to **{cell(report.target)}**: {now.stage}{what}",
            "",
            sums,
        ]
        if report.failures:
            rows = [
                (cell(item.vm_name or item.vc_guid), cell(item.backup_id), cell(item.reason))
                for item in report.failures[:_SHOWN]
            ]
            lines += ["", *table(["VM", "backup", "why not"], rows)]
        if workflow.cancellation_reason() is not None:
            lines += ["", "Asked to cancel: it ends as soon as the backup under way has stopped."]
        lines += ["", *(cell(message) for message in (*report.warnings, *self._rejected))]
        workflow.set_current_details(bounded(lines))


def _verdict(report: CopyReport) -> str:
    first = report.failures[0]
    return (
        f"{report.failed} backups of {report.source} are not in {report.target}, {report.copied} were copied; the "
        f"first one, {first.backup_id} of VM {first.vm_name or first.vc_guid}: {first.reason}"
    )


def _stop_if_cancelled() -> None:
    """A step that ignored the cancel has returned its result: the cancel must not be swallowed."""
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError
