"""Records the histories that later versions must be able to replay: `python -m tests.replay.record [KIND …]`.

Run it when a new kind of history is worth keeping; never to make a failing replay pass: then `workflow.patched` is
missing. The steps are the trivial ones of tests/workflow, the workflows and the server are real.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError, CancelledError

from lab.temporal import TemporalServer
from safehaul.messages.vm import VmOptions
from tests.replay import record_upkeep
from tests.replay.recording import HISTORIES, REQUEST, children, ended, job, save, until
from tests.workflow.conftest import running
from tests.workflow.world import World, wait_for_cancel


async def _completed(client: Client) -> None:
    world = World(vm_count=5, nodes=("n1", "n2"), streams=1)
    async with running(client, world):
        await ended(await job(client, "completed", REQUEST))
        child = (await children(client, "completed"))[0]
    await save(client, "completed", "backup-job-completed")
    await save(client, child, "backup-vm-completed")


async def _cancelled(client: Client, step: str) -> None:
    world, name = World(vm_count=1), f"cancelled-{step.replace('_', '-')}"
    world.hooks[step] = lambda _arg: wait_for_cancel(1.0)
    async with running(client, world):
        handle = await job(client, name, REQUEST)
        await until(lambda: world.calls[step] > 0)
        await handle.signal("cancel")
        await ended(handle)
        child = (await children(client, name))[0]
    await save(client, name, f"backup-job-{name}")
    await save(client, child, f"backup-vm-{name}")


async def _failed(client: Client) -> None:
    def refuse(_arg: Any) -> None:
        raise ApplicationError("the export refuses uid 0", type="PermissionRefusedError", non_retryable=True)

    world = World(vm_count=1)
    world.hooks["check_transport"] = refuse
    async with running(client, world):
        await ended(await job(client, "failed", REQUEST))
        child = (await children(client, "failed"))[0]
    await save(client, "failed", "backup-job-failed")
    await save(client, child, "backup-vm-failed")


async def _stuck_removal(client: Client) -> None:
    calls = 0

    def stuck(_arg: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ApplicationError("the disk is locked", type="PermanentError", non_retryable=True)

    world = World(vm_count=1)
    world.hooks["remove_snapshot"] = stuck
    async with running(client, world):
        await ended(await job(client, "stuck", REQUEST))
        child = (await children(client, "stuck"))[0]
        found = [item.id async for item in client.list_workflows("WorkflowType = 'RemoveSnapshot'")]
        await client.get_workflow_handle(found[0]).result()
    await save(client, child, "backup-vm-removal-handed-over")
    await save(client, found[0], "remove-snapshot-completed")


async def _blocked_removal(client: Client) -> None:
    """A removal that is refused until somebody puts it right, of a VM that is cancelled by its own signal."""

    def refuse(_arg: Any) -> None:
        raise ApplicationError("no privilege", type="PermissionRefusedError", non_retryable=True)

    world = World(vm_count=1)
    world.hooks["remove_snapshot"] = refuse
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(20.0)
    async with running(client, world):
        handle = await job(client, "blocked", REQUEST)
        await until(lambda: world.calls["transfer_disk"] > 0)
        child = (await children(client, "blocked"))[0]
        await client.get_workflow_handle(child).signal("cancel")
        await ended(handle)
        await until(lambda: world.calls["remove_snapshot"] > 1)
        removal = client.get_workflow_handle(f"remove-snapshot {next(iter(world.snapshots))}")
        world.hooks.clear()
        await removal.signal("retry_now")
        await removal.result()
    await save(client, child, "backup-vm-cancelled-by-its-own-signal")
    await save(client, removal.id, "remove-snapshot-blocked")


async def _crash_consistent(client: Client) -> None:
    def refuse(arg: Any) -> None:
        if arg.options.quiesce:
            raise ApplicationError("VSS failed", type="QuiesceRefusedError", non_retryable=True)

    world = World(vm_count=1)
    world.options = VmOptions(quiesce=True, quiesce_fallback=True)
    world.hooks["create_snapshot"] = refuse
    async with running(client, world):
        await ended(await job(client, "crash-consistent", REQUEST))
        child = (await children(client, "crash-consistent"))[0]
    await save(client, child, "backup-vm-crash-consistent")


async def _begun_anew(client: Client) -> None:
    """A VM that has moved while it was read, and is backed up from a second snapshot."""
    world, moves = World(vm_count=1), iter([True])

    def move(_arg: Any) -> None:
        if next(moves, False):
            raise ApplicationError("the VM has moved", type="VmMovedError", non_retryable=True)

    world.hooks["transfer_disk"] = move
    async with running(client, world):
        await ended(await job(client, "begun-anew", REQUEST))
        child = (await children(client, "begun-anew"))[0]
    await save(client, child, "backup-vm-begun-anew")


async def _unequal_nodes(client: Client) -> None:
    world = World(vm_count=6, nodes=("n1", "n2"), streams=2)
    world.power = {"n1": 1.0, "n2": 3.0}
    async with running(client, world):
        await ended(await job(client, "unequal-nodes", REQUEST))
    await save(client, "unequal-nodes", "backup-job-unequal-nodes")


async def _refused(client: Client) -> None:
    async with running(client, World(vm_count=0)):
        await ended(await job(client, "refused", {"group": "x"}))
        await ended(await job(client, "empty", REQUEST))
    await save(client, "refused", "backup-job-refused-input")
    await save(client, "empty", "backup-job-empty")


async def _jobs(client: Client) -> None:
    await _completed(client)
    for step in ("create_snapshot", "transfer_disk", "remove_snapshot"):
        await _cancelled(client, step)
    await _failed(client)
    await _stuck_removal(client)
    await _blocked_removal(client)
    await _crash_consistent(client)
    await _begun_anew(client)
    await _unequal_nodes(client)
    await _refused(client)


async def _long_jobs(client: Client) -> None:
    """The first run of a job that continues as new, and the last."""
    world = World(vm_count=12, nodes=("n1", "n2"), streams=2)
    async with running(client, world):
        handle = await job(client, "long", REQUEST)
        first = handle.first_execution_run_id
        await ended(handle)
    await save(client, "long", "backup-job-continues-as-new", first)
    await save(client, "long", "backup-job-continued")


NEW_VM = {"backup": "vc.1/b1", "name": "web restored", "datastore": "ds", "power_on": True}
IN_PLACE = {"backup": "vc.1/b1", "in_place": True, "confirm": "web", "delete_old_disks": True}
DISK = {"backup": "vc.1/b1", "disk": "2000", "to_vm": "web"}


async def _restore(client: Client, kind: str, name: str, request: dict[str, Any], *, end: str) -> None:
    def refuse(_arg: Any) -> None:
        raise ApplicationError("vCenter refuses", type="UnsupportedError", non_retryable=True)

    world = World()
    if end == "failed":
        world.hooks["register_vm" if name == "restore-vm" else "switch_disks"] = refuse
    if end == "cancelled":
        world.hooks["restore_disk"] = lambda _arg: wait_for_cancel(1.0)
    workflow_id = f"{name}-{end}"
    async with running(client, world):
        handle = await client.start_workflow(kind, request, id=workflow_id, task_queue="commserve")
        if end == "cancelled":
            await until(lambda: world.calls["restore_disk"] > 0)
            await handle.cancel()
        await ended(handle)
    await save(client, workflow_id, workflow_id)


async def _restores(client: Client) -> None:
    for kind, name, request in (
        ("RestoreVm", "restore-vm", NEW_VM),
        ("RestoreVm", "restore-in-place", IN_PLACE),
        ("RestoreDisk", "restore-disk", DISK),
    ):
        for end in ("completed", "failed", "cancelled"):
            await _restore(client, kind, name, request, end=end)


def _stops(_arg: Any) -> None:
    wait_for_cancel(20.0)
    raise CancelledError("the step was asked to stop")


async def _paused(client: Client, name: str, hold_s: float, *, forget: bool = False) -> None:
    """A job whose VM is paused while it is read, with its snapshot held or removed, and resumed or cancelled then."""
    world = World(vm_count=2, streams=1)
    world.options = VmOptions(pause_hold_s=hold_s, removal_handover_s=20)
    world.hooks["transfer_disk"] = lambda arg: _stops(arg) if world.calls["transfer_disk"] == 1 else None
    async with running(client, world):
        handle = await job(client, name, REQUEST)
        await until(lambda: world.calls["transfer_disk"] > 0)
        child = (await children(client, name))[0]
        await handle.signal("pause")
        await asyncio.sleep(1.0)
        await (handle.signal("cancel", {"keep": False}) if forget else handle.signal("resume"))
        await ended(handle)
        await ended(client.get_workflow_handle(child))
    await save(client, name, f"backup-job-{name}")
    await save(client, child, f"backup-vm-{name}")


async def _pauses(client: Client) -> None:
    await _paused(client, "paused", 600)
    await _paused(client, "paused-too-long", 0)
    await _paused(client, "paused-and-forgotten", 600, forget=True)


RECORDINGS: dict[str, tuple[Callable[[Client], Awaitable[None]], int]] = {
    "jobs": (_jobs, 0),
    "long-jobs": (_long_jobs, 80),
    "pauses": (_pauses, 0),
    "restores": (_restores, 0),
    "prunes": (record_upkeep.prunes, 0),
    "upkeep": (record_upkeep.upkeep_runs, 0),
    "long-upkeep": (record_upkeep.long_upkeep_runs, 40),
    "sweeps": (record_upkeep.sweeps, 0),
}
"""Each kind's recorder, and after how many events its server suggests to continue as new (0: after its own number)."""


async def record(*wanted: str) -> None:
    """Record everything anew, or the histories of some kinds (`RECORDINGS`) only."""
    HISTORIES.mkdir(exist_ok=True)
    for name in wanted or RECORDINGS:
        recorder, events = RECORDINGS[name]
        server = TemporalServer(Path(tempfile.mkdtemp()), ui=False, suggest_new_run_events=events)
        server.start()
        try:
            await recorder(await Client.connect(server.address, data_converter=pydantic_data_converter))
        finally:
            server.stop()


if __name__ == "__main__":
    asyncio.run(record(*sys.argv[1:]))
