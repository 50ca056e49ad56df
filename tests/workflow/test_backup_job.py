"""BackupJob and BackupVm over trivial steps, on a real server: the story, the signals, the traps."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError

from safehaul.messages.job import JobReport
from safehaul.messages.vm import VmOptions
from tests.fault.histories import past_of
from tests.workflow.conftest import running
from tests.workflow.test_snapshot_guard import only_child, status_at_the_end
from tests.workflow.world import World, wait_for_cancel
from workflows import policies
from workflows.backup_job import BackupJob

REQUEST = {"vm_group": "test"}


async def start(client: Client, job_id: str, *args: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("BackupJob", args=list(args), id=job_id, task_queue="commserve")


async def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


def _works(seconds: float) -> None:
    """A step that takes its time, and lives."""
    for _ in range(round(seconds / 0.1)):
        activity.heartbeat()
        time.sleep(0.1)


async def test_all_vms_complete_and_no_snapshot_stays(client: Client, job_id: str) -> None:
    world = World(vm_count=7, nodes=("n1", "n2"), streams=2)
    async with running(client, world):
        report = JobReport.model_validate(await (await start(client, job_id, REQUEST)).result())
    assert (report.status, report.totals.completed) == ("Completed", 7)
    assert not world.snapshots
    assert world.calls["record_job"] == 1
    assert sorted(vm.given_by for vm in report.vms).count("request") == 3


async def test_the_steps_of_a_vm_come_in_the_order_of_the_contract(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    async with running(client, world):
        await (await start(client, job_id, REQUEST)).result()
    steps = [name for name, _ in world.order]
    expected = [
        "choose_coordinator", "discover", "take_lease", "prepare_node", "admit_nodes", "distribute",
        "create_snapshot", "check_transport", "download_files", "open_backup", "transfer_disk",
        "finish_reading", "seal_backup", "remove_snapshot", "mark_completed", "write_index", "ask_for_vm",
        "close_job",
    ]  # fmt: skip
    assert [name for name in steps if name in expected] == expected


async def test_a_cancel_during_the_snapshots_creation_ends_cancelled_without_snapshot(
    client: Client, job_id: str
) -> None:
    """Trap 1: the activity goes on after the cancel; trap 2: its result must not swallow the cancel."""
    await _cancel_during("create_snapshot", client, job_id)


async def test_a_cancel_during_the_transfer_ends_cancelled_without_snapshot(
    client: Client, job_id: str
) -> None:
    """Trap 2: the transfer ignores the cancel and returns its result."""
    await _cancel_during("transfer_disk", client, job_id)


async def test_a_cancel_during_the_removal_waits_for_the_removal(client: Client, job_id: str) -> None:
    """Trap 3: the workflow must not close while the removal still runs."""
    world = await _cancel_during("remove_snapshot", client, job_id)
    assert world.calls["write_index"] == 0


async def _cancel_during(step: str, client: Client, job_id: str) -> World:
    world = World(vm_count=1)
    begun: list[float] = []

    def slow(_arg: Any) -> None:
        begun.append(time.monotonic())
        wait_for_cancel(1.5)

    world.hooks[step] = slow
    async with running(client, world):
        handle = await start(client, job_id, REQUEST)
        await until(lambda: begun)
        await handle.signal("cancel")
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        child = await only_child(client, job_id)
        status = await status_at_the_end(child)
        removals = [run for run in (await past_of(client, child.id)).runs if run.step == "remove_snapshot"]
    # Trap 3 is a removal that runs on, and may well succeed, when its workflow has closed.
    assert [run.ended_at is not None for run in removals] == [True]
    assert isinstance(ended.value.cause, CancelledError)
    assert status is WorkflowExecutionStatus.CANCELED
    assert world.calls["create_snapshot"] == world.calls["remove_snapshot"] == 1
    assert not world.snapshots
    return world


async def test_cancel_vm_cancels_that_vm_alone(client: Client, job_id: str) -> None:
    world = World(vm_count=2)
    world.hooks["transfer_disk"] = lambda arg: wait_for_cancel(20) if arg.vm.name == "vm-00001" else None
    async with running(client, world):
        handle = await start(client, job_id, REQUEST)
        await until(lambda: world.calls["transfer_disk"] == 2)
        await handle.signal("cancel_vm", {"vm": "vm-00001"})
        report = JobReport.model_validate(await handle.result())
    assert {vm.name: str(vm.status) for vm in report.vms} == {
        "vm-00000": "Completed",
        "vm-00001": "Cancelled",
    }
    assert not world.snapshots


async def test_cancel_vm_takes_a_waiting_vm_out_of_the_queue(client: Client, job_id: str) -> None:
    world = World(vm_count=3, streams=1)
    world.hooks["transfer_disk"] = lambda arg: wait_for_cancel(2) if arg.vm.name == "vm-00000" else None
    async with running(client, world):
        handle = await start(client, job_id, REQUEST)
        await until(lambda: world.calls["transfer_disk"] == 1)
        answer = await handle.execute_update("request_cancel_vm", {"vm": "vm-00002"})
        report = JobReport.model_validate(await handle.result())
    assert "had not been started" in answer
    assert {vm.name: str(vm.status) for vm in report.vms} == {
        "vm-00000": "Completed",
        "vm-00001": "Completed",
        "vm-00002": "Cancelled",
    }
    assert world.calls["create_snapshot"] == 2


async def test_a_snapshot_is_not_held_longer_than_its_limit_whatever_the_vm_waits_for(
    client: Client, job_id: str
) -> None:
    """Here the MediaAgent does not come to an end, which no step of the access node would notice."""
    world = World(vm_count=1)
    world.options = world.options.model_copy(update={"max_hold_s": 2.0})
    world.hooks["open_backup"] = lambda _arg: wait_for_cancel(30)
    async with running(client, world):
        handle = await start(client, job_id, REQUEST)
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        status = await status_at_the_end(await only_child(client, job_id))
    assert isinstance(ended.value.cause, ApplicationError)
    report = JobReport.model_validate(ended.value.cause.details[0])
    assert status is WorkflowExecutionStatus.FAILED
    assert str(report.vms[0].status) == "Failed"
    assert "held for 2 s, which is max_hold_s" in report.vms[0].reason
    assert not world.snapshots
    assert world.calls["write_index"] == 0


async def test_a_node_that_is_busy_with_another_job_is_waited_for(client: Client, job_id: str) -> None:
    """One stream, two jobs: the second job's transfer is taken by nobody for longer than a dead node is given."""
    world = World(vm_count=1)
    world.options = VmOptions(node_dead_after_s=2.5)
    world.stream_slots = 1
    world.hooks["transfer_disk"] = lambda _arg: _works(4)
    async with running(client, world):
        handles = [await start(client, f"{job_id}-{number}", REQUEST) for number in (1, 2)]
        reports = [JobReport.model_validate(await handle.result()) for handle in handles]
    assert [report.totals.completed for report in reports] == [1, 1]
    assert world.calls["transfer_disk"] == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "takes an input"),
        ([REQUEST, REQUEST], "takes one input, got 2"),
        (["nightly"], "valid dictionary"),
        ([{}], "vm_group: Field required"),
        ([{"vm_group": "x", "vm_grop": 1}], "vm_grop: Extra inputs are not permitted"),
        ([{"vm_group": 7}], "vm_group: must be the name of a VM group"),
        ([{"continued": {}}], "continued.request"),
    ],
)
async def test_bad_input_fails_at_once_and_names_the_field(
    client: Client, job_id: str, args: list[Any], says: str
) -> None:
    """Trap: where `run` takes a model, or one input alone, such an input is tried again for ever."""
    async with running(client, World(vm_count=0)):
        with pytest.raises(WorkflowFailureError) as ended:
            await asyncio.wait_for((await start(client, job_id, *args)).result(), 10)
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "InvalidInput"
    assert says in cause.message


