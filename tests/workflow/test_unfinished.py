"""What a VM has stored and not completed is kept for later backups, or given up when its cancel says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from safehaul.messages.job import JobReport
from tests.workflow.conftest import running
from tests.workflow.test_snapshot_guard import report_of, start, until
from tests.workflow.world import World, wait_for_cancel
from workflows.unfinished import keeps


def noting(world: World) -> list[tuple[str, bool]]:
    """VM and whether what it stored is kept, as the MediaAgent is told."""
    told: list[tuple[str, bool]] = []
    world.hooks["leave_unfinished"] = lambda arg: told.append((arg.vm.name, arg.keep))
    return told


@pytest.mark.parametrize(("given", "keep"), [([], True), ([{"keep": False}], False), (["at once"], True)])
async def test_the_cancel_of_a_job_says_what_becomes_of_it(
    client: Client, job_id: str, given: list[Any], keep: bool
) -> None:
    world = World(vm_count=1)
    told = noting(world)
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(20)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        await job.signal("cancel", args=given)
        with pytest.raises(Exception, match=r"cancel|Workflow"):
            await job.result()
        await until(lambda: told)
    assert told == [("vm-00000", keep)]
    assert not world.snapshots


@pytest.mark.slow
async def test_the_cancel_of_one_vm_says_so_for_it_alone(client: Client, job_id: str) -> None:
    world = World(vm_count=3, streams=3)
    told = noting(world)
    world.hooks["transfer_disk"] = lambda arg: wait_for_cancel(20) if arg.vm.name < "vm-00002" else None
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"] == 3)
        await job.execute_update("request_cancel_vm", {"vm": "vm-00000", "keep": False})
        await job.execute_update("request_cancel_vm", {"vm": "vm-00001"})
        with pytest.raises(WorkflowUpdateFailedError):
            await job.execute_update("request_cancel_vm", {"vm": "vm-00001", "keep": "no"})
        report = JobReport.model_validate(await job.result())
        await until(lambda: len(told) == 2)
        await asyncio.sleep(0.2)
    assert sorted(told) == [("vm-00000", False), ("vm-00001", True)], "what completed is a backup"
    assert sorted(str(vm.status) for vm in report.vms) == ["Cancelled", "Cancelled", "Completed"]


@pytest.mark.slow
async def test_a_vm_that_failed_keeps_it_and_one_for_which_that_fails_is_none_the_worse(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=1)

    def damaged(_arg: Any) -> None:
        raise ApplicationError("an object is damaged", type="IntegrityError", non_retryable=True)

    world.hooks["finish_reading"] = damaged
    world.hooks["leave_unfinished"] = damaged
    async with running(client, world):
        vm = await report_of(await start(client, job_id))
        await until(lambda: world.calls["leave_unfinished"])
    assert (vm.status, vm.reason) == ("Failed", "step 12: an object is damaged")


@pytest.mark.parametrize(
    "given", [(), (None,), ("x",), ({"keep": "no"},), ({"keep": 0},), ({}, {"keep": False})]
)
def test_only_a_plain_no_gives_it_up(given: tuple[Any, ...]) -> None:
    assert keeps(given)
    assert not keeps(({"keep": False},))
