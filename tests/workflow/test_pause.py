"""A paused job gives nothing out and reads nothing; a snapshot is held for it a while only, and never for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from lab.temporal import TemporalServer
from safehaul.messages.job import JobReport
from safehaul.messages.progress import JobProgress
from safehaul.messages.vm import VmOptions, VmProgressDetail
from tests.workflow.conftest import running
from tests.workflow.test_long_job import EVENTS, impatient, next_run, run_of, started
from tests.workflow.test_snapshot_guard import only_child, report_of, start, status_at_the_end, until
from tests.workflow.world import World, first_call, ignores, stops, wait_for_cancel
from workflows import policies
from workflows.backup_job import BackupJob
from workflows.backup_vm import BackupVm

__all__ = ["impatient"]

AT_ONCE = VmOptions(pause_hold_s=0, removal_handover_s=20)
SOON = VmOptions(pause_hold_s=0.5, removal_handover_s=20)


async def progress_of(job: WorkflowHandle[Any, Any]) -> JobProgress:
    return JobProgress.model_validate(await job.query(BackupJob.progress))


async def vm_of(child: WorkflowHandle[Any, Any]) -> VmProgressDetail:
    return VmProgressDetail.model_validate(await child.query(BackupVm.progress))


async def details_of(handle: WorkflowHandle[Any, Any]) -> str:
    shown: Any = await handle.query("__temporal_workflow_metadata")
    return str(shown.current_details)


async def shows(handle: WorkflowHandle[Any, Any], text: str) -> None:
    deadline = time.monotonic() + 15
    while text not in (now := await details_of(handle)):
        assert time.monotonic() < deadline, now
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("step", "body"),
    [
        ("transfer_disk", ignores),
        *(
            pytest.param(step, body, marks=pytest.mark.slow)
            for step, body in [
                *(("check_transport", stops), ("check_transport", ignores), ("open_backup", stops)),
                *(("open_backup", ignores), ("transfer_disk", stops)),
            ]
        ),
    ],
)
async def test_a_paused_vm_goes_on_in_its_session_under_the_same_snapshot(
    client: Client, job_id: str, step: str, body: Callable[[Any], None]
) -> None:
    """Trap 2 once more: a step that ignores its cancel must not be followed by the next one while all is paused."""
    world = World(vm_count=2, streams=1)
    sessions: set[str] = set()

    def noted(arg: Any) -> None:
        sessions.add(arg.session.session_id)
        if step == "transfer_disk" and world.calls[step] == 1:
            body(arg)

    first_call(world, step, body)
    world.hooks["transfer_disk"] = noted
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls[step])
        child = await only_child(client, job_id)
        await job.signal("pause")
        await shows(child, "the snapshot is held until")
        assert "Paused since" in await details_of(child)
        assert (await vm_of(child)).paused_since is not None
        done = world.calls.copy()
        await asyncio.sleep(0.5)
        assert world.calls == done, "nothing is done while all is paused"
        assert len(world.snapshots) == 1, "the other VM has not been given out"
        told = await progress_of(job)
        assert told.paused_since is not None
        assert (told.waiting, len(told.running)) == (1, 1)
        assert "paused since" in told.stage
        assert "Paused since" in await details_of(job)
        await job.signal("resume")
        report = JobReport.model_validate(await job.result())
    assert [str(vm.status) for vm in report.vms] == ["Completed", "Completed"]
    assert report.vms[0].warnings == []
    assert world.calls["create_snapshot"] == world.calls["remove_snapshot"] == 2
    assert len(sessions) == 2, "one session for each VM"
    assert not world.snapshots


@pytest.mark.parametrize("options", [pytest.param(AT_ONCE, marks=pytest.mark.slow), SOON])
async def test_a_pause_that_lasts_costs_the_snapshot_and_the_vm_begins_anew(
    client: Client, job_id: str, options: VmOptions
) -> None:
    world = World(vm_count=1)
    world.options = options
    first_call(world, "transfer_disk", stops)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        child = await only_child(client, job_id)
        await job.signal("pause")
        await until(lambda: world.calls["remove_snapshot"])
        await shows(child, "no snapshot is held")
        assert not world.snapshots
        assert len((await progress_of(job)).running) == 1, "the VM stays in the job"
        assert world.calls["create_snapshot"] == 1
        await job.signal("resume")
        report = JobReport.model_validate(await job.result())
    (vm,) = report.vms
    assert (vm.status, report.status) == ("Completed", "Completed")
    assert "the pause lasts longer than a snapshot is held for it" in vm.warnings[0]
    assert world.calls["create_snapshot"] == world.calls["remove_snapshot"] == 2
    assert world.calls["inspect_vm"] >= 2, "the VM is looked at anew"
    assert not world.snapshots


@pytest.mark.slow
async def test_max_hold_ends_a_pause_first_and_does_not_fail_the_vm(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.options = VmOptions(max_hold_s=3, removal_handover_s=20)
    first_call(world, "transfer_disk", stops)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        await job.signal("pause")
        await until(lambda: world.calls["remove_snapshot"], 6)
        await asyncio.sleep(1.5)  # max_hold_s itself passes
        await job.signal("resume")
        vm = await report_of(job)
    assert vm.status == "Completed", vm.reason
    assert not world.snapshots


@pytest.mark.slow
async def test_a_pause_before_the_snapshot_makes_none_and_looks_again_afterwards(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=1)
    first_call(world, "inspect_vm", lambda _arg: time.sleep(1.0))
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["inspect_vm"])
        child = await only_child(client, job_id)
        await child.signal("pause", {"for": "a while"})
        await shows(child, "no snapshot is held")
        assert world.calls["create_snapshot"] == 0
        await child.signal("resume")
        vm = await report_of(job)
    assert vm.status == "Completed"
    assert world.calls["inspect_vm"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("step", ["seal_backup", "remove_snapshot", "write_index"])
async def test_what_completes_a_backup_is_not_paused(client: Client, job_id: str, step: str) -> None:
    world = World(vm_count=2, streams=1)
    first_call(world, step, lambda _arg: time.sleep(0.7))
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls[step])
        await job.signal("pause")
        await until(lambda: world.calls["ask_for_vm"])
        await asyncio.sleep(0.5)
        told = await progress_of(job)
        assert [str(vm.status) for vm in told.recent] == ["Completed"]
        assert (told.waiting, len(told.running)) == (1, 0)
        await job.signal("resume")
        report = JobReport.model_validate(await job.result())
    assert [str(vm.status) for vm in report.vms] == ["Completed", "Completed"]
    assert world.calls["create_snapshot"] == 2


@pytest.mark.slow
async def test_a_job_that_is_paused_before_it_has_a_plan_plans_and_gives_nothing_out(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=2)
    async with running(client, world):
        job = await client.start_workflow(
            "BackupJob", {"vm_group": "test"}, id=job_id, task_queue="commserve", start_signal="pause"
        )
        await until(lambda: world.calls["load_page"])
        await asyncio.sleep(0.5)
        told = await progress_of(job)
        assert (told.waiting, len(told.running)) == (2, 0)
        assert world.calls["inspect_vm"] == 0
        assert "goes on" in await job.execute_update("request_resume")
        report = JobReport.model_validate(await job.result())
    assert report.totals.completed == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [VmOptions(removal_handover_s=20), AT_ONCE])
@pytest.mark.parametrize("how", ["job", "vm"])
async def test_a_cancel_ends_a_paused_vm_at_once(
    client: Client, job_id: str, options: VmOptions, how: str
) -> None:
    """With its snapshot held, and when it is gone already."""
    world = World(vm_count=1)
    world.options = options
    first_call(world, "transfer_disk", stops)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        child = await only_child(client, job_id)
        await job.signal("pause")
        await shows(child, "no snapshot is held" if options is AT_ONCE else "the snapshot is held until")
        begun = time.monotonic()
        await (job if how == "job" else child).signal("cancel")
        if how == "job":
            with pytest.raises(Exception, match=r"cancel|Workflow"):
                await job.result()
            with pytest.raises(Exception, match=r"cancel|Workflow"):
                await child.result()
        else:
            vm = await report_of(job)
            assert (vm.status, vm.reason) == ("Cancelled", "cancelled")
        assert time.monotonic() - begun < 5
        assert await status_at_the_end(child) is WorkflowExecutionStatus.CANCELED
    assert world.calls["create_snapshot"] == 1
    assert not world.snapshots


@pytest.mark.slow
async def test_a_datastore_that_fills_up_meanwhile_costs_a_paused_vm_its_snapshot(
    client: Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "ROOM_LOOKED_AT_EVERY", timedelta(seconds=0.3))
    world, full = World(vm_count=1), [False]

    def look(_arg: Any) -> None:
        if full[0]:
            raise ApplicationError("datastore 'ds' is too full", type="PolicyError", non_retryable=True)

    world.hooks["watch_snapshot"] = look
    first_call(world, "transfer_disk", stops)
    async with running(client, world, sandboxed=False):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        child = await only_child(client, job_id)
        await child.signal("pause")
        await shows(child, "the snapshot is held until")
        full[0] = True
        vm = await report_of(job)
    assert vm.status == "Failed"
    assert "datastore 'ds' is too full" in vm.reason
    assert not world.snapshots


@pytest.mark.slow
async def test_a_failure_that_comes_with_the_pause_is_not_hidden_by_it(client: Client, job_id: str) -> None:
    """The step was told to stop, and ends with an error that would come again."""

    def fails(_arg: Any) -> None:
        wait_for_cancel()
        raise ApplicationError("the disk is damaged", type="IntegrityError", non_retryable=True)

    world = World(vm_count=1)
    first_call(world, "transfer_disk", fails)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        await job.signal("pause")
        vm = await report_of(job)
    assert (vm.status, vm.reason) == ("Failed", "step 11: the disk is damaged")
    assert not world.snapshots


@pytest.mark.slow
async def test_a_try_that_fails_while_it_stops_is_done_again_after_the_pause(
    client: Client, job_id: str
) -> None:
    def fails(_arg: Any) -> None:
        wait_for_cancel()
        raise ApplicationError("the filer is busy", type="BusyError")

    world = World(vm_count=1)
    first_call(world, "transfer_disk", fails)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        child = await only_child(client, job_id)
        await job.signal("pause")
        await shows(child, "the snapshot is held until")
        await job.signal("resume")
        vm = await report_of(job)
    assert vm.status == "Completed", vm.reason
    assert world.calls["create_snapshot"] == 1


@pytest.mark.slow
async def test_quick_words_one_after_the_other_leave_what_the_last_one_says(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=2, streams=1)
    first_call(world, "transfer_disk", stops)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        for word in ("pause", "pause", "resume", "pause", "resume", "resume", "pause"):
            await job.signal(word, "whatever comes with it")
        child = await only_child(client, job_id)
        await shows(child, "the snapshot is held until")
        for word in ("resume", "pause", "resume"):
            await job.signal(word)
        report = JobReport.model_validate(await job.result())
    assert report.totals.completed == 2
    assert world.calls["create_snapshot"] == world.calls["remove_snapshot"] == 2


@pytest.mark.slow
async def test_a_job_that_is_cancelled_cannot_be_paused_and_says_so(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.hooks["remove_snapshot"] = lambda _arg: time.sleep(1.0)
    first_call(world, "transfer_disk", stops)
    async with running(client, world):
        job = await start(client, job_id)
        await until(lambda: world.calls["transfer_disk"])
        assert "1 running VMs stop reading" in await job.execute_update("request_pause")
        await job.signal("cancel")
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await job.execute_update("request_pause")
        assert "it cannot be paused" in str(refused.value.cause)
        with pytest.raises(Exception, match=r"cancel|Workflow"):
            await job.result()
    assert not world.snapshots


@pytest.mark.slow
async def test_a_pause_goes_along_into_the_jobs_next_run(impatient: TemporalServer, job_id: str) -> None:
    world = World(vm_count=3, streams=1)
    first_call(world, "transfer_disk", stops)
    async with started(impatient, job_id, world) as job:
        await until(lambda: world.calls["transfer_disk"])
        await job.signal("pause")
        since = (await progress_of(job)).paused_since
        before = await run_of(job)
        for _ in range(EVENTS):
            await job.signal("no_such_signal")
        await next_run(job, before)
        told = await progress_of(job)
        assert since is not None
        assert told.paused_since == since
        assert (told.waiting, len(told.running)) == (2, 1)
        assert world.calls["create_snapshot"] == 1
        await job.signal("resume")
        report = JobReport.model_validate(await job.result())
    assert report.totals.completed == 3
    assert world.calls["create_snapshot"] == 3
    assert not world.snapshots