async def test_an_unknown_workflow_type_fails_at_once_and_lists_those_that_exist(
    client: Client, job_id: str
) -> None:
    """Trap: without the catch-all a mistyped type is tried again for ever."""
    async with running(client, World(vm_count=0)):
        handle = await client.start_workflow("BackupJobb", id=job_id, task_queue="commserve")
        with pytest.raises(WorkflowFailureError) as ended:
            await asyncio.wait_for(handle.result(), 10)
    assert "BackupJob, BackupVm, CopyBackups, PruneRepository, RemoveSnapshot, " in str(ended.value.cause)


async def test_wrong_and_unknown_signals_are_shown_and_harm_nothing(client: Client, job_id: str) -> None:
    """Traps: a badly typed signal is dropped, a handler that raises fails its task for ever, an unknown one is lost."""
    world = World(vm_count=1)
    world.hooks["transfer_disk"] = lambda _arg: time.sleep(2)
    async with running(client, world):
        handle = await start(client, job_id, REQUEST)
        await until(lambda: world.calls["transfer_disk"])
        await handle.signal("cancel_vm", 7)
        await handle.signal("cancel_vm", {"vm": "nobody"})
        await handle.signal("cancel_vm")
        await handle.signal("halt", "now")
        await handle.signal("vm_finished", {"nonsense": True})
        progress = await handle.query(BackupJob.progress)
        report = JobReport.model_validate(await handle.result())
    rejected = "\n".join(progress.rejected_signals)
    for part in (
        "valid dictionary",
        "no running or waiting VM is named 'nobody'",
        "takes one input",
        "signal 'halt'",
    ):
        assert part in rejected
    assert report.status == "Completed"


