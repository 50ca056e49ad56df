"""RemoveSnapshot over a trivial step, on a real server: it never gives up, holds no slot, and says why it waits."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from safehaul.messages.steps import Removal, RemovalInput, RemoveSnapshotInput, SnapshotPlan, VmRef
from tests.workflow.conftest import running
from tests.workflow.world import World
from workflows import policies

SOON = timedelta(milliseconds=300)
VM = VmRef(
    job_id="job", vcenter="vc", vc_guid="vc.vm", name="web-1", moref="vm-1", node="n1", media_agent="ma"
)


@pytest.fixture
def name() -> str:
    return f"safehaul {uuid.uuid4()}"


async def start(client: Client, name: str, moref: str = "snapshot-1") -> WorkflowHandle[Any, Any]:
    removal = RemovalInput(vm=VM, plan=SnapshotPlan(name=name, description="marker"), moref=moref)
    return await client.start_workflow(
        "RemoveSnapshot",
        RemoveSnapshotInput(removal=removal, vm_group="nightly", reason="the disk is locked"),
        id=f"remove-snapshot {name}",
        task_queue="commserve",
    )


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


def refused(_arg: Any) -> None:
    """As `activities.errors` tells a PermanentError: the server does not try such a step again."""
    message = "no permission: give the account VirtualMachine.State.RemoveSnapshot on VirtualMachine vm-1"
    raise ApplicationError(message, type="PermissionRefusedError", non_retryable=True)


async def status(handle: WorkflowHandle[Any, Any]) -> str:
    found = (await handle.describe()).typed_search_attributes
    return str(found.get(policies.BACKUP_STATUS))


async def until_status(handle: WorkflowHandle[Any, Any], wanted: str) -> None:
    deadline = time.monotonic() + 10
    while await status(handle) != wanted:
        assert time.monotonic() < deadline, await status(handle)
        await asyncio.sleep(0.05)


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    """What the web UI shows."""
    metadata: Any = await handle.query("__temporal_workflow_metadata")
    return str(metadata.current_details)


async def test_a_refusal_is_tried_again_until_the_privilege_is_back(client: Client, name: str) -> None:
    """Permanent means: this call will not help itself. Somebody may: then `retry_now` does not wait."""
    world = World()
    world.snapshots[name] = "vc.vm"
    world.hooks["remove_snapshot"] = refused
    async with running(client, world):
        handle = await start(client, name)
        await until_status(handle, "RemovalBlocked")
        shown = await details(handle)
        assert "VirtualMachine.State.RemoveSnapshot" in shown
        assert "Tried 1 times" in shown
        await handle.signal("retry_now")
        await until(lambda: world.calls["remove_snapshot"] == 2)
        del world.hooks["remove_snapshot"]
        await handle.signal("retry_now", "whatever is given")
        removal = Removal.model_validate(await handle.result())
        assert await status(handle) == "Removed"
    assert removal.gone
    assert not world.snapshots
    assert world.calls["remove_snapshot"] == 3


async def test_between_two_tries_no_slot_is_held(client: Client, name: str) -> None:
    """The pause is a timer of the workflow: no activity is pending meanwhile."""
    world = World()

    def busy(arg: RemovalInput) -> None:
        assert arg.within_s == policies.CLEAN_UP_TRY.total_seconds()
        raise ApplicationError("the disk is locked", type="BusyError")

    world.hooks["remove_snapshot"] = busy
    async with running(client, world):
        handle = await start(client, name)
        await until(lambda: world.calls["remove_snapshot"] == 1)
        await until_pending(handle, 0)
        assert await status(handle) != "RemovalBlocked"
        world.hooks.clear()
        await handle.signal("retry_now")
        await handle.result()


async def until_pending(handle: WorkflowHandle[Any, Any], activities: int) -> None:
    deadline = time.monotonic() + 10
    while len((await handle.describe()).raw_description.pending_activities) != activities:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_unknown_signals_and_a_cancel_are_shown_and_stop_nothing(client: Client, name: str) -> None:
    world = World()
    world.snapshots[name] = "vc.vm"
    world.hooks["remove_snapshot"] = refused
    async with running(client, world):
        handle = await start(client, name)
        await until_status(handle, "RemovalBlocked")
        await handle.signal("stop", {"now": True})
        await handle.cancel()
        shown = await details(handle)
        assert world.calls["remove_snapshot"] == 1
        assert "'stop' is not known" in shown
        assert "asked to cancel" in shown
        world.hooks.clear()
        await handle.signal("retry_now")
        assert Removal.model_validate(await handle.result()).gone
    assert not world.snapshots


async def test_without_a_moref_it_looks_again_when_no_creation_can_come_any_more(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminated VM's creation asks vCenter after the first look has found nothing."""
    monkeypatch.setattr(policies, "LATE_CREATION_WITHIN", timedelta(seconds=2))
    world = World()
    async with running(client, world, sandboxed=False):
        handle = await start(client, name, moref="")
        await until(lambda: world.calls["remove_snapshot"] == 1)
        world.snapshots[name] = "vc.vm"
        assert Removal.model_validate(await handle.result()).gone
    assert world.calls["remove_snapshot"] == 2
    assert not world.snapshots


async def test_a_vm_that_nobody_can_find_is_looked_for_as_long_as_the_policy_says(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "VM_LOST_AFTER", timedelta(seconds=1))
    monkeypatch.setattr(policies, "CLEAN_UP_FIRST_PAUSE", SOON)
    world = World()
    world.removals = lambda _arg: Removal(gone=False, vm_gone=True, reason="it is in no inventory")
    async with running(client, world, sandboxed=False):
        handle = await start(client, name)
        removal = Removal.model_validate(await handle.result())
        assert await status(handle) == "VmLost"
    assert (removal.gone, removal.vm_gone, removal.reason) == (False, True, "it is in no inventory")
    assert world.calls["remove_snapshot"] >= 2


async def test_a_deleted_vm_is_an_end_of_its_own(client: Client, name: str) -> None:
    world = World()
    world.removals = lambda _arg: Removal(gone=True, vm_gone=True)
    async with running(client, world):
        handle = await start(client, name, moref="")
        assert Removal.model_validate(await handle.result()).vm_gone
        assert await status(handle) == "VmGone"
    assert world.calls["remove_snapshot"] == 1
