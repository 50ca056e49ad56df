"""A cancel that comes when the VM's index may have been written: the VM ends as the index says."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError

from safehaul.messages.vm import VmReport
from tests.workflow.conftest import running
from tests.workflow.test_snapshot_guard import only_child, report_of, start, status_at_the_end, until
from tests.workflow.world import World
from workflows import policies

ENDS = {"Completed": WorkflowExecutionStatus.COMPLETED, "Cancelled": WorkflowExecutionStatus.CANCELED}


def _lost(_arg: Any) -> None:
    """The index is written, and nobody hears of it."""
    time.sleep(1.0)
    raise ApplicationError("the answer was lost")


async def _cancelled_at_the_index(client: Client, job_id: str, world: World) -> VmReport:
    """The only VM's report, which its workflow's end confirms."""
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["write_index"])
        child = await only_child(client, job_id)
        await child.signal("cancel")
        vm = await report_of(job)
        status = await status_at_the_end(child)
    assert status is ENDS[vm.status]
    return vm


async def test_a_cancel_between_two_tries_of_the_index_is_too_late(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.hooks["write_index"] = lambda arg: _lost(arg) if world.calls["write_index"] == 1 else None
    vm = await _cancelled_at_the_index(client, job_id, world)
    assert (vm.status, world.calls["write_index"]) == ("Completed", 2)


async def test_a_cancel_ends_the_wait_for_a_media_agent_that_is_away(
    client: Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(vm_count=1)
    world.hooks["write_index"] = _lost
    monkeypatch.setattr(policies, "INDEX_AFTER_CANCEL", timedelta(seconds=2))
    vm = await _cancelled_at_the_index(client, job_id, world)
    assert vm.status == "Cancelled"
    assert world.calls["write_index"] >= 2
    assert not world.snapshots