async def test_silent_nodes_are_reported_and_left_out(client: Client, job_id: str) -> None:
    world = World(vm_count=2, nodes=("n1", "n2"))
    async with running(client, world, silent=("n2",)):
        report = JobReport.model_validate(await (await start(client, job_id, REQUEST)).result())
    assert report.left_out == ["n2: does not answer"]
    assert {vm.node for vm in report.vms} == {"n1"}


@pytest.mark.parametrize("returns", [True, False])
async def test_a_filer_that_answers_no_node_is_waited_for_and_not_for_ever(
    client: Client, job_id: str, monkeypatch: pytest.MonkeyPatch, *, returns: bool
) -> None:
    monkeypatch.setattr(policies, "FILER_ASKED_EVERY", timedelta(seconds=1))
    monkeypatch.setattr(policies, "FILER_RETURNS_WITHIN", timedelta(seconds=30 if returns else 2))
    world = World(vm_count=1)
    world.filer_is_away = lambda: world.calls["prepare_node"] < (4 if returns else 1000)
    async with running(client, world, sandboxed=False):
        report = JobReport.model_validate(await (await start(client, job_id, REQUEST)).result())
    assert report.totals.completed == 1
    assert world.calls["prepare_node"] == (4 if returns else 3)
    assert world.calls["admit_nodes"] == 1


async def test_a_terminated_child_is_failed_and_its_snapshot_removed(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(20)
    async with running(client, world):
        handle = await start(client, job_id, REQUEST)
        await until(lambda: world.calls["transfer_disk"])
        await (await only_child(client, job_id)).terminate("killed by the test")
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        await until(lambda: not world.snapshots)
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    report = JobReport.model_validate(cause.details[0])
    assert report.totals.failed == 1
    assert "ended without a report" in report.vms[0].reason


async def test_a_failed_step_fails_the_vm_with_its_reason_and_removes_the_snapshot(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=2)

    def refuse(arg: Any) -> None:
        if arg.vm.name == "vm-00000":
            raise ApplicationError(
                "the export refuses uid 0", type="PermissionRefusedError", non_retryable=True
            )

    world.hooks["check_transport"] = refuse
    async with running(client, world):
        report = JobReport.model_validate(await (await start(client, job_id, REQUEST)).result())
    failed = next(vm for vm in report.vms if vm.name == "vm-00000")
    assert (failed.status, failed.reason) == ("Failed", "step 8: the export refuses uid 0")
    assert report.status == "Partial"
    assert not world.snapshots


async def test_a_vm_that_is_cancelled_before_there_is_a_plan_is_not_begun(
    client: Client, job_id: str
) -> None:
    """The signal comes while the VMs are still looked for: it is kept, and not refused for a name that nobody knows."""
    world, asked = World(vm_count=3), threading.Event()
    world.hooks["discover"] = lambda _arg: asked.wait(20)
    async with running(client, world):
        job = await start(client, job_id, REQUEST)
        await until(lambda: world.calls["discover"])
        await job.signal("cancel_vm", {"vm": "vm-00001"})
        told = await job.execute_update("request_cancel_vm", {"vm": "vm-00002"})
        await asyncio.sleep(0.3)
        asked.set()
        report = JobReport.model_validate(await job.result())
    assert {vm.name: str(vm.status) for vm in report.vms} == {
        "vm-00000": "Completed",
        "vm-00001": "Cancelled",
        "vm-00002": "Cancelled",
    }
    assert "only starting" in told
    assert world.calls["create_snapshot"] == 1
