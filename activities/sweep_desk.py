"""The sweep's questions to Temporal, at the CommServe: who lives, and which VMs live without their job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import temporalio.api.workflowservice.v1 as workflowservice
from temporalio import activity
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import translated
from activities.namespaces import ASK_WITHIN, namespace_id
from activities.peers import Peers
from safehaul.errors import BusyError, InvalidInputError
from safehaul.messages.marker import removal_id
from safehaul.messages.sweep import (
    Jobless,
    JoblessInput,
    JoblessVm,
    Owner,
    OwnerFound,
    OwnersFound,
    OwnersInput,
    OwnerState,
    SweepIdentity,
    SweepRequest,
    SweepSettings,
)

ASKED_AT_ONCE = 16
MAX_LISTED = 10_000
"""Running BackupVm workflows that one sweep looks at."""
MAX_CANCELLED = 200
MAX_PROBLEMS = 20
JOB_ID: Final = SearchAttributeKey.for_keyword("JobId")
VM_NAME: Final = SearchAttributeKey.for_keyword("VmName")
RUNNING_VMS: Final = "WorkflowType = 'BackupVm' AND ExecutionStatus = 'Running'"
# A status that a later server may add, such as a paused one, is not among them: then nothing is removed.
CLOSED: Final = {
    WorkflowExecutionStatus.COMPLETED,
    WorkflowExecutionStatus.FAILED,
    WorkflowExecutionStatus.CANCELED,
    WorkflowExecutionStatus.TERMINATED,
    WorkflowExecutionStatus.TIMED_OUT,
}


@dataclass(frozen=True)
class _Life:
    """How a chain of runs stands: `alive` is None when nobody can tell."""

    alive: bool | None
    reason: str


class SweepDesk:
    """Activities of the queue `commserve`."""

    def __init__(self, peers: Peers, client: Client) -> None:
        self._peers = peers
        self._client = client
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)

    @activity.defn(name="open_sweep")
    async def open_sweep(self, request: SweepRequest) -> SweepSettings:
        """Which vCenters are swept, and who we are. A second run answers the same.

        Errors: no such vCenter; the namespace to adopt is this one, or lives, or nobody can tell whether it does.
        """
        with translated():
            settings = self._peers.settings
            chosen = [settings.vcenter(request.vcenter)] if request.vcenter else settings.vcenters
            namespace = await namespace_id(self._client)
            adopt = str(request.adopt) if request.adopt else ""
            if adopt:
                await self._check_lost(adopt, namespace)
            ours = SweepIdentity(
                installation_id=str(settings.installation_id), namespace_id=namespace, adopt=adopt
            )
            return SweepSettings(ours=ours, vcenters=[each.name for each in chosen])

    @activity.defn(name="look_up_owners")
    async def look_up_owners(self, arg: OwnersInput) -> OwnersFound:
        """Looks each snapshot's owner up by Describe (never by visibility, which lags). A second run looks again.

        What is not clearly gone is alive or unclear. Errors: the namespace is another one than the markers name, in
        which nobody would be known.
        """
        with translated():
            await self._check_namespace(arg.namespace_id)
            found = await asyncio.gather(*(self._owner(owner) for owner in arg.owners))
            # Once more: a namespace that was deleted meanwhile would have called everybody unknown.
            await self._check_namespace(arg.namespace_id)
            return OwnersFound(owners=found)

    @activity.defn(name="cancel_jobless_vms")
    async def cancel_jobless_vms(self, arg: JoblessInput) -> Jobless:
        """Cancels running BackupVm workflows whose job is closed; each removes its snapshot and ends.

        Visibility only names candidates; that the VM's workflow runs, and that its job does not, is asked by Describe.
        A second run finds those that still run, and asks again. Errors: Temporal cannot be asked.
        """
        with translated():
            await self._check_namespace(arg.namespace_id)
            jobs: dict[tuple[str, str], _Life] = {}
            found: list[JoblessVm] = []
            problems: list[str] = []
            listed = 0
            async for vm in self._running_vms():
                listed += 1
                job_id, job = str(vm.typed_search_attributes.get(JOB_ID) or ""), vm.parent_id or ""
                # Without a job's id nobody can tell whose it is: somebody may have started it by hand.
                if not job_id or not job:
                    continue
                if (job, job_id) not in jobs:
                    jobs[job, job_id] = await self._life(job, job_id)
                life = jobs[job, job_id]
                if life.alive is None:
                    problems.append(f"whether job {job} runs cannot be told: {life.reason}")
                    del jobs[job, job_id]
                elif not life.alive:
                    cancelled = await self._cancel(vm, f"its job {job} {life.reason}", dry_run=arg.dry_run)
                    found += [cancelled] if cancelled is not None else []
                if len(found) >= MAX_CANCELLED or len(problems) >= MAX_PROBLEMS:
                    return Jobless(vms=found, more=True, problems=problems)
            await self._check_namespace(arg.namespace_id)
            return Jobless(vms=found, more=listed >= MAX_LISTED, problems=problems)

    async def _running_vms(self) -> AsyncIterator[WorkflowExecution]:
        async for vm in self._client.list_workflows(RUNNING_VMS, limit=MAX_LISTED):
            yield vm

    async def _cancel(self, vm: WorkflowExecution, job: str, *, dry_run: bool) -> JoblessVm | None:
        """None when it has ended meanwhile."""
        try:
            now = await self._describe(vm.id, vm.run_id)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        same_job = (now.parent_id, now.typed_search_attributes.get(JOB_ID)) == (
            vm.parent_id,
            vm.typed_search_attributes.get(JOB_ID),
        )
        if now.status is not WorkflowExecutionStatus.RUNNING or not same_job:
            return None
        already = now.raw_description.workflow_extended_info.cancel_requested
        told = JoblessVm(
            workflow_id=vm.id,
            vm_name=str(vm.typed_search_attributes.get(VM_NAME) or ""),
            job=job,
            already=already,
        )
        if not dry_run and not already:
            handle = self._client.get_workflow_handle(vm.id, run_id=vm.run_id)
            try:
                await handle.cancel(reason=job, rpc_timeout=ASK_WITHIN)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                return None
        return told

    async def _owner(self, owner: Owner) -> OwnerFound:
        if owner.adopted:
            life = _Life(alive=False, reason="its namespace is lost, as somebody has said")
        else:
            life = await self._life(owner.workflow_id, owner.first_run_id)
        if life.alive is None:
            return OwnerFound(state=OwnerState.UNCLEAR, reason=life.reason)
        if life.alive:
            return OwnerFound(state=OwnerState.ALIVE, reason=life.reason)
        return await self._removal(owner, life.reason)

    async def _removal(self, owner: Owner, reason: str) -> OwnerFound:
        """Of an owner that is gone: is a RemoveSnapshot at work on its snapshot?"""
        workflow_id = removal_id(owner.snapshot_name)
        try:
            status = (await self._describe(workflow_id)).status
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                return OwnerFound(state=OwnerState.UNCLEAR, reason=_why(workflow_id, error))
            return OwnerFound(state=OwnerState.GONE, reason=reason)
        if status in CLOSED:
            return OwnerFound(state=OwnerState.GONE, reason=reason)
        return OwnerFound(state=OwnerState.REMOVING, reason=f"workflow {workflow_id} is at work")

    async def _life(self, workflow_id: str, first_run_id: str) -> _Life:
        """Whether the chain of runs that began with `first_run_id` under that workflow id lives."""
        try:
            latest = await self._describe(workflow_id)
            told = latest.raw_description.workflow_execution_info.first_run_id
            if not told:
                return _Life(
                    alive=None, reason=f"Temporal does not tell the first run of workflow {workflow_id}"
                )
            if told == first_run_id:
                return _life_of(workflow_id, latest)
            # The id is used again: one execution of an id runs at a time, so ours has ended. It is asked all the same.
            ours = await self._describe(workflow_id, first_run_id)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return _Life(alive=False, reason="is not known to Temporal any more")
            return _Life(alive=None, reason=_why(workflow_id, error))
        # The first run of a chain that went on says so, and what came after it has ended too.
        if ours.status is WorkflowExecutionStatus.CONTINUED_AS_NEW:
            return _Life(alive=False, reason="has ended, its id is used again")
        return _life_of(workflow_id, ours)

    async def _describe(self, workflow_id: str, run_id: str | None = None) -> WorkflowExecutionDescription:
        async with self._asking:
            handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
            return await handle.describe(rpc_timeout=ASK_WITHIN)

    async def _check_namespace(self, expected: str) -> None:
        found = await namespace_id(self._client)
        if found != expected:
            raise BusyError(
                f"Temporal namespace {self._client.namespace} has id {found} now, and {expected} when the "
                "sweep began: nothing is removed"
            )

    async def _check_lost(self, adopt: str, own: str) -> None:
        """Nobody's snapshots are adopted whose namespace lives. Raises InvalidInputError, BusyError."""
        if adopt == own:
            raise InvalidInputError("adopt: that is this very namespace, whose snapshots are swept anyway")
        try:
            answer = await self._client.workflow_service.describe_namespace(
                workflowservice.DescribeNamespaceRequest(id=adopt), timeout=ASK_WITHIN
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return
            raise BusyError(
                f"adopt: nobody can tell whether namespace {adopt} lives: {error.message}"
            ) from error
        raise InvalidInputError(
            f"adopt: namespace {adopt} ({answer.namespace_info.name}) is on this Temporal server: sweep there"
        )


def _life_of(workflow_id: str, run: WorkflowExecutionDescription) -> _Life:
    name = run.status.name.lower() if run.status is not None else "unknown"
    if run.status is WorkflowExecutionStatus.RUNNING:
        return _Life(alive=True, reason=f"workflow {workflow_id} runs")
    if run.status in CLOSED:
        return _Life(alive=False, reason=f"has ended ({name})")
    return _Life(alive=None, reason=f"workflow {workflow_id} is {name}")


def _why(workflow_id: str, error: RPCError) -> str:
    return f"workflow {workflow_id} cannot be looked up: {error.message[:300]}"
