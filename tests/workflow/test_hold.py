"""While its snapshot is held a VM is looked after, whatever it waits for."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, CancelledError

from safehaul.messages.steps import HoldInput
from tests.workflow.conftest import running
from tests.workflow.test_snapshot_guard import only_child, report_of, start, until
from tests.workflow.world import World, wait_for_cancel
from workflows import policies


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "ROOM_LOOKED_AT_EVERY", timedelta(seconds=0.3))


def too_full(_arg: HoldInput) -> None:
    raise ApplicationError("datastore 'ds' is too full", type="PolicyError", non_retryable=True)


def stops_when_cancelled(_arg: Any) -> None:
    wait_for_cancel(30.0)
    raise CancelledError("the step has stopped")


@pytest.mark.parametrize("step", ["open_backup", "transfer_disk", "seal_backup"])
async def test_a_datastore_that_fills_up_while_a_vm_waits_costs_it_its_snapshot(
    client: Client, job_id: str, step: str
) -> None:
    """The MediaAgent does not get on, or no stream is free: nothing else of the VM looks at its datastores then."""
    world = World(vm_count=1)
    world.hooks[step] = stops_when_cancelled
    world.hooks["watch_snapshot"] = lambda arg: too_full(arg) if world.calls[step] else None
    async with running(client, world, sandboxed=False):
        report = await report_of(await start(client, job_id))
    assert report.status == "Failed"
    assert "datastore 'ds' is too full" in report.reason
    assert not world.snapshots
    assert world.calls["write_index"] == 0


async def test_a_look_that_fails_harms_nobody_and_the_next_one_comes(client: Client, job_id: str) -> None:
    world = World(vm_count=1)

    def away(_arg: Any) -> None:
        raise ApplicationError("vCenter is away", type="ConnectionLostError")

    world.hooks["watch_snapshot"] = away
    world.hooks["transfer_disk"] = lambda _arg: time.sleep(2.0)
    async with running(client, world, sandboxed=False):
        report = await report_of(await start(client, job_id))
    assert report.status == "Completed"
    assert world.calls["watch_snapshot"] >= 2


async def test_nobody_looks_any_more_when_the_snapshot_is_to_go(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.hooks["transfer_disk"] = lambda _arg: time.sleep(0.7)
    world.hooks["remove_snapshot"] = lambda _arg: time.sleep(1.5)
    async with running(client, world, sandboxed=False):
        job = await start(client, job_id)
        await until(lambda: world.calls["remove_snapshot"])
        await asyncio.sleep(0.2)
        before = world.calls["watch_snapshot"]
        report = await report_of(job)
        history = await (await only_child(client, job_id)).fetch_history()
    assert report.status == "Completed"
    assert before >= 1
    assert world.calls["watch_snapshot"] == before
    assert history.events[-1].HasField("workflow_execution_completed_event_attributes")


async def test_a_cancel_while_a_look_is_under_way_ends_the_vm(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.hooks["watch_snapshot"] = lambda _arg: wait_for_cancel(2.0)
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(30.0)
    async with running(client, world, sandboxed=False):
        job = await start(client, job_id)
        await until(lambda: world.calls["watch_snapshot"])
        await job.signal("cancel")
        with pytest.raises(Exception, match=r"cancel|Workflow"):
            await job.result()
    assert not world.snapshots
