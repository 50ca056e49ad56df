"""SweepSnapshots: removes snapshots of ours whose owner is gone, and nothing else; tells what else is left over.

Terminating a workflow runs no code of it, so somebody must look afterwards. What cannot be proved is left and told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.sweep import SnapshotLooks
    from activities.sweep_desk import SweepDesk
    from safehaul.messages.sweep import (
        FoundSnapshot,
        Jobless,
        JoblessInput,
        OwnerFound,
        OwnersInput,
        OwnerState,
        PhantomsInput,
        SnapshotPageInput,
        SweepReport,
        SweepRequest,
        SweepState,
        SweptSnapshot,
        Verdict,
    )
    from workflows import policies
    from workflows.cancel_signal import ask_for_cancel
    from workflows.histories import history_is_long
    from workflows.inputs import parse_input
    from workflows.orphans import OF_OWNER, Orphan
    from workflows.steps import run_step
    from workflows.sweep_details import details, verdict_of
    from workflows.vm_report import explain

EXAMPLE = '{"vcenter": "main", "dry_run": true}'
MAX_REJECTED = 5


@workflow.defn(name="SweepSnapshots")
class SweepSnapshots:
    """Ends Completed when everything could be looked at, and Failed with `SweepIncomplete` and the report when not.

    Cancelled, it starts no further removal; those that it has started go on by themselves.
    """

    def __init__(self) -> None:
        self._request: SweepRequest | None = None
        self._state: SweepState | None = None
        self._stage = "waiting for the CommServe"
        self._removes_until = 0.0
        self._canceller: asyncio.Task[None] | None = None
        self._rejected: list[str] = []

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> SweepReport:
        """Look at every vCenter; remove the orphans; report."""
        request = parse_input(SweepRequest, {} if raw is None else raw, more, EXAMPLE)
        self._request = request
        self._removes_until = workflow.time() + policies.SWEEP_REMOVES_FOR.total_seconds()
        try:
            self._state = request.going_on or await self._begin(request)
            while self._state.waiting:
                await self._next_page(self._state.waiting[0], request)
        except (ActivityError, asyncio.CancelledError) as error:
            raise self._failure(error) from error
        report = self._state.report.model_copy(update={"ended_at": workflow.now()})
        self._say("ended")
        self._tell("SweepIncomplete" if report.problems else "Swept")
        if report.problems:
            # Whoever is alerted by failures must hear that something of ours may be left, and why.
            raise ApplicationError(verdict_of(report), report, type="SweepIncomplete", non_retryable=True)
        return report

    @workflow.query(name="progress")
    def progress(self) -> SweepReport | None:
        """What was found and done so far; nothing before it has begun."""
        return self._state.report if self._state is not None else None

    @workflow.signal(name="cancel", description="Stop; the next sweep goes on with what is left")
    def cancel(self, *_raw: Any) -> None:
        """The same as `temporal workflow cancel`. Whatever comes with the signal is ignored."""
        if self._canceller is None:
            self._canceller = asyncio.create_task(ask_for_cancel(self._reject))

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, _args: Sequence[RawValue]) -> None:
        """An unknown signal is shown, and changes nothing."""
        self._reject(f"signal {name[:100]!r} does not exist; there is: cancel")

    async def _begin(self, request: SweepRequest) -> SweepState:
        self._tell("Sweeping")
        settings = await run_step(
            SweepDesk.open_sweep,
            request,
            summary="Which vCenters, and who we are",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        report = SweepReport(
            dry_run=request.dry_run,
            adopt=settings.ours.adopt,
            vcenters=settings.vcenters,
            started_at=workflow.now(),
            ended_at=workflow.now(),
        )
        self._state = SweepState(settings=settings, report=report, waiting=settings.vcenters)
        await self._cancel_jobless(self._state)
        return self._state

    async def _cancel_jobless(self, state: SweepState) -> None:
        """VMs that live without their job: each removes its own snapshot."""
        self._say("looking for VMs whose job has ended")
        try:
            found: Jobless = await run_step(
                SweepDesk.cancel_jobless_vms,
                JoblessInput(namespace_id=state.settings.ours.namespace_id, dry_run=state.report.dry_run),
                summary="VMs whose job has ended",
                queue=policies.COMMSERVE_QUEUE,
                policy=policies.COMMSERVE,
            )
        except ActivityError as error:
            self._problem(error, "VMs without their job were not looked for")
            return
        report = state.report
        for problem in found.problems:
            report = report.with_problem(problem)
        told = {"cancelled": found.vms, "cancelled_count": len(found.vms)}
        self._advance(report=report.model_copy(update=told))
        _stop_if_cancelled()

    async def _next_page(self, vcenter: str, request: SweepRequest) -> None:
        """A page of our snapshots in one vCenter; after the last one what its directories hold."""
        state = self._known_state
        self._say(f"looking at vCenter {vcenter}")
        try:
            page = await run_step(
                SnapshotLooks.list_snapshots,
                SnapshotPageInput(
                    vcenter=vcenter,
                    ours=state.settings.ours,
                    after=state.after,
                    limit=policies.SWEEP_PAGE_SNAPSHOTS,
                ),
                summary=f"All snapshots of vCenter {vcenter}",
                queue=policies.ACCESS_NODES_QUEUE,
                policy=policies.SWEEP_LOOK,
            )
        except ActivityError as error:
            self._problem(error, f"vCenter {vcenter} was not swept")
            self._advance(waiting=state.waiting[1:], after="")
            return
        _stop_if_cancelled()
        if not state.after:
            report = state.report.with_findings(page.findings, page.finding_counts)
            seen = {
                "vms": report.vms + page.vms,
                "snapshots_seen": report.snapshots_seen + page.snapshots_seen,
            }
            self._advance(report=report.model_copy(update=seen))
        await self._deal_with(vcenter, page.snapshots)
        if page.ended:
            await self._search_directories(vcenter, request)
            self._advance(waiting=state.waiting[1:], after="")
        else:
            self._advance(after=page.after)
        if history_is_long() and self._known_state.waiting:
            workflow.continue_as_new(request.model_copy(update={"going_on": self._known_state}))

    async def _deal_with(self, vcenter: str, found: Sequence[FoundSnapshot]) -> None:
        """Look the owners up; remove what has none."""
        if not found:
            return
        orphans = [Orphan(self._known_state.settings.ours, vcenter, each) for each in found]
        try:
            owners = await self._owners(orphans, vcenter)
        except ActivityError as error:
            reason = self._problem(
                error, f"owners of {len(found)} snapshots of vCenter {vcenter} are unknown"
            )
            self._swept([each.swept(Verdict.UNCLEAR, reason) for each in orphans])
            return
        _stop_if_cancelled()
        left: list[tuple[Orphan, str]] = []
        for orphan, owner in zip(orphans, owners, strict=True):
            if owner.state is OwnerState.GONE:
                left.append((orphan, owner.reason))
                continue
            self._swept([orphan.swept(OF_OWNER[owner.state], owner.reason)])
            if owner.state is OwnerState.UNCLEAR:
                self._note(f"{orphan.words}: {owner.reason}")
        if self._known_state.report.dry_run:
            self._swept([orphan.swept(Verdict.WOULD_REMOVE, reason) for orphan, reason in left])
            return
        for start in range(0, len(left), policies.SWEEP_AT_ONCE):
            await self._remove(left[start : start + policies.SWEEP_AT_ONCE])

    async def _remove(self, some: Sequence[tuple[Orphan, str]]) -> None:
        """A few orphans at once, while this sweep may still begin removals."""
        state = self._known_state
        spent = (
            state.removals >= policies.SWEEP_REMOVALS
            or workflow.time() >= self._removes_until
            or workflow.cancellation_reason() is not None
        )
        if spent:
            self._swept([orphan.swept(Verdict.LEFT, "for the next sweep") for orphan, _ in some])
            _stop_if_cancelled()
            return
        self._say(f"removing {', '.join(orphan.found.vm_name for orphan, _ in some)[:200]}")
        self._advance(removals=state.removals + len(some))
        ended = await asyncio.gather(*(orphan.remove(reason) for orphan, reason in some))
        self._swept(ended)
        for (orphan, _), each in zip(some, ended, strict=True):
            if each.verdict in {Verdict.UNCLEAR, Verdict.UNCERTIFIED}:
                self._note(f"{orphan.words}: {each.reason}")
        _stop_if_cancelled()

    async def _owners(self, orphans: Sequence[Orphan], vcenter: str) -> list[OwnerFound]:
        found = await run_step(
            SweepDesk.look_up_owners,
            OwnersInput(
                namespace_id=self._known_state.settings.ours.namespace_id,
                owners=[orphan.owner for orphan in orphans],
            ),
            summary=f"Owners of {len(orphans)} snapshots of vCenter {vcenter}",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        return found.owners

    async def _search_directories(self, vcenter: str, request: SweepRequest) -> None:
        """Phantom deltas: of a few VMs each time, in turn, or of all when somebody wants that."""
        limit = policies.SWEEP_DIRECTORIES
        turn = int(workflow.time() // policies.SWEEP_TURN.total_seconds())
        skip, searched, ended = (0 if request.thorough else turn * limit), 0, False
        while not ended:
            self._say(f"searching directories of vCenter {vcenter}")
            try:
                found = await run_step(
                    SnapshotLooks.find_phantom_deltas,
                    PhantomsInput(vcenter=vcenter, skip=skip, limit=limit),
                    summary=f"Phantom deltas in the directories of {limit} VMs",
                    queue=policies.ACCESS_NODES_QUEUE,
                    policy=policies.SWEEP_LOOK,
                )
            except ActivityError as error:
                self._problem(error, f"the directories of vCenter {vcenter} were not searched")
                return
            _stop_if_cancelled()
            report = self._known_state.report.with_findings(found.findings, found.counts)
            looked = {"directories_searched": report.directories_searched + found.looked}
            self._advance(report=report.model_copy(update=looked))
            skip, searched = skip + limit, searched + limit
            ended = not request.thorough or searched >= found.vms

    @property
    def _known_state(self) -> SweepState:
        assert self._state is not None, "the run has begun it"
        return self._state

    def _advance(self, **changes: Any) -> None:
        self._state = self._known_state.model_copy(update=changes)
        self._show()

    def _swept(self, items: Sequence[SweptSnapshot]) -> None:
        self._advance(report=self._known_state.report.with_snapshots(items))

    def _note(self, problem: str) -> None:
        self._advance(report=self._known_state.report.with_problem(problem))

    def _problem(self, error: ActivityError, what: str) -> str:
        """Note that a step failed, and go on with the rest; a cancel is no problem and goes through."""
        if is_cancelled_exception(error):
            raise error
        problem = f"{what}: {explain(error)}"
        self._note(problem)
        return problem

    def _failure(self, error: BaseException) -> BaseException:
        if workflow.cancellation_reason() is not None:
            self._say("cancelled; the next sweep goes on with what is left")
            self._tell("SweepCancelled")
            return asyncio.CancelledError()
        self._tell("SweepFailed")
        cause = error.cause if isinstance(error, ActivityError) else error
        kind = cause.type if isinstance(cause, ApplicationError) else None
        kind = "InvalidInput" if kind == "InvalidInputError" else kind
        return ApplicationError(explain(error), type=kind or "SweepFailed", non_retryable=True)

    def _reject(self, message: str) -> None:
        self._rejected = [*self._rejected, message][-MAX_REJECTED:]
        self._show()

    def _say(self, stage: str) -> None:
        self._stage = stage
        self._show()

    def _tell(self, status: str) -> None:
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(status)])

    def _show(self) -> None:
        if self._state is not None:
            workflow.set_current_details(details(self._state.report, self._stage, self._rejected))


def _stop_if_cancelled() -> None:
    """A step that ignored the cancel has returned its result: the cancel must not be swallowed."""
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError
