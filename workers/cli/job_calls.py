"""What the commands ask Temporal about a job: every call bounded, every failure one of safehaul's errors."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from safehaul.errors import AlreadyExistsError, ConnectionLostError, InvalidInputError, UnsupportedError
from safehaul.messages.job import JobReport
from safehaul.messages.progress import JobProgress
from safehaul.messages.requests import BackupJobRequest
from workers.cli import exits
from workflows.policies import COMMSERVE_QUEUE

JOB_TYPE = "BackupJob"
QUERY_WITHIN = timedelta(seconds=10)
"""A CommServe that runs answers in milliseconds; without one Temporal itself would wait much longer."""
UPDATE_WITHIN_S = 20.0


@dataclass(frozen=True)
class Standing:
    """Where a job stands. `status` is Temporal's word in capitals (RUNNING, COMPLETED, CANCELED, …)."""

    workflow_id: str
    status: str
    progress: JobProgress | None = None
    """Of a job without report: it runs, or was cancelled or terminated. None when nobody answers for it."""
    report: JobReport | None = None
    """Of a job that ended by itself."""

    @property
    def runs(self) -> bool:
        """True until it has ended."""
        return self.status == WorkflowExecutionStatus.RUNNING.name

    @property
    def exit_code(self) -> int:
        """What a command that waited for the job ends with."""
        if self.report is not None:
            return exits.OF_JOB[self.report.status]
        if self.runs:
            return exits.OK
        cancelled = self.status == WorkflowExecutionStatus.CANCELED.name
        return exits.CANCELLED if cancelled else exits.FAILED


async def start_job(client: Client, workflow_id: str, request: BackupJobRequest) -> None:
    """Start a BackupJob. Raises AlreadyExistsError when a workflow of that id runs."""
    try:
        await client.start_workflow(
            JOB_TYPE,
            request.model_dump(),
            id=workflow_id,
            task_queue=COMMSERVE_QUEUE,
            static_summary=f"Backup of VM group {request.group_name}",
        )
    except WorkflowAlreadyStartedError:
        raise AlreadyExistsError(
            f"job {workflow_id} runs already: follow it with `safehaul job watch`, or choose another --workflow-id"
        ) from None


async def standing(client: Client, workflow_id: str) -> Standing:
    """Where a job stands.

    Raises InvalidInputError for a workflow that is no BackupJob, ConnectionLostError when it runs and nobody answers
    for it, RPCError, and WorkflowFailureError for a job that failed without a report (a wrong input).
    """
    described = await client.get_workflow_handle(workflow_id).describe()
    if described.workflow_type != JOB_TYPE:
        raise InvalidInputError(f"workflow {workflow_id} is a {described.workflow_type}, no {JOB_TYPE}")
    assert described.status is not None, "Describe always says the status"
    status = described.status
    if status is WorkflowExecutionStatus.RUNNING:
        return Standing(workflow_id, status.name, progress=await _progress(client, workflow_id))
    if status in (WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.FAILED):
        return Standing(workflow_id, status.name, report=await _report(client, workflow_id))
    try:
        progress = await _progress(client, workflow_id)
    except (ConnectionLostError, RPCError, UnsupportedError):
        # Nothing is lost that the status does not say; a job that was closed before it began has no progress.
        progress = None
    return Standing(workflow_id, status.name, progress=progress)


async def cancel_job(client: Client, workflow_id: str, vm: str | None, *, keep: bool = True) -> str:
    """Cancel a job, or one of its VMs; what the job answers. Without `keep` what was stored unfinished is given up.

    Raises ConnectionLostError, WorkflowUpdateFailedError.
    """
    if vm is None:
        return await _ask(client, workflow_id, "request_cancel", "cancel", {"keep": keep})
    return await _ask(client, workflow_id, "request_cancel_vm", "cancel", {"vm": vm, "keep": keep})


async def pause_job(client: Client, workflow_id: str) -> str:
    """Pause a job; what it answers. Errors as `cancel_job`."""
    return await _ask(client, workflow_id, "request_pause", "pause")


async def resume_job(client: Client, workflow_id: str) -> str:
    """Resume a job; what it answers. Errors as `cancel_job`."""
    return await _ask(client, workflow_id, "request_resume", "resume")


async def _ask(client: Client, workflow_id: str, update: str, what: str, *arguments: Any) -> str:
    call = client.get_workflow_handle(workflow_id).execute_update(update, args=arguments)
    try:
        return str(await asyncio.wait_for(call, UPDATE_WITHIN_S))
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
        raise ConnectionLostError(
            f"no CommServe answered for job {workflow_id} within {UPDATE_WITHIN_S:g} s, and it is not certain that "
            f"the {what} arrived: start `safehaul worker commserve`, then ask again"
        ) from None


async def _progress(client: Client, workflow_id: str) -> JobProgress:
    handle = client.get_workflow_handle(workflow_id)
    try:
        return JobProgress.model_validate(await handle.query("progress", rpc_timeout=QUERY_WITHIN))
    except RPCError as error:
        if not exits.no_answer(error):
            raise
        raise ConnectionLostError(
            f"no CommServe answered for job {workflow_id} within {QUERY_WITHIN.total_seconds():g} s; the job itself is "
            "safe in Temporal and goes on when `safehaul worker commserve` runs"
        ) from None
    except (ValidationError, WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
        raise UnsupportedError(
            f"job {workflow_id} does not tell its progress in a form that this safehaul knows "
            f"({type(error).__name__}): use the version that the CommServe runs"
        ) from None


async def _report(client: Client, workflow_id: str) -> JobReport:
    """A job's result, or what its failure carries."""
    handle: Any = client.get_workflow_handle(workflow_id)
    try:
        found = await handle.result()
    except WorkflowFailureError as error:
        cause = error.cause
        if not (isinstance(cause, ApplicationError) and cause.details):
            raise
        found = cause.details[0]
    try:
        return JobReport.model_validate(found)
    except ValidationError:
        raise UnsupportedError(
            f"job {workflow_id} ended with a report that this safehaul does not know: use the version that made it"
        ) from None
