"""What the commands ask Temporal about long work on a repository: start it, follow it, tell how it stands."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from safehaul.errors import AlreadyExistsError, InvalidInputError, UnsupportedError
from workflows.policies import COMMSERVE_QUEUE

POLL_S = 1.0
QUERY_WITHIN = timedelta(seconds=10)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Upkeep:
    """A workflow, as Temporal lists it."""

    workflow_id: str
    status: str
    """Temporal's word in capitals: RUNNING, COMPLETED, FAILED, CANCELED, …"""
    started: datetime | None
    closed: datetime | None


async def start(client: Client, kind: str, request: BaseModel, workflow_id: str, summary: str) -> None:
    """Start a workflow. Raises AlreadyExistsError when one of that id runs."""
    try:
        await client.start_workflow(
            kind,
            request.model_dump(mode="json", exclude_defaults=True),
            id=workflow_id,
            task_queue=COMMSERVE_QUEUE,
            static_summary=summary,
        )
    except WorkflowAlreadyStartedError:
        raise AlreadyExistsError(
            f"{workflow_id} runs already: see it in the web UI, or wait for its end"
        ) from None


async def follow(
    client: Client, workflow_id: str, progress: type[M], tell: Callable[[M], None]
) -> WorkflowFailureError | None:
    """Tell its progress until it ends; what it failed with. Ctrl-C ends the following, not the work."""
    handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(workflow_id)
    ended = asyncio.ensure_future(handle.result())
    try:
        while not (await asyncio.wait([ended], timeout=POLL_S))[0]:
            try:
                tell(progress.model_validate(await handle.query("progress", rpc_timeout=QUERY_WITHIN)))
            except (RPCError, ValidationError, WorkflowQueryFailedError):
                # Only the display suffers: the work is safe in Temporal, and its end is waited for.
                continue
        ended.result()
    except WorkflowFailureError as error:
        return error
    except asyncio.CancelledError:
        sys.stderr.write(
            f"safehaul: {workflow_id} goes on: `temporal workflow signal --name cancel --workflow-id {workflow_id}` "
            "ends it\n"
        )
        raise
    finally:
        ended.cancel()
    return None


async def latest(client: Client, kind: str, limit: int) -> list[Upkeep]:
    """The newest workflows of a type, newest first."""
    return [
        _upkeep(item.id, item.status, item.start_time, item.close_time)
        async for item in client.list_workflows(f'WorkflowType = "{kind}"', limit=limit)
    ]


async def standing(client: Client, kind: str, workflow_id: str, progress: type[M]) -> tuple[Upkeep, M | None]:
    """How a workflow stands; None when nobody answers for it. Raises InvalidInputError for one of another type."""
    handle = client.get_workflow_handle(workflow_id)
    described = await handle.describe()
    if described.workflow_type != kind:
        raise InvalidInputError(f"workflow {workflow_id} is a {described.workflow_type}, no {kind}")
    what = _upkeep(described.id, described.status, described.start_time, described.close_time)
    try:
        told = progress.model_validate(await handle.query("progress", rpc_timeout=QUERY_WITHIN))
    except (RPCError, ValidationError, WorkflowQueryFailedError):
        # Its status stands; without a CommServe nobody answers for the rest.
        told = None
    return what, told


def _upkeep(
    workflow_id: str,
    status: WorkflowExecutionStatus | None,
    started: datetime | None,
    closed: datetime | None,
) -> Upkeep:
    return Upkeep(workflow_id, status.name if status is not None else "UNKNOWN", started, closed)


def report_in(error: WorkflowFailureError, report: type[M]) -> M | None:
    """The report that a failure carries, or None."""
    if not (isinstance(error.cause, ApplicationError) and error.cause.details):
        return None
    try:
        return report.model_validate(error.cause.details[0])
    except ValidationError:
        # Of another version: the message says what there is to say.
        return None


async def result_of(client: Client, workflow_id: str, report: type[M]) -> M:
    """The report of a workflow that has completed. Raises UnsupportedError for one of another version."""
    handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(workflow_id)
    try:
        return report.model_validate(await handle.result())
    except ValidationError:
        raise UnsupportedError(
            f"{workflow_id} ended with a report that this safehaul does not know: use the version that made it"
        ) from None
