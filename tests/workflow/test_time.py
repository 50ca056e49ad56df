"""What takes minutes, with the real policies, on a real server that skips the time in which a workflow only waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
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

pytestmark = pytest.mark.slow
WITHIN_S = 120.0  # half a minute on a quiet machine: the server takes a second for each skip

REQUEST = {"vm_group": "test"}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Every workflow has a clock of its own on this server. Without the path the SDK would download one."""
    async with await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=tool("temporal"),
        dev_server_extra_args=["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"],
        search_attributes=policies.SEARCH_ATTRIBUTES,
        data_converter=pydantic_data_converter,
    ) as started:
        yield started.client


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
