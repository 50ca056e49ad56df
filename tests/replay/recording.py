"""What records histories has in common: a workflow is started, waited for, and its history written down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

HISTORIES = Path(__file__).parent / "histories"
REQUEST = {"vm_group": "test"}


async def save(client: Client, workflow_id: str, name: str, run_id: str | None = None) -> None:
    """Write a workflow's history to `NAME.json`."""
    history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    plain = _without_traces(json.loads(history.to_json()))
    (HISTORIES / f"{name}.json").write_text(json.dumps(plain, indent=2) + "\n")


def _without_traces(value: Any) -> Any:
    """A history without stack traces: they name files of the machine that recorded it, and no replay needs them."""
    if isinstance(value, dict):
        return {key: _without_traces(item) for key, item in value.items() if key != "stackTrace"}
    return [_without_traces(item) for item in value] if isinstance(value, list) else value


async def children(client: Client, job: str) -> list[str]:
    """Ids of the job's VMs' workflows, when there are any."""
    for _ in range(100):
        found = [item.id async for item in client.list_workflows("WorkflowType = 'BackupVm'")]
        mine = [item for item in found if item.startswith(job + "/")]
        if mine:
            return mine
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{job} has no children")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing happened in time")
        await asyncio.sleep(0.02)


async def ended(handle: WorkflowHandle[Any, Any]) -> None:
    """Wait for a workflow's end, whatever it is."""
    try:
        await handle.result()
    except WorkflowFailureError:
        return  # a cancelled or failed history is what was wanted


async def job(client: Client, name: str, *args: Any) -> WorkflowHandle[Any, Any]:
    """Start a BackupJob."""
    return await client.start_workflow("BackupJob", args=list(args), id=name, task_queue="commserve")
