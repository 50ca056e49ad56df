"""PruneRepository: forgets by the rules of retention, gives up what was forgotten long ago, frees what nobody needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.upkeep_prune import UpkeepPrune
    from safehaul.messages.prune import (
        Collected,
        ForgetPage,
        PruneReport,
        PruneRequest,
        PruneStep,
        Purged,
        joined,
    )
    from workflows import policies
    from workflows.cancel_signal import ask_for_cancel
    from workflows.inputs import parse_input
    from workflows.markdown import bounded, cell, size, table
    from workflows.steps import run_step
    from workflows.vm_report import explain

EXAMPLE = '{"media_agent": "vault"}'
MAX_REJECTED = 5
MAX_VMS_SHOWN = 20
MAX_PROBLEMS_SHOWN = 10
ResultT = TypeVar("ResultT")


@workflow.defn(name="PruneRepository")
class PruneRepository:
    """One run over the repository of a MediaAgent. Backups and restores go on meanwhile.

    Cancelled, it stops between two backups or packs, and the next run goes on with what is left.
    """

    def __init__(self) -> None:
        self._request: PruneRequest | None = None
        self._report = PruneReport(
            media_agent="", started_at=datetime.fromtimestamp(0, UTC), ended_at=datetime.fromtimestamp(0, UTC)
        )
        self._stage = "waiting for the MediaAgent"
        self._canceller: asyncio.Task[None] | None = None
        self._rejected: list[str] = []

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> PruneReport:
        """Forget, purge, collect; the report says what was done. A failure carries what was done until then."""
        request = self._request = parse_input(PruneRequest, raw, more, EXAMPLE)
        self._tell(media_agent=request.media_agent, dry_run=request.dry_run, started_at=workflow.now())
        try:
            await self._prune()
        except (ActivityError, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                self._stop("cancelled; the next run goes on with what is left")
                raise
            reason = explain(error)
            self._stop(f"failed: {reason}")
            raise ApplicationError(reason, self._report, type="PruneFailed", non_retryable=True) from error
        self._stop("ended")
        return self._report

    @workflow.signal(name="cancel", description="Stop; what was not done is left to the next run")
    def cancel(self, *_raw: Any) -> None:
        """The same as `temporal workflow cancel`. Whatever comes with the signal is ignored."""
        if self._canceller is None:
            self._canceller = asyncio.create_task(ask_for_cancel(self._reject))

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, _args: Sequence[RawValue]) -> None:
        """An unknown signal is shown, and changes nothing."""
        self._reject(f"signal {name[:100]!r} does not exist; there is: cancel")

    async def _prune(self) -> None:
        while not self._report.forgetting.ended:
            done = self._report.forgetting
            self._stage = "forgetting by the rules"
            where = f" (after {done.vms} VMs)" if done.vms else ""
            piece: ForgetPage = await self._step(
                UpkeepPrune.forget_backups, f"Forget what no rule keeps{where}", done.after
            )
            self._tell(forgetting=joined(done, piece))
        self._stage = "giving up what was forgotten long ago"
        purged: Purged = await self._step(UpkeepPrune.purge_forgotten, "Purge what was forgotten 7 days ago")
        self._tell(purging=purged)
        self._stage = "freeing what no backup needs"
        collected: Collected = await self._step(UpkeepPrune.collect_garbage, "Collect what no backup needs")
        self._tell(collection=collected)

    async def _step(
        self,
        method: Callable[[Any, PruneStep], ResultT],
        what: str,
        after: str = "",
    ) -> ResultT:
        report = self._report
        self._show()
        found: ResultT = await run_step(
            method,
            PruneStep(media_agent=report.media_agent, dry_run=report.dry_run, after=after),
            queue=policies.upkeep_queue(report.media_agent),
            summary=f"{what}{' (only look)' if report.dry_run else ''}",
            policy=policies.UPKEEP_PART,
        )
        if workflow.cancellation_reason() is not None:
            # The step had ended before it saw the cancel, which must not be swallowed.
            raise asyncio.CancelledError
        return found

    def _reject(self, message: str) -> None:
        self._rejected = [*self._rejected, message][-MAX_REJECTED:]
        self._show()

    def _tell(self, **changes: Any) -> None:
        self._report = self._report.model_copy(update={"ended_at": workflow.now(), **changes})
        self._show()

    def _stop(self, stage: str) -> None:
        self._stage = stage
        self._tell()

    def _show(self) -> None:
        if self._request is not None:
            workflow.set_current_details(details(self._report, self._stage, self._rejected))


def details(report: PruneReport, stage: str, rejected: Sequence[str]) -> str:
    """Markdown for the web UI: numbers, the VMs that lost a backup, problems."""
    forgetting, purging, collection = report.forgetting, report.purging, report.collection
    would = "would be " if report.dry_run else ""
    unchanged = " (nothing is changed)" if report.dry_run else ""
    looked = f"{forgetting.backups} backups of {forgetting.vms} VMs"
    rest = f"{purging.purged} purged, {purging.waiting} can be recovered"
    lines = [
        f"**Prune of `{cell(report.media_agent)}`**{unchanged} — {cell(stage)}",
        "",
        f"{looked}: {forgetting.forgotten} {would}forgotten, {forgetting.held} held.",
        "",
        f"{rest}. {size(collection.freed_bytes)} {would}freed.",
    ]
    rows = [
        (cell(vm.vm_name or vm.vc_guid), str(vm.forgotten_count), str(vm.kept_count), cell(_why(vm.kept_for)))
        for vm in forgetting.told
        if vm.forgotten_count
    ]
    if rows:
        shown = rows[:MAX_VMS_SHOWN]
        lines += ["", *table(["VM", "forgotten>", "kept>", "kept for"], shown)]
        if len(rows) > len(shown):
            lines += ["", f"… and {len(rows) - len(shown)} more VMs"]
    lost = collection.numbers.get("chunks_lost", 0)
    damage = [f"{lost} chunks that backups need are in no pack: safehaul repo verify"] if lost else []
    problems = [*damage, *forgetting.problems, *purging.problems, *rejected]
    if problems:
        lines += ["", "Problems:", "", *(f"- {cell(item)}" for item in problems[:MAX_PROBLEMS_SHOWN])]
    return bounded(lines)


def _why(kept_for: dict[str, int]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in kept_for.items())
