"""A VM's snapshot in the real workflow over trivial steps: late creations, refusals to quiesce, signals to the VM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from safehaul.messages.job import JobReport
from safehaul.messages.steps import CreateSnapshotInput, Removal, RemovalInput
from safehaul.messages.vm import VmOptions, VmReport
from tests.workflow.conftest import running
from tests.workflow.world import World, wait_for_cancel
from workflows import policies

REQUEST = {"vm_group": "test"}


async def start(client: Client, job_id: str) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")


async def report_of(handle: WorkflowHandle[Any, Any]) -> VmReport:
    """The only VM's report, whatever became of the job."""
    try:
        report = JobReport.model_validate(await handle.result())
    except WorkflowFailureError as error:
        cause: Any = error.cause
        report = JobReport.model_validate(cause.details[0])
    return report.vms[0]


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


async def only_child(client: Client, job_id: str) -> WorkflowHandle[Any, Any]:
    """The job's VM; visibility lags behind a little."""
    for _ in range(100):
        async for item in client.list_workflows("WorkflowType = 'BackupVm'"):
            if item.id.startswith(f"{job_id}/"):
                return client.get_workflow_handle(item.id)
        await asyncio.sleep(0.1)
    raise AssertionError("the job has no child")


async def status_at_the_end(child: WorkflowHandle[Any, Any]) -> WorkflowExecutionStatus | None:
    """A VM reports to its job before it ends: see `workflows.unfinished`."""
    with suppress(WorkflowFailureError):
        await child.result()
    return (await child.describe()).status


