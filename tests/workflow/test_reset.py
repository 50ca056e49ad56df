"""A reset, which repeats a part of a workflow, makes no second snapshot, loses no VM and reads none twice."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from safehaul.messages.job import JobReport
from tests.workflow.conftest import running
from tests.workflow.world import World
from workflows import policies
from workflows.backup_job import BackupJob

REQUEST = {"vm_group": "test"}
TASK_DONE = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
SCHEDULED = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
CHILD_ASKED = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is compared with the server every second instead of every half minute."""
    monkeypatch.setattr(policies, "RECONCILE_EVERY", timedelta(seconds=1))


class Gate:
    """Holds a step of chosen VMs until the test opens it, or the step's worker is told to stop."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, arg: Any) -> None:
        if not self.names or arg.vm.name in self.names:
            self.begun.set()
            self.open.wait(40)


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


async def reset(client: Client, workflow_id: str, before: Callable[[Any], bool]) -> str:
    """Reset to the end of the workflow task that issued the first event for which `before` is true; its run's id."""
    done = 0
    async for event in client.get_workflow_handle(workflow_id).fetch_history_events():
        if event.event_type == TASK_DONE:
            done = event.event_id
        if before(event):
            break
    else:
        raise AssertionError("the history has no such event")
    answer = await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            reason="a test",
            workflow_task_finish_event_id=done,
            request_id=uuid.uuid4().hex,
        )
    )
    return answer.run_id


def schedules(step: str) -> Callable[[Any], bool]:
    return lambda event: (
        event.event_type == SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == step
    )


def asks_for_child(event: Any) -> bool:
    return bool(event.event_type == CHILD_ASKED)


async def start(client: Client, job_id: str) -> WorkflowHandle[Any, Any]:
    await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
    return client.get_workflow_handle(job_id)


async def children(client: Client, job_id: str, count: int) -> dict[str, str]:
    """VM's name → id of its workflow, as soon as the job knows them."""
    deadline = time.monotonic() + 20
    while True:
        progress = await client.get_workflow_handle(job_id).query(BackupJob.progress)
        if len(progress.running) >= count:
            return {item.name: item.child_id for item in progress.running}
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def told(report: JobReport) -> dict[str, str]:
    return {vm.name: str(vm.status) for vm in report.vms}


def names_of(world: World) -> set[str]:
    """The names under which snapshots were asked for."""
    return {plan for step, plan in world.order if step == "snapshot"}


def note_names(world: World) -> None:
    world.hooks["create_snapshot"] = lambda arg: world.order.append(("snapshot", arg.plan.name))


@pytest.mark.parametrize("step", ["create_snapshot", "transfer_disk"])
async def test_a_vm_that_is_reset_adopts_its_own_snapshot(client: Client, job_id: str, step: str) -> None:
    """Reset to before the snapshot was asked for, and to after it was made, both while the disk is read."""
    world, gate = World(vm_count=1), Gate()
    note_names(world)
    world.hooks["transfer_disk"] = gate
    async with running(client, world):
        job = await start(client, job_id)
        await until(gate.begun.is_set)
        (child,) = (await children(client, job_id, 1)).values()
        await reset(client, child, schedules(step))
        gate.open.set()
        report = JobReport.model_validate(await job.result())
    assert told(report) == {"vm-00000": "Completed"}
    assert len(names_of(world)) == 1
    assert world.calls["create_snapshot"] == (2 if step == "create_snapshot" else 1)
    assert not world.snapshots


async def test_a_job_that_is_reset_adopts_its_running_vms(client: Client, job_id: str) -> None:
    world, gate = World(vm_count=2), Gate()
    note_names(world)
    world.hooks["transfer_disk"] = gate
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"] == 2)
        await children(client, job_id, 2)
        await reset(client, job_id, asks_for_child)
        await children(client, job_id, 2)
        gate.open.set()
        report = JobReport.model_validate(await job.result())
    assert told(report) == {"vm-00000": "Completed", "vm-00001": "Completed"}
    assert report.totals.vms == 2
    assert (len(names_of(world)), world.calls["create_snapshot"]) == (2, 2), "no VM was begun again"
    assert not world.snapshots


async def test_a_vm_that_had_finished_before_the_jobs_reset_is_not_backed_up_again(
    client: Client, job_id: str
) -> None:
    world, gate = World(vm_count=2), Gate("vm-00001")
    world.hooks["transfer_disk"] = gate
    async with running(client, world):
        job = await start(client, job_id)
        await until(gate.begun.is_set)
        first_run = (await job.describe()).run_id or ""
        await client.get_workflow_handle(f"{job_id}/{first_run[-12:]}/vc.00000").result()
        await reset(client, job_id, asks_for_child)
        gate.open.set()
        report = JobReport.model_validate(await job.result())
    assert told(report) == {"vm-00000": "Completed", "vm-00001": "Completed"}
    assert report.vms[0].backup_id
    assert (world.calls["create_snapshot"], world.calls["seal_backup"]) == (2, 2)


async def test_a_vm_that_is_terminated_after_the_jobs_reset_loses_its_snapshot(
    client: Client, job_id: str
) -> None:
    """The reset job was never told the run of the child that it adopted: it must still find whose snapshot goes."""
    world, gate = World(vm_count=2), Gate()
    world.hooks["transfer_disk"] = gate
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"] == 2)
        await children(client, job_id, 2)
        await reset(client, job_id, asks_for_child)
        child = (await children(client, job_id, 2))["vm-00000"]
        await client.get_workflow_handle(child).terminate("killed by the test")
        await until(lambda: "vc.00000" not in world.snapshots.values())
        gate.open.set()
        report = JobReport.model_validate(await job.result())
        await until(lambda: not world.snapshots)
    assert told(report) == {"vm-00000": "Failed", "vm-00001": "Completed"}
    assert world.calls["create_snapshot"] == 2


async def test_a_vm_that_is_reset_to_its_first_look_loses_its_snapshot_when_the_look_fails(
    client: Client, job_id: str
) -> None:
    """The snapshot of before the reset stands already, although the new run has not come to make one."""
    world, gate = World(vm_count=1), Gate()
    world.hooks["transfer_disk"] = gate

    def away(_arg: Any) -> None:
        if world.calls["inspect_vm"] > 1:
            raise ApplicationError("the VM is gone", type="NotFoundError", non_retryable=True)

    world.hooks["inspect_vm"] = away
    async with running(client, world):
        await start(client, job_id)
        await until(gate.begun.is_set)
        (child,) = (await children(client, job_id, 1)).values()
        assert world.snapshots
        await reset(client, child, schedules("inspect_vm"))
        await until(lambda: not world.snapshots)
        gate.open.set()
    assert world.calls["create_snapshot"] == 1
