"""A real Temporal server for the workflow tests, and workers that run trivial steps in the real workflows."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkerDeploymentConfig

from activities.commserve import CommServe
from activities.peers import Peers
from lab.temporal import TemporalServer
from tests.workflow.trivial import TrivialJob, TrivialNode
from tests.workflow.trivial_restore import TrivialRestore
from tests.workflow.world import World
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
async def client(temporal: TemporalServer) -> AsyncIterator[Client]:
    """A client of the server. What a test leaves running there ends with it.

    A removal that is tried without limit would go on in the next test's workers, which share its queue.
    """
    connected = await Client.connect(temporal.address, data_converter=pydantic_data_converter)
    yield connected
    await end_all(connected)


async def end_all(client: Client) -> None:
    """Terminate every workflow that still runs on the server."""
    async for left in client.list_workflows("ExecutionStatus = 'Running'"):
        with suppress(RPCError):  # it has ended meanwhile
            await client.get_workflow_handle(left.id).terminate("its test has ended")


RunWorld = Callable[[World], Any]


@asynccontextmanager
async def running(
    client: Client,
    world: World,
    silent: tuple[str, ...] = (),
    *,
    workflows: Sequence[type] = WORKFLOWS,
    build: WorkerDeploymentConfig | None = None,
    sandboxed: bool = True,
) -> AsyncIterator[None]:
    """Workers of all roles over the trivial steps; nodes in `silent` have none. `build`: with versioning.

    Without the sandbox, which imports modules of its own, a test's changes of `workflows.policies` take effect.
    """
    job, restores, steps = TrivialJob(world), TrivialRestore(world), CommServe(_no_peers(), client)
    slots = max(8, 2 * world.streams)
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(3 * slots))

        async def serve(queue: str, activities: list[Any], slots: int = slots, **options: Any) -> None:
            worker = Worker(
                client,
                task_queue=queue,
                activities=activities,
                activity_executor=threads,
                max_concurrent_activities=slots,
                max_heartbeat_throttle_interval=THROTTLE,
                default_heartbeat_throttle_interval=THROTTLE,
                deployment_config=build,
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
            workflows=workflows,
            workflow_runner=sandbox() if sandboxed else UnsandboxedWorkflowRunner(),
        )
        for name in world.nodes:
            if name not in silent:
                await stack.enter_async_context(node_workers(client, world, name, build=build))
        anyone = TrivialNode(world, "any")
        await serve(policies.ACCESS_NODES_QUEUE, [*anyone.anyones(), *restores.clean_up()])
        await serve(policies.media_agent_queue("ma"), anyone.media())
        await serve(policies.upkeep_queue("ma"), [anyone.leave_unfinished])
        yield


@asynccontextmanager
async def node_workers(
    client: Client, world: World, name: str, *, build: WorkerDeploymentConfig | None = None
) -> AsyncIterator[None]:
    """One access node's workers: its control queue and its streams."""
    job, restores = TrivialJob(world), TrivialRestore(world)
    node, slots = TrivialNode(world, name), max(8, 2 * world.streams)
    coordination = [job.discover, job.take_lease, job.admit_nodes, job.distribute]
    coordination += [job.load_page, job.write_reports, job.close_job]
    control = [*node.control(), *coordination, *restores.control()]
    queues: dict[str, tuple[list[Any], int]] = {
        policies.control_queue(name): (control, slots),
        policies.streams_queue(name): (
            [node.transfer_disk, restores.restore_disk],
            world.stream_slots or slots,
        ),
    }
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2 * slots))
        for queue, (activities, at_once) in queues.items():
            worker = Worker(
                client,
                task_queue=queue,
                activities=activities,
                activity_executor=threads,
                max_concurrent_activities=at_once,
                max_heartbeat_throttle_interval=THROTTLE,
                default_heartbeat_throttle_interval=THROTTLE,
                deployment_config=build,
            )
            await stack.enter_async_context(worker)
        yield


def _no_peers() -> Peers:
    """The CommServe's real steps that need only the client get no configuration at all."""
    return Peers.__new__(Peers)


@pytest.fixture
def job_id() -> str:
    """A workflow id of the test's own."""
    return f"job-{uuid.uuid4().hex[:8]}"


__all__ = ["Awaitable", "running"]
