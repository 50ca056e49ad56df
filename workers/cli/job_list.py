"""The list of jobs: those that Temporal knows (running ones, recent ones), joined with the catalogue's ended ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import JobRow
from safehaul.errors import InvalidInputError
from safehaul.messages.base import Message
from workers.cli.job_calls import JOB_TYPE
from workflows import policies

CALL_WITHIN = timedelta(seconds=10)


class ListedStatus(StrEnum):
    """How a job stands: its own status, or how Temporal ended it without one."""

    RUNNING = "running"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"


# What Temporal's visibility is asked for each; Completed and Partial both end as completed workflows.
_QUERIES = {
    ListedStatus.RUNNING: 'ExecutionStatus = "Running"',
    ListedStatus.COMPLETED: 'BackupStatus = "Completed"',
    ListedStatus.PARTIAL: 'BackupStatus = "Partial"',
    ListedStatus.FAILED: 'ExecutionStatus = "Failed"',
    ListedStatus.CANCELLED: 'ExecutionStatus = "Canceled"',
    ListedStatus.TERMINATED: 'ExecutionStatus IN ("Terminated", "TimedOut")',
}
_OF_EXECUTION = {
    WorkflowExecutionStatus.RUNNING: "Running",
    WorkflowExecutionStatus.FAILED: "Failed",
    WorkflowExecutionStatus.CANCELED: "Cancelled",
    WorkflowExecutionStatus.TERMINATED: "Terminated",
    WorkflowExecutionStatus.TIMED_OUT: "Terminated",
}


@dataclass(frozen=True)
class Wanted:
    """Which jobs are listed; `limit` at most."""

    vm_group: str | None = None
    status: ListedStatus | None = None
    since: datetime | None = None
    node: str | None = None
    limit: int = 50

    def __post_init__(self) -> None:
        """Raises InvalidInputError for names that no query could hold."""
        for name in (self.vm_group, self.node):
            if name is not None and not re.fullmatch(r'[^"\\\x00-\x1f]{1,200}', name):
                raise InvalidInputError(f"{name[:50]!a} is no name of a VM group or an access node")


class ListedJob(Message):
    """A job in the list. Bytes and reason are known of jobs that the catalogue has; VMs of others by Temporal."""

    workflow_id: str
    job_id: str
    vm_group: str = ""
    status: str
    reason: str = ""
    coordinator: str = ""
    started: datetime
    ended: datetime | None = None
    running: int = 0
    vms: int = 0
    """Ended ones."""
    completed: int = 0
    """Of a job that the catalogue does not have yet, Partial ones are among them."""
    partial: int = 0
    failed: int = 0
    cancelled: int = 0
    read_bytes: int = 0
    stored_bytes: int = 0


def catalogued(catalog: Catalog, wanted: Wanted) -> list[ListedJob]:
    """Jobs that ended by themselves, from the catalogue, newest first."""
    if wanted.status in (ListedStatus.RUNNING, ListedStatus.TERMINATED):
        return []
    rows = catalog.list_jobs(
        vm_group=wanted.vm_group,
        status=wanted.status.capitalize() if wanted.status else None,
        since=wanted.since,
        node=wanted.node,
        limit=wanted.limit,
    )
    return [_of_row(row) for row in rows]


async def visible(client: Client, catalog: Catalog, wanted: Wanted) -> list[ListedJob]:
    """Jobs that Temporal knows and the catalogue does not, newest first. Raises RPCError."""
    asked = [f'WorkflowType = "{JOB_TYPE}"', 'ExecutionStatus != "ContinuedAsNew"']
    if wanted.status is not None:
        asked.append(_QUERIES[wanted.status])
    if wanted.vm_group is not None:
        asked.append(f'VmGroup = "{wanted.vm_group}"')
    if wanted.since is not None:
        asked.append(f'StartTime >= "{wanted.since.astimezone(UTC).isoformat()}"')
    found = [
        item
        async for item in client.list_workflows(
            " AND ".join(asked), limit=wanted.limit, page_size=wanted.limit, rpc_timeout=CALL_WITHIN
        )
    ]
    known = catalog.known_jobs([_job_id(item) for item in found])
    jobs = [await _job(client, item) for item in found if _job_id(item) not in known]
    if wanted.since is not None:
        jobs = [job for job in jobs if job.started >= wanted.since]
    if wanted.node is not None:
        jobs = [job for job in jobs if await _touched(client, job, wanted.node)]
    return jobs


def merged(parts: Sequence[Sequence[ListedJob]], limit: int) -> list[ListedJob]:
    """Running jobs first, then the newest, `limit` at most."""
    jobs = [job for part in parts for job in part]
    jobs.sort(key=lambda job: (job.status != "Running", -job.started.timestamp(), job.job_id))
    return jobs[:limit]


def _of_row(row: JobRow) -> ListedJob:
    return ListedJob(
        **row.model_dump(exclude={"started", "ended"}),
        started=datetime.fromisoformat(row.started),
        ended=datetime.fromisoformat(row.ended),
    )


def _job_id(item: WorkflowExecution) -> str:
    """A job that was refused for its input has no attributes; it never continued either."""
    return item.typed_search_attributes.get(policies.JOB_ID, item.run_id)


async def _job(client: Client, item: WorkflowExecution) -> ListedJob:
    job_id = _job_id(item)
    attributes = item.typed_search_attributes
    status = _OF_EXECUTION.get(item.status) if item.status else None
    counts = await _vms(client, job_id)
    running = counts.pop("Running", 0)
    return ListedJob(
        workflow_id=item.id,
        job_id=job_id,
        vm_group=attributes.get(policies.VM_GROUP, ""),
        status=status or attributes.get(policies.BACKUP_STATUS, "Completed"),
        started=item.start_time if item.run_id == job_id else await _first_start(client, item, job_id),
        ended=item.close_time,
        running=running,
        vms=sum(counts.values()),
        completed=counts.get("Completed", 0),
        failed=counts.get("Failed", 0) + counts.get("Terminated", 0) + counts.get("TimedOut", 0),
        cancelled=counts.get("Canceled", 0),
    )


async def _vms(client: Client, job_id: str) -> dict[str, int]:
    """The job's VMs that were started, by their workflows' status: one cheap call, and no worker is asked."""
    answer = await client.count_workflows(
        f'WorkflowType = "BackupVm" AND JobId = "{job_id}" GROUP BY ExecutionStatus', rpc_timeout=CALL_WITHIN
    )
    return {str(group.group_values[0]): group.count for group in answer.groups}


async def _first_start(client: Client, item: WorkflowExecution, job_id: str) -> datetime:
    """A job that was continued as new began with the run whose id is the job's."""
    try:
        first = await client.get_workflow_handle(item.id, run_id=job_id).describe(rpc_timeout=CALL_WITHIN)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        # The first run is older than what the server keeps.
        return item.start_time
    return first.start_time


async def _touched(client: Client, job: ListedJob, node: str) -> bool:
    answer = await client.count_workflows(
        # The job's own attribute is its coordinator, its VMs' are their nodes.
        f'JobId = "{job.job_id}" AND AccessNode = "{node}"',
        rpc_timeout=CALL_WITHIN,
    )
    return answer.count > 0
