"""VerifyRepository: reads what was verified longest ago, checks that every backup is whole, is loud about damage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.upkeep_verify import RepositoryVerification, VerificationDesk
    from safehaul.messages.verify import (
        BeginVerifyInput,
        VerifyMode,
        VerifyPartInput,
        VerifyProgress,
        VerifyReport,
        VerifyRepositoryRequest,
        VerifyStage,
        VerifyState,
    )
    from workflows import policies
    from workflows.cancel_signal import ask_for_cancel
    from workflows.histories import history_is_long
    from workflows.inputs import parse_input
    from workflows.markdown import bounded, cell, size, table
    from workflows.steps import run_step
    from workflows.vm_report import explain

EXAMPLE = '{"media_agent": "vault", "mode": "sample", "sample_percent": 25}'
_STAGES = {
    VerifyStage.LISTS: "Check the lists of packs, and sessions",
    VerifyStage.PACKS: "Read packs",
    VerifyStage.BACKUPS: "Check each backup's maps",
}
_SHOWN = 20


@workflow.defn(name="VerifyRepository")
class VerifyRepository:
    """Ends Completed when the repository is sound, and Failed with `DamageFound` and the report when it is not."""

    def __init__(self) -> None:
        self._state: VerifyState | None = None
        self._canceller: asyncio.Task[None] | None = None
        self._rejected: list[str] = []

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> VerifyReport:
        """Stage after stage, part after part; what was found stands in the repository, not here."""
        request = parse_input(VerifyRepositoryRequest, raw, more, EXAMPLE)
        try:
            self._state = request.going_on or await self._begin(request)
            await self._stages(request)
            report = await run_step(
                RepositoryVerification.finish_verification,
                self._state.run,
                summary="Report",
                queue=policies.upkeep_queue(request.media_agent),
                policy=policies.UPKEEP_PART,
            )
        except (ActivityError, asyncio.CancelledError) as error:
            raise self._failure(error) from error
        self._tell("Sound" if report.sound else "Damaged")
        workflow.set_current_details(bounded(_told(report)))
        if not report.sound:
            # A verification that found damage is a failure wherever somebody is alerted: Temporal's status and
            # metrics, its schedules. What it found is in the failure's details.
            raise ApplicationError(_verdict(report), report, type="DamageFound", non_retryable=True)
        return report

    @workflow.query(name="progress")
    def progress(self) -> VerifyProgress:
        """How far it is."""
        return self._state.progress if self._state is not None else VerifyProgress()

    @workflow.signal(name="cancel", description="Stop; what was verified until then counts")
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

    async def _begin(self, request: VerifyRepositoryRequest) -> VerifyState:
        self._tell("Verifying")
        await run_step(
            VerificationDesk.open_verification,
            request,
            summary=f"Verify the repository of {request.media_agent} ({request.mode.value})",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        started_at = int(workflow.now().timestamp())
        run = await run_step(
            RepositoryVerification.begin_verification,
            BeginVerifyInput(
                request=request, run_id=workflow.info().first_execution_run_id, started_at=started_at
            ),
            summary="Which packs were verified longest ago",
            queue=policies.upkeep_queue(request.media_agent),
            policy=policies.UPKEEP_PART,
        )
        return VerifyState(run=run, progress=VerifyProgress(), started_at=started_at)

    async def _stages(self, request: VerifyRepositoryRequest) -> None:
        assert self._state is not None, "the run has begun it"
        while True:
            state = self._state
            _stop_if_cancelled()
            self._show()
            if state.progress.stage_done:
                following = list(VerifyStage)[list(VerifyStage).index(state.progress.stage) + 1 :]
                if not following:
                    return
                begun = {"stage": following[0], "cursor": "", "stage_done": False}
                self._advance(state.progress.model_copy(update=begun))
                continue
            if history_is_long():
                workflow.continue_as_new(request.model_copy(update={"going_on": state}))
            self._advance(
                await run_step(
                    RepositoryVerification.verify_part,
                    VerifyPartInput(run=state.run, progress=state.progress),
                    summary=_summary(state),
                    queue=policies.upkeep_queue(request.media_agent),
                    policy=policies.UPKEEP_PART,
                )
            )

    def _advance(self, progress: VerifyProgress) -> None:
        assert self._state is not None, "the run has begun it"
        changes: dict[str, object] = {"progress": progress}
        if progress.stage is VerifyStage.PACKS and not self._state.reading_since:
            changes["reading_since"] = int(workflow.now().timestamp())
        self._state = self._state.model_copy(update=changes)

    def _failure(self, error: BaseException) -> BaseException:
        if workflow.cancellation_reason() is not None:
            self._tell("VerifyCancelled")
            return asyncio.CancelledError()
        self._tell("VerifyFailed")
        cause = error.cause if isinstance(error, ActivityError) else error
        kind = cause.type if isinstance(cause, ApplicationError) else None
        kind = "InvalidInput" if kind == "InvalidInputError" else kind
        return ApplicationError(explain(error), type=kind or "VerifyFailed", non_retryable=True)

    def _tell(self, status: str) -> None:
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(status)])

    def _show(self) -> None:
        if self._state is None:
            return
        run, now = self._state.run, self._state.progress
        lines = [
            f"Repository of **{cell(run.media_agent)}**, {run.mode.value}: {_STAGES[now.stage].lower()}",
            "",
        ]
        left = max(0, run.bytes_due - now.bytes_read)
        rows = [
            ("packs", f"{now.packs:,}", f"{run.packs_due:,}" if run.until else ""),
            ("bytes", size(now.bytes_read), size(run.bytes_due) if run.until else ""),
            ("backups", f"{now.backups:,}", ""),
            ("damages", f"{now.damage:,}", ""),
        ]
        lines += table(["", "done>", "of>"], rows)
        seconds = int(workflow.now().timestamp()) - self._state.reading_since
        if self._state.reading_since and now.stage is VerifyStage.PACKS and now.bytes_read and seconds:
            rate = now.bytes_read / seconds
            lines += ["", f"{size(int(rate))}/s; {_duration(left / rate)} left for {size(left)}"]
        if workflow.cancellation_reason() is not None:
            lines += ["", "Asked to cancel: it ends with the part under way."]
        lines += ["", *(cell(message) for message in self._rejected)]
        workflow.set_current_details(bounded(lines))


def _summary(state: VerifyState) -> str:
    now, run = state.progress, state.run
    if now.stage is VerifyStage.PACKS and run.until is not None:
        return f"Read packs: {size(now.bytes_read)} of {size(run.bytes_due)}"
    return _STAGES[now.stage]


def _verdict(report: VerifyReport) -> str:
    broken = [item for item in report.damaged_backups if not item.whole]
    names = sorted({item.vm_name or item.vc_guid for item in broken})
    lost = sum(item.bytes_lost for item in broken)
    what = f"{len(report.damage) + report.damage_omitted} damages"
    if not broken:
        return f"{what} found; every backup can still be restored: see the report, and the disk below the repository"
    more = f" and {len(names) - 5} more VMs" if len(names) > 5 else ""
    total = len(broken) + report.damaged_backups_omitted
    return (
        f"{what} found: {total} backups of {', '.join(names[:5])}{more} have lost {size(lost)}: back these VMs up "
        "again, which heals what they still hold, then run `safehaul repo repair`"
    )


def _told(report: VerifyReport) -> list[str]:
    """A report for the web UI."""
    read = "" if report.mode is VerifyMode.LIGHT else f", {size(report.bytes_read)} read"
    lines = [
        f"**{'Sound' if report.sound else 'DAMAGED'}**: {report.backups:,} backups, {report.packs:,} packs{read}",
    ]
    if report.leftovers:
        lines.append(
            f"{len(report.leftovers)} damaged packs, which no backup needs, wait for their collection."
        )
    if report.damaged_backups:
        rows = [
            (cell(item.vm_name or item.vc_guid), cell(item.backup_id), size(item.bytes_lost))
            for item in report.damaged_backups[:_SHOWN]
        ]
        lines += ["", *table(["VM", "backup", "lost>"], rows)]
    if report.damage:
        rows2 = [(cell(item.object_name), cell(item.problem)) for item in report.damage[:_SHOWN]]
        lines += ["", *table(["damaged object", "problem"], rows2)]
    return lines


def _stop_if_cancelled() -> None:
    """A part that ignored the cancel has returned its result: the cancel must not be swallowed."""
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
