"""A VM whose access node dies goes on on another one: under the same snapshot, in the same session, and once.

A node that is dead takes the steps that were under way with it, answers no ping, and is heard of no more.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from safehaul.messages.job import JobReport
from safehaul.messages.vm import VmOptions, VmReport
from tests.workflow.conftest import running
from tests.workflow.world import World, wait_for_cancel
from workflows import policies

DEAD_AFTER_S = 2.5
STEPS = (
    "inspect_vm",
    "create_snapshot",
    "check_transport",
    "download_files",
    "store_files",
    "transfer_disk",
    "finish_reading",
)
QUICK = ("create_snapshot", "transfer_disk")
"""Of these the quick tests are made: each takes ten seconds until the node is known dead and the VM is done."""
NODES = ("n1", "n2")


class Mortal:
    """A world in which a node can die, and come back. The steps that it had begun never end while the test runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead: set[str] = set()
        self.over = threading.Event()
        world.options = VmOptions(node_dead_after_s=DEAD_AFTER_S)
        for step in ("ping", "ask_for_vm", *STEPS, "remove_snapshot", "mark_completed"):
            world.hooks[step] = self.hang_if_dead

    def dies_in(self, step: str, which: Callable[[Any], bool] = lambda _arg: True) -> None:
        """The node on which `step` begins first dies in it."""
        dying = threading.Lock()

        def begin(arg: Any) -> None:
            if not self.dead and which(arg) and dying.acquire(blocking=False):
                self.dead.add(arg.vm.node)
            self.hang_if_dead(arg)

        self.world.hooks[step] = begin

    def hang_if_dead(self, _arg: Any) -> None:
        """Called by a step: does nothing on a dead node, for ever. Any node's step runs on a living one."""
        queue = activity.info().task_queue
        if any(queue in (policies.control_queue(node), policies.streams_queue(node)) for node in self.dead):
            self.over.wait(60)
            raise ApplicationError("this node is dead", non_retryable=True)


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    for name, seconds in {
        "LATE_CREATION_WITHIN": 1.0,
        "RECONCILE_EVERY": 1.0,
        "NODES_RETURN_WITHIN": 2.0,
        "ANOTHER_NODE_ASKED_EVERY": 1.0,
    }.items():
        monkeypatch.setattr(policies, name, timedelta(seconds=seconds))
    monkeypatch.setattr(policies, "PING", policies.pinging(DEAD_AFTER_S))
    monkeypatch.setattr(policies, "ASK", policies.pinging(DEAD_AFTER_S))
    made = Mortal(World(vm_count=1, nodes=NODES, streams=1))
    yield made
    made.over.set()


async def begin(client: Client, job_id: str) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        "BackupJob", {"vm_group": "test"}, id=job_id, task_queue=policies.COMMSERVE_QUEUE
    )


async def ended(handle: WorkflowHandle[Any, Any]) -> JobReport:
    try:
        return JobReport.model_validate(await handle.result())
    except WorkflowFailureError as error:
        if not isinstance(error.cause, ApplicationError):
            raise
        return JobReport.model_validate(error.cause.details[0])


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "step", [step if step in QUICK else pytest.param(step, marks=pytest.mark.slow) for step in STEPS]
)
async def test_a_vm_whose_node_dies_in_any_step_completes_on_another_one(
    client: Client, job_id: str, mortal: Mortal, step: str
) -> None:
    mortal.dies_in(step)
    async with running(client, mortal.world, sandboxed=False):
        report = await ended(await begin(client, job_id))
        mortal.over.set()
    (vm,) = report.vms
    (dead,) = mortal.dead
    assert (vm.status, vm.node) == ("Completed", next(node for node in NODES if node != dead)), vm.reason
    assert any(f"access node {dead} stopped answering" in line for line in vm.warnings)
    calls = mortal.world.calls
    assert calls["create_snapshot"] == (2 if step == "create_snapshot" else 1), "the snapshot is kept"
    assert calls["seal_backup"] == calls["write_index"] == 1
    assert calls["transfer_disk"] == (2 if step in ("transfer_disk", "finish_reading") else 1)
    assert not mortal.world.snapshots


