"""A real Temporal server for the workflow tests, and workers that run trivial steps in the real workflows."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from activities.commserve import CommServe
from activities.peers import Peers
from lab.temporal import TemporalServer
from tests.workflow.trivial import TrivialJob, TrivialNode, World
from tests.workflow.trivial_restore import TrivialRestore
from workers.bootstrap import sandbox
from workflows import policies
from workflows.catalogue import WORKFLOWS

# A step learns of its cancel by a heartbeat: with the SDK's own throttle that takes most of the time-out.
THROTTLE = timedelta(seconds=0.2)


@pytest.fixture(scope="session")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """One server for all workflow tests; each test has task queues and ids of its own."""
    server = TemporalServer(Path(tmp_path_factory.mktemp("temporal")), ui=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(temporal: TemporalServer) -> Client:
    """A client of the server."""
    return await Client.connect(temporal.address, data_converter=pydantic_data_converter)


RunWorld = Callable[[World], Any]


@asynccontextmanager
async def running(client: Client, world: World, silent: tuple[str, ...] = ()) -> AsyncIterator[None]:
    """Workers of all roles over the trivial steps; nodes in `silent` have none."""
    job, restores, steps = TrivialJob(world), TrivialRestore(world), CommServe(_no_peers(), client)
    slots = max(8, 2 * world.streams)
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(4 * slots * max(1, len(world.nodes))))

        async def serve(queue: str, activities: list[Any], slots: int = slots, **options: Any) -> None:
            worker = Worker(
                client,
                task_queue=queue,
                activities=activities,
                activity_executor=threads,
                max_concurrent_activities=slots,
                max_heartbeat_throttle_interval=THROTTLE,
                default_heartbeat_throttle_interval=THROTTLE,
                **options,
            )
            await stack.enter_async_context(worker)

        await serve(
            policies.COMMSERVE_QUEUE,
            [
                job.open_job,
                job.choose_coordinator,
                job.record_job,
                job.report_unled_job,
                job.load_page,
                job.write_reports,
                job.close_job,
                steps.request_cancel,
                steps.reconcile,
                *restores.desk(),
            ],
            workflows=WORKFLOWS,
            workflow_runner=sandbox(),
        )
        coordination = [job.discover, job.take_lease, job.admit_nodes, job.distribute]
        coordination += [job.load_page, job.write_reports, job.close_job]
        for name in world.nodes:
            if name in silent:
                continue
            node = TrivialNode(world, name)
            await serve(policies.control_queue(name), [*node.control(), *coordination, *restores.control()])
            streams = [node.transfer_disk, restores.restore_disk]
            await serve(policies.streams_queue(name), streams, world.stream_slots or slots)
        anyone = TrivialNode(world, "any")
        await serve(policies.ACCESS_NODES_QUEUE, [anyone.remove_snapshot, *restores.clean_up()])
        await serve(policies.media_agent_queue("ma"), anyone.media())
        yield


def _no_peers() -> Peers:
    """The CommServe's real steps that need only the client get no configuration at all."""
    return Peers.__new__(Peers)


@pytest.fixture
def job_id() -> str:
    """A workflow id of the test's own."""
    return f"job-{uuid.uuid4().hex[:8]}"


__all__ = ["Awaitable", "running"]
