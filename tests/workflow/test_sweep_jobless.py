"""A VM's workflow that lives although its job does not is cancelled by the sweep, and removes its own snapshot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError

from safehaul.messages.sweep import SweepReport
from tests.workflow.conftest import running
from tests.workflow.sweep_site import SweepSite, site_of, sweep
from tests.workflow.test_reset import reset, schedules
from tests.workflow.world import World, wait_for_cancel
from workflows import policies

REQUEST = {"vm_group": "test"}


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def reading(client: Client, world: World, job_id: str) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    """A job whose one VM reads until it is cancelled, beside workers that can sweep."""
    site: SweepSite = await site_of(client)
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(30.0)
    more = {policies.COMMSERVE_QUEUE: site.questions(client), policies.ACCESS_NODES_QUEUE: site.looks()}
    async with running(client, world, more=more):
        job = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        await until(lambda: world.calls["transfer_disk"])
        yield job


async def _listed(client: Client, job_id: str) -> WorkflowHandle[Any, Any]:
    """The job's child, when visibility, which lags, knows it."""
    deadline = time.monotonic() + 20
    while True:
        async for item in client.list_workflows("WorkflowType = 'BackupVm' AND ExecutionStatus = 'Running'"):
            if item.id.startswith(f"{job_id}/"):
                return client.get_workflow_handle(item.id)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def _of(report: SweepReport, job_id: str) -> list[str]:
    return [item.job for item in report.cancelled if item.workflow_id.startswith(f"{job_id}/")]


async def test_a_vm_whose_job_was_terminated_is_cancelled(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    async with reading(client, world, job_id) as job:
        child = await _listed(client, job_id)
        assert _of(await sweep(client), job_id) == [], "its job runs"
        await job.terminate("an accident")
        assert _of(await sweep(client, dry_run=True), job_id) == [f"its job {job_id} has ended (terminated)"]
        assert (await child.describe()).status is WorkflowExecutionStatus.RUNNING
        assert world.snapshots
        assert _of(await sweep(client), job_id) == [f"its job {job_id} has ended (terminated)"]
        with pytest.raises(WorkflowFailureError) as ended:
            await asyncio.wait_for(child.result(), 20)
    assert isinstance(ended.value.cause, CancelledError)
    assert not world.snapshots


async def test_a_vm_of_another_job_of_that_name_is_cancelled(client: Client, job_id: str) -> None:
    """The id is used again: that a job of this name runs saves nobody who belongs to the earlier one."""
    world = World(vm_count=1)
    async with reading(client, world, job_id) as job:
        child = await _listed(client, job_id)
        await job.terminate("an accident")
        world.vm_count = 0
        started = threading.Event()

        def discovers(_arg: Any) -> None:
            started.set()
            wait_for_cancel(20.0)

        world.hooks["discover"] = discovers
        again = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        await until(started.is_set)
        assert len(_of(await sweep(client), job_id)) == 1
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(child.result(), 20)
        assert (await again.describe()).status is WorkflowExecutionStatus.RUNNING
        await again.cancel()
    assert not world.snapshots


async def test_a_vm_of_a_job_that_was_reset_is_left_alone(client: Client, job_id: str) -> None:
    """The job goes on in another run, which began with the same first one."""
    world = World(vm_count=1)
    async with reading(client, world, job_id) as job:
        child = await _listed(client, job_id)
        await reset(client, job_id, schedules("distribute"))
        assert _of(await sweep(client), job_id) == []
        assert (await child.describe()).status is WorkflowExecutionStatus.RUNNING
        await client.get_workflow_handle(job_id).cancel()
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(child.result(), 20)
        del job