@pytest.mark.slow
async def test_a_snapshot_that_the_dead_node_makes_yet_is_looked_for(
    client: Client, job_id: str, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node has made its own meanwhile: the removal waits until the dead one has lost its right to ask."""
    monkeypatch.setattr(policies, "LATE_CREATION_WITHIN", timedelta(seconds=12))
    mortal.dies_in("create_snapshot")
    async with running(client, mortal.world, sandboxed=False):
        await ended(await begin(client, job_id))
        mortal.over.set()
    assert mortal.world.calls["remove_snapshot"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("step", ["remove_snapshot", "mark_completed"])
async def test_what_any_node_can_do_does_not_wait_for_the_dead_one(
    client: Client, job_id: str, mortal: Mortal, step: str
) -> None:
    tries: list[str] = []

    def first_hangs(arg: Any) -> None:
        tries.append(arg.vm.node)
        if len(tries) == 1:
            mortal.dead.add(arg.vm.node)
        mortal.hang_if_dead(arg)

    mortal.world.hooks[step] = first_hangs
    async with running(client, mortal.world, sandboxed=False):
        report = await ended(await begin(client, job_id))
        mortal.over.set()
    assert (report.vms[0].status, len(tries)) == ("Completed", 2), report.vms[0].reason
    assert not mortal.world.snapshots


async def test_a_vm_without_a_node_comes_before_new_vms_and_takes_no_stream_twice(
    client: Client, job_id: str, mortal: Mortal
) -> None:
    """Two nodes of one stream, twelve VMs: when one node dies, the other one takes its VM next."""
    mortal.world.vm_count = 12
    # Not the coordinator: the fake of step 5 would plan everything anew for its successor.
    mortal.dies_in("transfer_disk", lambda arg: arg.vm.node == "n2")
    begun: list[str] = []
    reading: dict[str, str] = {}

    def inspect(arg: Any) -> None:
        mortal.hang_if_dead(arg)
        begun.append(arg.vm.name)

    def check(arg: Any) -> None:
        mortal.hang_if_dead(arg)
        reading[arg.vm.name] = arg.vm.node
        if list(reading.values()).count(arg.vm.node) > 1:
            raise ApplicationError(f"{reading}: one stream is used twice", non_retryable=True)

    mortal.world.hooks["inspect_vm"] = inspect
    mortal.world.hooks["check_transport"] = check
    mortal.world.hooks["seal_backup"] = lambda arg: reading.pop(arg.vm.name)
    async with running(client, mortal.world, sandboxed=False):
        report = await ended(await begin(client, job_id))
        mortal.over.set()
    assert [vm.status for vm in report.vms] == ["Completed"] * 12
    assert sorted(begun) == sorted({vm.name for vm in report.vms}), "each VM is begun once"
    moved = [vm for vm in report.vms if vm.warnings]
    assert len(moved) == 1
    assert [vm.name for vm in report.vms].index(moved[0].name) < 11, "it does not wait for all the others"
    assert report.left_out == ["n2: stopped answering"]
    assert not mortal.world.snapshots


@pytest.mark.slow
async def test_without_another_node_the_vm_fails_with_that_reason_and_its_snapshot_goes(
    client: Client, job_id: str, mortal: Mortal
) -> None:
    mortal.world.nodes = ("n1",)
    mortal.dies_in("transfer_disk")
    async with running(client, mortal.world, sandboxed=False):
        report = await ended(await begin(client, job_id))
        mortal.over.set()
    (vm,) = report.vms
    assert vm.status == "Failed"
    assert "access node n1 stopped answering, and no other one" in vm.reason
    assert not mortal.world.snapshots


async def test_a_node_that_comes_back_goes_on_with_its_vm(
    client: Client, job_id: str, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "NODES_RETURN_WITHIN", timedelta(minutes=1))
    mortal.world.nodes = ("n1",)
    mortal.dies_in("transfer_disk")
    async with running(client, mortal.world, sandboxed=False):
        handle = await begin(client, job_id)
        waits = ""
        deadline = time.monotonic() + 30
        while "another access node" not in waits and time.monotonic() < deadline:
            progress = await handle.query("progress")
            waits = progress["running"][0]["waits_for"] if progress["running"] else ""
            await asyncio.sleep(0.1)
        assert waits == "another access node: n1 does not answer"
        mortal.world.hooks.clear()
        mortal.dead.clear()
        report = await ended(handle)
        mortal.over.set()
    (vm,) = report.vms
    assert (vm.status, vm.node) == ("Completed", "n1")
    assert mortal.world.calls["create_snapshot"] == 1


@pytest.mark.slow
async def test_a_cancel_while_a_vm_waits_for_a_node_removes_its_snapshot(
    client: Client, job_id: str, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "NODES_RETURN_WITHIN", timedelta(minutes=5))
    mortal.world.nodes = ("n1",)
    mortal.dies_in("transfer_disk")
    async with running(client, mortal.world, sandboxed=False):
        handle = await begin(client, job_id)
        await until(lambda: mortal.world.calls["transfer_disk"])
        await asyncio.sleep(2 * DEAD_AFTER_S)
        await handle.signal("cancel")
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
        mortal.over.set()
    (report,) = [VmReport.model_validate(vm) for page in mortal.world.reports.values() for vm in page]
    assert report.status == "Cancelled"
    assert not mortal.world.snapshots


async def test_a_step_whose_heartbeats_stop_is_run_again_on_the_node_that_answers(
    client: Client, job_id: str, mortal: Mortal
) -> None:
    """A worker that was started again: its node lives, and the step is begun anew there at once."""
    tries: list[str] = []

    def hangs_once(arg: Any) -> None:
        tries.append(arg.vm.node)
        if len(tries) == 1:
            mortal.over.wait(60)

    mortal.world.hooks["transfer_disk"] = hangs_once
    async with running(client, mortal.world, sandboxed=False):
        report = await ended(await begin(client, job_id))
        mortal.over.set()
    assert report.vms[0].status == "Completed"
    assert len(set(tries)) == 1
    assert not report.vms[0].warnings


async def test_a_stray_answer_moves_nobody(client: Client, job_id: str, mortal: Mortal) -> None:
    """Another question's answer, a malformed one, and a question of a VM that does not run."""
    mortal.world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(2)
    async with running(client, mortal.world, sandboxed=False):
        handle = await begin(client, job_id)
        await until(lambda: mortal.world.calls["transfer_disk"])
        progress = await handle.query("progress")
        child = client.get_workflow_handle(progress["running"][0]["child_id"])
        await child.signal("go_on_at", {"node": "n9", "moves": 7})
        await child.signal("go_on_at", "n9")
        await handle.signal("node_lost", {"job_id": progress["job_id"], "child_id": "nobody", "node": "n1"})
        await handle.signal("node_lost", 7)
        report = await ended(handle)
    assert (report.vms[0].status, report.vms[0].warnings) == ("Completed", [])
