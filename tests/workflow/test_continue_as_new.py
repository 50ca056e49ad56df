"""A job that continues as new while its VMs run loses no report, counts each VM once, and can still be cancelled."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError, CancelledError

from lab.temporal import TemporalServer
from safehaul.messages.job import JobReport
from safehaul.messages.progress import JobProgress
from safehaul.messages.steps import Removal, RemovalInput, RemoveSnapshotInput, SnapshotPlan, VmRef
from tests.workflow.conftest import running
from tests.workflow.test_snapshot_guard import until
from tests.workflow.world import World, wait_for_cancel
from workflows import policies

REQUEST = {"vm_group": "test"}
EVENTS = 80


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server that suggests to continue as new after few events."""
    server = TemporalServer(tmp_path_factory.mktemp("impatient"), ui=False, suggest_new_run_events=EVENTS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(impatient: TemporalServer) -> Client:
    return await Client.connect(impatient.address, data_converter=pydantic_data_converter)


async def _runs(client: Client, job_id: str) -> int:
    await asyncio.sleep(1.0)  # visibility lags behind a little
    return len([item async for item in client.list_workflows(f"WorkflowId = '{job_id}'")])


async def _progress(job: WorkflowHandle[Any, Any]) -> JobProgress:
    return JobProgress.model_validate(await job.query("progress"))


async def test_every_vm_is_counted_once_over_several_runs(client: Client, job_id: str) -> None:
    world = World(vm_count=24, nodes=("n1", "n2"), streams=2)
    world.hooks["transfer_disk"] = lambda _arg: time.sleep(0.1)
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        report = JobReport.model_validate(await handle.result())
        runs = await _runs(client, job_id)
    assert runs >= 3
    assert (report.status, report.totals.vms, report.totals.completed) == ("Completed", 24, 24)
    assert len({vm.vc_guid for vm in report.vms}) == 24
    assert world.calls["write_index"] == world.calls["create_snapshot"] == 24
    assert not world.snapshots


async def test_a_group_that_was_given_whole_goes_along_for_a_successor_to_plan_by(
    client: Client, job_id: str
) -> None:
    group = {"name": "adhoc", "vcenter": "vc", "media_agent": "ma", "rules": [{"tag": "gold"}]}
    async with running(client, World(vm_count=12, nodes=("n1", "n2"), streams=2)):
        handle = await client.start_workflow(
            "BackupJob", {"vm_group": group}, id=job_id, task_queue="commserve"
        )
        report = JobReport.model_validate(await handle.result())
        history = await client.get_workflow_handle(job_id).fetch_history()
    assert (report.status, report.vm_group) == ("Completed", "adhoc")
    (given,) = history.events[0].workflow_execution_started_event_attributes.input.payloads
    assert json.loads(given.data)["continued"]["request"] == {"vm_group": group}


async def test_a_cancel_after_a_continue_as_new_still_ends_everything(client: Client, job_id: str) -> None:
    world = World(vm_count=40, nodes=("n1",), streams=2)

    def slow_at_last(arg: Any) -> None:
        if arg.vm.name >= "vm-00014":
            wait_for_cancel(30)

    world.hooks["transfer_disk"] = slow_at_last
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        deadline = time.monotonic() + 40
        while world.calls["transfer_disk"] < 16:
            assert time.monotonic() < deadline, world.calls
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        await client.get_workflow_handle(job_id).signal("cancel")
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        runs = await _runs(client, job_id)
    assert runs >= 2
    assert isinstance(ended.value.cause, CancelledError)
    assert not world.snapshots
    assert world.calls["create_snapshot"] == world.calls["remove_snapshot"] == 16


@pytest.mark.slow
async def test_a_vm_of_an_earlier_run_that_is_terminated_loses_its_snapshot_within_a_minute(
    client: Client, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing tells this run of the job of its end: the job has to look, at its real intervals here."""
    world, go_on = World(vm_count=2), threading.Event()
    world.hooks["transfer_disk"] = lambda _arg: go_on.wait(120)
    async with running(client, world):
        job = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        await until(lambda: world.calls["transfer_disk"] == 2)
        while await _runs(client, job_id) < 2:
            for _ in range(EVENTS // 8):
                await job.signal("a signal that it does not know")
        child = next(vm.child_id for vm in (await _progress(job)).running if vm.name == "vm-00000")
        begun = time.monotonic()
        await client.get_workflow_handle(child).terminate("killed by the test")
        await until(lambda: "vc.00000" not in world.snapshots.values(), 60)
        took = time.monotonic() - begun
        go_on.set()
        report = JobReport.model_validate(await job.result())
    with capsys.disabled():
        print(f"\nsnapshot of a terminated VM gone after {took:.1f} s")
    assert {vm.name: str(vm.status) for vm in report.vms} == {"vm-00000": "Failed", "vm-00001": "Completed"}
    assert not world.snapshots


@pytest.mark.slow
async def test_a_removal_that_never_ends_keeps_its_history_short_and_its_count(
    client: Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "CLEAN_UP_FIRST_PAUSE", timedelta(milliseconds=100))
    monkeypatch.setattr(policies, "CLEAN_UP_LAST_PAUSE", timedelta(milliseconds=100))
    world, tries = World(), 20
    name = f"safehaul {job_id}"
    world.snapshots[name] = "vc.vm"

    def refuse(_arg: Any) -> None:
        if world.calls["remove_snapshot"] < tries:
            raise ApplicationError("no permission", type="PermissionRefusedError", non_retryable=True)

    world.hooks["remove_snapshot"] = refuse
    vm = VmRef(
        job_id="j", vcenter="vc", vc_guid="vc.vm", name="web-1", moref="vm-1", node="n1", media_agent="ma"
    )
    removal = RemovalInput(vm=vm, plan=SnapshotPlan(name=name, description="marker"), moref="snapshot-1")
    async with running(client, world, sandboxed=False):
        handle = await client.start_workflow(
            "RemoveSnapshot", RemoveSnapshotInput(removal=removal), id=job_id, task_queue="commserve"
        )
        assert Removal.model_validate(await handle.result()).gone
        last = client.get_workflow_handle(job_id)
        shown: Any = await last.query("__temporal_workflow_metadata")
        found = (await last.describe()).typed_search_attributes
        runs = await _runs(client, job_id)
    assert runs >= 2
    assert f"Tried {tries} times" in shown.current_details
    assert found.get(policies.BACKUP_STATUS) == "Removed"
    assert not world.snapshots
