"""What the restore commands ask Temporal: start a restore, follow it with its bytes, read how it ended."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ValidationError
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from safehaul.errors import AlreadyExistsError
from safehaul.messages.restore import RestoreProgress, RestoreReport
from workers.cli.restore_view import RestoreView
from workflows.policies import COMMSERVE_QUEUE

POLL_S = 1.0
QUERY_WITHIN = timedelta(seconds=5)
_STEP = "restore_disk"


@dataclass(frozen=True)
class Ended:
    """How a restore ended. `error` is what it failed with; then the report may say what there was until then."""

    workflow_id: str
    report: RestoreReport | None = None
    error: WorkflowFailureError | None = None


async def start(client: Client, kind: str, request: BaseModel, workflow_id: str | None, summary: str) -> str:
    """Start a RestoreVm or RestoreDisk and return its workflow id. Raises AlreadyExistsError."""
    name = workflow_id or f"restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"
    try:
        await client.start_workflow(
            kind,
            request.model_dump(mode="json", exclude_defaults=True),
            id=name,
            task_queue=COMMSERVE_QUEUE,
            static_summary=summary,
        )
    except WorkflowAlreadyStartedError:
        raise AlreadyExistsError(f"workflow {name} runs already: choose another --workflow-id") from None
    return name


async def follow(client: Client, workflow_id: str, *, quiet: bool) -> Ended:
    """Show a restore until it ends. Ctrl-C ends the following, not the restore."""
    handle: WorkflowHandle[Any, RestoreReport] = client.get_workflow_handle(
        workflow_id, result_type=RestoreReport
    )
    ended = asyncio.ensure_future(handle.result())
    try:
        with RestoreView(quiet=quiet) as view:
            while not (await asyncio.wait([ended], timeout=POLL_S))[0]:
                if not quiet:
                    view.update(*await _look(client, handle))
        return Ended(workflow_id, report=ended.result())
    except WorkflowFailureError as error:
        return Ended(workflow_id, report=_report_in(error), error=error)
    except asyncio.CancelledError:
        # Stdout may be for JSON only.
        sys.stderr.write(
            f"safehaul: {workflow_id} goes on: see the web UI; `temporal workflow cancel --workflow-id "
            f"{workflow_id}` ends it and removes what it wrote\n"
        )
        raise
    finally:
        ended.cancel()


async def _look(client: Client, handle: WorkflowHandle[Any, Any]) -> tuple[RestoreProgress | None, int]:
    """Where it stands, and the bytes of the disk under way (each counts twice: written, compared)."""
    try:
        told = await handle.query("progress", rpc_timeout=QUERY_WITHIN)
        described = await handle.describe(rpc_timeout=QUERY_WITHIN)
        progress = RestoreProgress.model_validate(told)
        for step in described.raw_description.pending_activities:
            if step.activity_type.name == _STEP and step.heartbeat_details.payloads:
                beat = await client.data_converter.decode(list(step.heartbeat_details.payloads))
                return progress, _bytes_of(beat)
    except (RPCError, ValidationError, WorkflowQueryFailedError):
        # Only the display suffers: the restore is safe in Temporal, and its end is waited for.
        return None, 0
    return progress, 0


def _bytes_of(beat: list[Any]) -> int:
    match beat:
        case ["write", int(offset), int()]:
            return offset
        case ["compare", int(offset), int(capacity)]:
            return capacity + offset
    return 0


def _report_in(error: WorkflowFailureError) -> RestoreReport | None:
    if not (isinstance(error.cause, ApplicationError) and error.cause.details):
        return None
    try:
        return RestoreReport.model_validate(error.cause.details[0])
    except ValidationError:
        # Of another version, or of a wrong input: the message says what there is to say.
        return None
