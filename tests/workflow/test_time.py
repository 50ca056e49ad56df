"""What takes minutes, with the real policies, on Temporal's time-skipping test server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from lab.processes import tool
from safehaul.messages.job import JobReport
from safehaul.messages.vm import VmOptions
from tests.workflow.conftest import running
from tests.workflow.world import World
from workflows import policies

# The test server skips ten minutes in about five seconds, but now and then it stops skipping and real time goes by:
# such a run fails here instead of waiting for ever, and it is none that a change may wait for.
pytestmark = pytest.mark.slow
WITHIN_S = 120.0

REQUEST = {"vm_group": "test"}
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
NAMES = [key.name for key in policies.SEARCH_ATTRIBUTES]


@pytest.fixture
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    """A server of each test's own: its clock is everybody's. Without the path the SDK would download one."""
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=tool("temporal-test-server"), data_converter=pydantic_data_converter
    ) as started:
        # Its list of them is not implemented, which `workers.search_attributes` asks for first.
        await started.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace="default", search_attributes=dict.fromkeys(NAMES, KEYWORD))
        )
        yield started


@pytest.fixture
def client(environment: WorkflowEnvironment) -> Client:
    return environment.client


def locked(_arg: Any) -> None:
    raise ApplicationError("the disk is locked", type="BusyError")


async def test_a_removal_that_hangs_is_handed_over_after_ten_minutes(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.options = VmOptions()
    world.hooks["remove_snapshot"] = locked
    async with asyncio.timeout(WITHIN_S), running(client, world):
        job = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        with pytest.raises(WorkflowFailureError) as ended:
            await job.result()
        assert isinstance(ended.value.cause, ApplicationError)
        (vm,) = JobReport.model_validate(ended.value.cause.details[0]).vms
        assert vm.snapshot_pending
        assert "removal is pending" in vm.reason
        # The last try is the last one that begins within the ten minutes; half a minute lies between two.
        assert 560 <= vm.step_seconds["13"] <= 660
        (name,) = world.snapshots
        world.hooks.clear()
        await client.get_workflow_handle(f"remove-snapshot {name}").result()
    assert not world.snapshots
