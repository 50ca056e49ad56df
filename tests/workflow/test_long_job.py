"""A job over many runs stays whole: children that die, cancels and quiet nights between two runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError

from activities.commserve import CommServe
from lab.temporal import TemporalServer
from safehaul.messages.job import ChildRef, JobReport
from tests.workflow.conftest import end_all, running
from tests.workflow.world import World, wait_for_cancel
from workflows import policies
from workflows.backup_job import BackupJob

REQUEST = {"vm_group": "test"}
BLOCKED = "vm-00000"
EVENTS = 40


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server that suggests to continue as new after very few events."""
    server = TemporalServer(tmp_path_factory.mktemp("impatient"), ui=False, suggest_new_run_events=EVENTS)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def started(
    server: TemporalServer, job_id: str, world: World
) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    """A job at work; it and its VMs end with the test, lest a test with other bounds goes on with them."""
    client = await Client.connect(server.address, data_converter=pydantic_data_converter)
    async with running(client, world):
        await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        handle = client.get_workflow_handle(job_id)
        try:
            yield handle
        finally:
            # Also the children of a job that was terminated: the next test's workers would run them.
            await end_all(client)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


async def run_of(job: WorkflowHandle[Any, Any]) -> str:
    return (await job.describe()).run_id or ""


async def next_run(job: WorkflowHandle[Any, Any], current: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while await run_of(job) == current:
        assert time.monotonic() < deadline, "the job has not continued as new"
        await asyncio.sleep(0.05)


async def test_a_child_that_dies_while_runs_are_short_is_noticed_long_before_the_job_ends(
    impatient: TemporalServer, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells a later run natively, and runs shorter than the reconciliation's pause must not starve it."""
    monkeypatch.setattr(policies, "RECONCILE_EVERY", timedelta(seconds=6))
    world = World(vm_count=1000, streams=6)
    world.hooks["transfer_disk"] = lambda arg: wait_for_cancel(60) if arg.vm.name == BLOCKED else None
    async with started(impatient, job_id, world) as job:
        await next_run(job, await run_of(job))
        await _kill_blocked(job, world)
        await until(lambda: "vc.00000" not in world.snapshots.values(), 15)
        await job.signal("cancel")
        with pytest.raises(Exception, match=r"cancel|Workflow"):
            await job.result()
    assert not world.snapshots


async def test_without_the_reconciliation_that_death_stays_unseen(
    impatient: TemporalServer, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step `reconcile` as a successful no-op: it is what notices the child above, and nothing else is."""
    monkeypatch.setattr(policies, "RECONCILE_EVERY", timedelta(seconds=2))
    asked: Counter[str] = Counter()

    async def nothing(_self: CommServe, child: ChildRef) -> None:
        asked[child.child_id] += 1

    monkeypatch.setattr(CommServe, "_look_up", nothing)
    world = World(vm_count=1000, streams=6)
    world.hooks["transfer_disk"] = lambda arg: wait_for_cancel(60) if arg.vm.name == BLOCKED else None
    async with started(impatient, job_id, world) as job:
        await next_run(job, await run_of(job))
        child = await _kill_blocked(job, world)
        before = asked[child]
        await until(lambda: asked[child] >= before + 2)
        assert "vc.00000" in world.snapshots.values()
        assert BLOCKED in {vm.name for vm in (await job.query(BackupJob.progress)).running}
        await job.terminate("nobody would end it")


async def test_a_cancel_of_a_vm_that_comes_just_before_a_continue_as_new_is_not_lost(
    impatient: TemporalServer, job_id: str
) -> None:
    """The signal comes after the job has read its mail, while it settles a VM's end, and before it continues."""
    world, held, release = World(vm_count=2, streams=2), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def silent(_arg: Any) -> None:
        raise ApplicationError("the node is too busy to ask", type="BusyError", non_retryable=True)

    def hold(_arg: Any) -> None:
        if world.calls["write_index"]:  # the ping after a VM's end, not those before the job's start
            loop.call_soon_threadsafe(held.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(8)

    world.hooks["ask_for_vm"] = silent
    world.hooks["ping"] = hold
    world.hooks["transfer_disk"] = lambda arg: wait_for_cancel(60) if arg.vm.name == BLOCKED else None
    async with started(impatient, job_id, world) as job:
        await asyncio.wait_for(held.wait(), 20)
        before = await run_of(job)
        for _ in range(EVENTS):  # the run is made long while its main loop is held
            await job.signal("no_such_signal")
        await job.signal("cancel_vm", {"vm": BLOCKED})
        assert await run_of(job) == before
        release.set()
        report = JobReport.model_validate(await job.result())
        runs_again = await run_of(job) != before
    assert runs_again
    assert {vm.name: str(vm.status) for vm in report.vms} == {BLOCKED: "Cancelled", "vm-00001": "Completed"}
    assert not world.snapshots


async def test_a_quiet_job_continues_as_new_too(
    impatient: TemporalServer, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM may take days: the regular reconciliation alone must not fill the history of a job without other mail."""
    monkeypatch.setattr(policies, "RECONCILE_EVERY", timedelta(seconds=0.3))
    world = World(vm_count=1)
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(8)
    async with started(impatient, job_id, world) as job:
        await until(lambda: world.calls["transfer_disk"])
        first = await run_of(job)
        await next_run(job, first, 7)
        second = await run_of(job)
        report = JobReport.model_validate(await job.result())
    assert second != first
    assert report.totals.completed == 1
    assert not world.snapshots


async def _kill_blocked(job: WorkflowHandle[Any, Any], world: World) -> str:
    """Terminate the workflow of the VM that does not get on, once it holds its snapshot; its id."""
    await until(lambda: "vc.00000" in world.snapshots.values())
    progress = await job.query(BackupJob.progress)
    child = next(vm.child_id for vm in progress.running if vm.name == BLOCKED)
    await _client(job).get_workflow_handle(child).terminate("killed by the test")
    return str(child)


def _client(job: WorkflowHandle[Any, Any]) -> Client:
    return job._client
