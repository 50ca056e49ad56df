"""Terminate and reset, of a VM and of its job, at every step: no snapshot stays, no status lies."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client

from lab.esx.api import Operation
from lab.proof import Witness
from tests.e2e.site import report_of
from tests.fault.histories import first_event, past_of
from tests.fault.test_cancel_every_step import Held, begin, children_of, connect, ended, held

__all__ = ["held"]

pytestmark = pytest.mark.slow
REMOVED_WITHIN_S = 60.0
SEED = 20261126
SCHEDULED = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
CHILD_ASKED = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED


def schedules(step: str) -> Callable[[Any], bool]:
    return lambda event: (
        event.event_type == SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == step
    )


async def reset(client: Client, workflow_id: str, before: Callable[[Any], bool]) -> None:
    """Reset to the end of the workflow task that asked for what `before` is true of."""
    found = await first_event(client, workflow_id, before)
    assert found is not None, "the history has no such event"
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            reason="a test",
            workflow_task_finish_event_id=found[1],
            request_id=uuid.uuid4().hex,
        )
    )


def ours(held: Held) -> set[str]:
    """The VMs that hold a snapshot of ours now."""
    return {
        vm.name
        for vm in held.lab.hosts.state().vms
        if any(snapshot.name.startswith("safehaul ") for snapshot in vm.snapshots)
    }


async def eventually(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.3)


@pytest.mark.parametrize("phase", ["before", "after"])
async def test_a_terminated_vm_loses_its_snapshot_within_a_minute(
    held: Held, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its live job starts the removal at once. What its worker still does unheard leaves nothing either."""
    lab, steps = held.lab, held.each_at_its_own()
    witness = Witness(lab.hosts, lab.state / "datastores")
    client = await connect(lab)
    name = f"terminate-{phase}"
    with held.holds.at(steps, phase):
        job = await begin(client, name)
        await asyncio.to_thread(held.holds.all_held)
        children = await children_of(job, set(steps))
        holders = ours(held)
        assert holders, "some hold a snapshot"
        at = datetime.now(UTC)
        for child in children.values():
            await client.get_workflow_handle(child).terminate("killed by the test")
    await ended(client, name)
    told = {vm["name"]: vm for vm in report_of(lab, name)["vms"]}
    for vm, step in steps.items():
        assert (told[vm]["status"], "ended without a report" in told[vm]["reason"]) == ("Failed", True), step
    await eventually(lambda: not ours(held), REMOVED_WITHIN_S)
    first: dict[str, datetime] = {}
    for task in lab.hosts.state().tasks:
        if task.operation is Operation.REMOVE_SNAPSHOT and task.queue_time >= at:
            first.setdefault(task.entity_name, task.queue_time)
    seconds = {vm: (first[vm] - at).total_seconds() for vm in holders if vm in first}
    with capsys.disabled():
        print(f"\nremoval's task after the terminate, {phase}: {sorted(seconds.values())} s")
    assert seconds
    assert max(seconds.values()) <= REMOVED_WITHIN_S
    # The second looks of the removals that knew no moref.
    async for item in client.list_workflows("WorkflowType='RemoveSnapshot' AND ExecutionStatus='Running'"):
        await client.get_workflow_handle(item.id).result()
    assert witness.problems() == []


@pytest.mark.parametrize("phase", ["before", "after"])
async def test_the_vms_of_a_terminated_job_go_on_to_clean_ends(held: Held, phase: str) -> None:
    lab, steps = held.lab, held.each_at_its_own()
    witness = Witness(lab.hosts, lab.state / "datastores")
    client = await connect(lab)
    with held.holds.at(steps, phase):
        job = await begin(client, f"terminate-job-{phase}")
        await asyncio.to_thread(held.holds.all_held)
        children = await children_of(job, set(steps))
        await job.terminate("killed by the test")
    found = {steps[vm]: (await ended(client, child)).status for vm, child in children.items()}
    assert found == dict.fromkeys(held.of_a_vm, "COMPLETED")
    await eventually(lambda: not ours(held), 60)
    assert witness.problems() == []


@pytest.mark.parametrize("phase", ["before", "after"])
async def test_a_vm_that_is_reset_at_any_step_to_any_earlier_one(
    held: Held, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step that was under way goes on unheard beside the new run's. What a later step had given up (the snapshot,
    the spool) may be missed by the earlier one: then the VM is Failed and says so, and nothing of it stays either.
    """
    lab, steps, rng = held.lab, held.each_at_its_own(), random.Random(f"{SEED} {phase}")
    witness = Witness(lab.hosts, lab.state / "datastores")
    client = await connect(lab)
    name, chosen = f"reset-{phase}", {}
    with held.holds.at(steps, phase):
        job = await begin(client, name)
        await asyncio.to_thread(held.holds.all_held)
        for vm, child in (await children_of(job, set(steps))).items():
            earlier = rng.choice((await past_of(client, child)).steps)
            chosen[vm] = f"at {steps[vm]} to {earlier}"
            await reset(client, child, schedules(earlier))
    await ended(client, name)
    report = report_of(lab, name)
    assert report["totals"]["vms"] == len(lab.hosts.state().vms)
    backups = json.loads(lab.safehaul("backups", "list", "--json"))
    listed = {row["vm_name"] for row in backups if row["job_id"] == report["job_id"]}
    for vm in report["vms"]:
        assert vm["status"] in ("Completed", "Failed"), vm
        if vm["status"] == "Completed":
            assert vm["name"] in listed, vm
        else:
            assert vm["reason"].startswith("step "), vm
            with capsys.disabled():
                print(f"\n{vm['name']} {chosen[vm['name']]}: {vm['reason']}")
    await eventually(lambda: not ours(held), 60)
    assert witness.problems() == []


@pytest.mark.parametrize("to", ["discover", "take_lease", "distribute", "load_page", "its VMs' start"])
async def test_a_job_that_is_reset_while_its_vms_run(held: Held, to: str) -> None:
    """It adopts the VMs that run, repeats none, and its report is true."""
    lab, steps = held.lab, held.each_at_its_own()
    witness = Witness(lab.hosts, lab.state / "datastores")
    client = await connect(lab)
    name = f"reset-job-{to.replace(' ', '-')}"
    before = len([task for task in lab.hosts.state().tasks if task.operation is Operation.CREATE_SNAPSHOT])
    with held.holds.at(steps, "before"):
        job = await begin(client, name)
        await asyncio.to_thread(held.holds.all_held)
        await children_of(job, set(steps))
        asks: Callable[[Any], bool] = lambda event: event.event_type == CHILD_ASKED  # noqa: E731
        await reset(client, name, asks if to == "its VMs' start" else schedules(to))
    await ended(client, name)
    report = report_of(lab, name)
    assert {vm["name"]: vm["status"] for vm in report["vms"]} == {
        vm["name"]: "Completed" for vm in report["vms"]
    }
    assert (report["status"], report["totals"]["vms"]) == ("Completed", len(lab.hosts.state().vms))
    made = len([task for task in lab.hosts.state().tasks if task.operation is Operation.CREATE_SNAPSHOT])
    assert made - before == len(lab.hosts.state().vms), "no VM was begun twice"
    assert witness.problems() == []
