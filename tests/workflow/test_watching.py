"""A job as the command line sees it on a real server: its running VMs' steps, its place in the list, also over runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError

from lab.temporal import TemporalServer
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import JobRow
from safehaul.messages.progress import JobProgress, TransferBeat
from tests.workflow.conftest import running
from tests.workflow.world import World
from workers.cli.job_list import ListedJob, ListedStatus, Wanted, visible
from workers.cli.vm_looks import VmLook, VmLooks

REQUEST = {"vm_group": "test"}
BEAT = TransferBeat(disk="Hard disk 1", done_bytes=5, capacity_bytes=10, vm_done_bytes=5, waits_for="filer")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server of these tests' own, which suggests to continue as new after few events."""
    started = TemporalServer(tmp_path_factory.mktemp("watched"), ui=False, suggest_new_run_events=60)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    yield opened
    opened.close()


@asynccontextmanager
async def held(
    server: TemporalServer, job_id: str, vms: int
) -> AsyncIterator[tuple[Client, Any, threading.Event]]:
    """A job whose transfers heartbeat and wait for the event; they are let go at the end."""
    client = await Client.connect(server.address, data_converter=pydantic_data_converter)
    go, world = threading.Event(), World(vm_count=vms)

    def wait(_arg: Any) -> None:
        while not go.wait(0.05):
            activity.heartbeat(BEAT)

    world.hooks["transfer_disk"] = wait
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        try:
            yield client, handle, go
        finally:
            go.set()
            await handle.result()


async def _progress(handle: WorkflowHandle[Any, Any]) -> JobProgress:
    return JobProgress.model_validate(await handle.query("progress"))


async def _seen(
    handle: WorkflowHandle[Any, Any], looks: VmLooks, wanted: Callable[[VmLook], bool]
) -> list[VmLook]:
    """Look at the job's VMs until all of them are as wanted."""
    deadline = time.monotonic() + 60
    while True:
        running_now = (await _progress(handle)).running
        await looks.renew(running_now)
        found = [looks.of(vm.child_id) for vm in running_now]
        if found and all(look is not None and wanted(look) for look in found):
            return [look for look in found if look is not None]
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.2)


async def _listed(client: Client, catalog: Catalog, job_id: str, wanted: Wanted) -> ListedJob | None:
    """The job in the list; visibility lags, so wait a moment for it."""
    for _ in range(50):
        for job in await visible(client, catalog, wanted):
            if job.workflow_id == job_id:
                return job
        await asyncio.sleep(0.1)
    return None


async def test_a_transfers_step_beat_and_wait_are_seen(
    server: TemporalServer, job_id: str, catalog: Catalog
) -> None:
    async with held(server, job_id, 2) as (client, handle, _go):
        looks = await _seen(handle, VmLooks(client), lambda look: look.beat is not None)
        assert {(look.step, look.doing, look.waits_for, look.trouble) for look in looks} == {
            (11, "reading Hard disk 1", "filer", "")
        }
        assert {look.beat for look in looks} == {BEAT}
        progress = await _progress(handle)
        assert [(node.name, node.streams, node.lost) for node in progress.nodes] == [("n1", 2, False)]
        job = await _listed(client, catalog, job_id, Wanted(status=ListedStatus.RUNNING, vm_group="test"))
        assert job is not None
        assert (job.status, job.running, job.vms) == ("Running", 2, 0)


async def test_a_step_that_fails_shows_its_reason_and_its_next_try(
    server: TemporalServer, job_id: str
) -> None:
    client = await Client.connect(server.address, data_converter=pydantic_data_converter)
    world, fixed = World(vm_count=1), threading.Event()

    def busy(_arg: Any) -> None:
        if not fixed.is_set():
            raise ApplicationError("the filer is busy", type="BusyError")

    world.hooks["check_transport"] = busy
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        (look,) = await _seen(handle, VmLooks(client), lambda look: "busy" in look.trouble)
        assert look.step == 8
        assert look.waits_for.startswith("its next try, in ")
        assert "of 36: the filer is busy" in look.trouble
        fixed.set()
        await handle.result()


async def test_jobs_are_listed_by_status_node_and_time_and_not_twice(
    server: TemporalServer, job_id: str, catalog: Catalog
) -> None:
    async with held(server, job_id, 1) as (client, handle, go):
        go.set()
        await handle.result()
        job = await _listed(client, catalog, job_id, Wanted(status=ListedStatus.COMPLETED, node="n1"))
        assert job is not None
        assert (job.status, job.vms, job.completed, job.running) == ("Completed", 1, 1, 0)
        assert job.ended is not None
        later = Wanted(since=datetime.now(UTC) + timedelta(hours=1))
        for wanted in (
            Wanted(node="n9"),
            Wanted(vm_group="other"),
            later,
            Wanted(status=ListedStatus.FAILED),
        ):
            assert job_id not in [found.workflow_id for found in await visible(client, catalog, wanted)]
        row = job.model_dump(include={"workflow_id", "job_id", "vm_group", "status"})
        catalog.record_job(JobRow(**row, started=job.started.isoformat(), ended=job.ended.isoformat()), [])
        assert job_id not in [found.workflow_id for found in await visible(client, catalog, Wanted())]


async def test_a_terminated_job_is_listed_as_such_although_its_attribute_says_running(
    server: TemporalServer, job_id: str, catalog: Catalog
) -> None:
    client = await Client.connect(server.address, data_converter=pydantic_data_converter)
    handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
    await handle.terminate()
    job = await _listed(client, catalog, job_id, Wanted(status=ListedStatus.TERMINATED))
    assert job is not None
    assert job.status == "Terminated"


async def test_a_job_of_many_runs_is_one_line_that_began_with_the_first(
    server: TemporalServer, job_id: str, catalog: Catalog
) -> None:
    client = await Client.connect(server.address, data_converter=pydantic_data_converter)
    world = World(vm_count=12)
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        first = (
            await client.get_workflow_handle(job_id, run_id=handle.first_execution_run_id).describe()
        ).start_time
        await handle.result()
        assert (await client.get_workflow_handle(job_id).describe()).run_id != handle.first_execution_run_id
    job = await _listed(client, catalog, job_id, Wanted(status=ListedStatus.COMPLETED))
    assert job is not None
    assert job.job_id == handle.first_execution_run_id
    assert job.started == first
    assert (job.vms, job.completed) == (12, 12)
    found = [item for item in await visible(client, catalog, Wanted()) if item.workflow_id == job_id]
    assert len(found) == 1