@pytest.mark.parametrize("late", [True, False])
async def test_a_creation_that_may_still_come_is_looked_for_again(
    client: Client, job_id: str, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """A try of the creation that nobody hears of any more asks vCenter after the first look has found nothing."""
    monkeypatch.setattr(policies, "LEAST_SILENCE", timedelta(seconds=1) if late else timedelta(hours=1))
    monkeypatch.setattr(policies, "LATE_CREATION_WITHIN", timedelta(seconds=1))
    world = World(vm_count=1)

    def lost(_arg: CreateSnapshotInput) -> None:
        time.sleep(1.2)
        raise ApplicationError("no answer", type="NotFoundError", non_retryable=True)

    def removed(arg: RemovalInput) -> Removal:
        found = world.snapshots.pop(arg.plan.name, None)
        if late and world.calls["remove_snapshot"] == 1:
            world.snapshots[arg.plan.name] = "made by the lost try"
        return Removal(gone=True, record={"found": found})

    world.hooks["create_snapshot"] = lost
    world.removals = removed
    async with running(client, world, sandboxed=False):
        vm = await report_of(await start(client, job_id))
    assert vm.reason == "step 6: no answer"
    assert world.calls["remove_snapshot"] == (2 if late else 1)
    assert not world.snapshots


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_guest_that_refuses_to_quiesce(client: Client, job_id: str, *, allowed: bool) -> None:
    """Only where the VM group says so a crash-consistent snapshot is made, in a step of its own, and told."""
    world = World(vm_count=1)
    world.options = VmOptions(quiesce=True, quiesce_fallback=allowed)

    def refuse(arg: CreateSnapshotInput) -> None:
        if arg.options.quiesce:
            raise ApplicationError("VSS failed", type="QuiesceRefusedError", non_retryable=True)

    world.hooks["create_snapshot"] = refuse
    async with running(client, world):
        vm = await report_of(await start(client, job_id))
    if allowed:
        assert vm.status == "Completed"
        assert vm.warnings == ["the guest refused to quiesce, the snapshot is crash-consistent: VSS failed"]
    else:
        assert (vm.status, vm.reason) == ("Failed", "step 6: VSS failed")
    assert world.calls["create_snapshot"] == 1 + allowed
    assert not world.snapshots


async def test_a_permanent_refusal_of_the_removal_is_handed_over_and_ends_when_it_is_put_right(
    client: Client, job_id: str
) -> None:
    """What the VM's report says ("RemoveSnapshot goes on with it") is true of permanent errors too."""
    world = World(vm_count=1)

    def refuse(_arg: RemovalInput) -> None:
        raise ApplicationError("no privilege", type="PermissionRefusedError", non_retryable=True)

    world.hooks["remove_snapshot"] = refuse
    async with running(client, world):
        vm = await report_of(await start(client, job_id))
        assert vm.snapshot_pending
        assert "RemoveSnapshot goes on with it" in vm.reason
        (name,) = world.snapshots
        handle = client.get_workflow_handle(f"remove-snapshot {name}")
        await until(lambda: world.calls["remove_snapshot"] >= 2)
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        world.hooks.clear()
        await handle.signal("retry_now")
        assert Removal.model_validate(await handle.result()).gone
    assert not world.snapshots


async def test_a_cancel_sent_to_the_vm_itself_cancels_it_and_other_signals_are_shown(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=1)
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(20)
    async with running(client, world):
        handle = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        child = await only_child(client, job_id)
        await child.signal("cancel_vm", {"vm": "vm-00000"})
        shown: Any = await child.query("__temporal_workflow_metadata")
        assert "cancel\\_vm" in shown.current_details
        assert "there are: cancel, pause, resume" in shown.current_details
        await child.signal("cancel", "whatever is given")
        await child.signal("cancel")
        vm = await report_of(handle)
        assert await status_at_the_end(child) is WorkflowExecutionStatus.CANCELED
    assert vm.status == "Cancelled"
    assert world.calls["create_snapshot"] == world.calls["remove_snapshot"] == 1
    assert not world.snapshots


@pytest.mark.parametrize("final", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_step_that_fails_when_it_is_to_stop_ends_the_vm_as_cancelled(
    client: Client, job_id: str, *, final: bool
) -> None:
    """The server repeats no try of a step that is to stop: its failure must not make a cancelled VM Failed."""
    world = World(vm_count=1)

    def fails(_arg: Any) -> None:
        wait_for_cancel(20)
        raise ApplicationError("the filer is busy", type="BusyError", non_retryable=final)

    world.hooks["transfer_disk"] = fails
    async with running(client, world):
        handle = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        child = await only_child(client, job_id)
        await child.signal("cancel")
        vm = await report_of(handle)
        assert await status_at_the_end(child) is WorkflowExecutionStatus.CANCELED
    assert vm.status == "Cancelled"
    assert vm.reason == "cancelled; step 11, which was to stop, failed: the filer is busy"
    assert not world.snapshots


@pytest.mark.slow
async def test_a_step_that_failed_before_the_cancel_came_leaves_the_vm_failed(
    client: Client, job_id: str
) -> None:
    """The cancel comes while the snapshot of the failed VM is removed: what went wrong is what there is to tell."""
    world = World(vm_count=1)

    def fails(_arg: Any) -> None:
        raise ApplicationError("the disk is damaged", type="IntegrityError", non_retryable=True)

    world.hooks["transfer_disk"] = fails
    world.hooks["remove_snapshot"] = lambda _arg: time.sleep(1.0)
    async with running(client, world):
        handle = await start(client, job_id)
        await until(lambda: world.calls["remove_snapshot"])
        await (await only_child(client, job_id)).cancel()
        vm = await report_of(handle)
    assert (vm.status, vm.reason) == ("Failed", "step 11: the disk is damaged")
    assert not world.snapshots


async def test_a_workflow_id_that_is_used_again_never_means_the_same_snapshot(
    client: Client, job_id: str
) -> None:
    """Trap: last night's snapshot, leaked, must not be adopted as tonight's: its name holds the first run.

    Nor is the VM's last backup taken for this one, however soon the id is used again: run ids begin with their time.
    """
    world = World(vm_count=1)
    names: list[str] = []
    world.hooks["create_snapshot"] = lambda arg: names.append(arg.plan.name)
    async with running(client, world):
        first, second = [await report_of(await start(client, job_id)) for _ in range(2)]
    assert (first.status, second.status) == ("Completed", "Completed")
    assert first.child_id != second.child_id
    assert world.calls["seal_backup"] == len(set(names)) == 2
