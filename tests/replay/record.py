"""Records the histories that later versions must be able to replay: `python -m tests.replay.record [KIND …]`.

Run it when a new kind of history is worth keeping; never to make a failing replay pass: then `workflow.patched` is
missing. The steps are the trivial ones of tests/workflow, the workflows and the server are real.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError

from lab.temporal import TemporalServer
from safehaul.messages.vm import VmOptions
from tests.unit.media_backup import CHUNK, flip, new_repository, pack_paths
from tests.unit.test_copying import back_up
from tests.workflow.conftest import running
from tests.workflow.prune_workers import TrivialPrune, upkeep
from tests.workflow.sweep_site import SweepSite, owner, run_of, site_of, sweeping
from tests.workflow.upkeep_site import UpkeepSite
from tests.workflow.world import World, wait_for_cancel

HISTORIES = Path(__file__).parent / "histories"
REQUEST = {"vm_group": "test"}


async def _save(client: Client, workflow_id: str, name: str, run_id: str | None = None) -> None:
    history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    plain = _without_traces(json.loads(history.to_json()))
    (HISTORIES / f"{name}.json").write_text(json.dumps(plain, indent=2) + "\n")


def _without_traces(value: Any) -> Any:
    """A history without stack traces: they name files of the machine that recorded it, and no replay needs them."""
    if isinstance(value, dict):
        return {key: _without_traces(item) for key, item in value.items() if key != "stackTrace"}
    return [_without_traces(item) for item in value] if isinstance(value, list) else value


async def _children(client: Client, job: str) -> list[str]:
    for _ in range(100):
        found = [item.id async for item in client.list_workflows("WorkflowType = 'BackupVm'")]
        mine = [item for item in found if item.startswith(job + "/")]
        if mine:
            return mine
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{job} has no children")


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing happened in time")
        await asyncio.sleep(0.02)


async def _ended(handle: WorkflowHandle[Any, Any]) -> None:
    try:
        await handle.result()
    except WorkflowFailureError:
        return  # a cancelled or failed history is what was wanted


async def _job(client: Client, name: str, *args: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("BackupJob", args=list(args), id=name, task_queue="commserve")


async def _completed(client: Client) -> None:
    world = World(vm_count=5, nodes=("n1", "n2"), streams=1)
    async with running(client, world):
        await _ended(await _job(client, "completed", REQUEST))
        child = (await _children(client, "completed"))[0]
    await _save(client, "completed", "backup-job-completed")
    await _save(client, child, "backup-vm-completed")


async def _cancelled(client: Client, step: str) -> None:
    world, name = World(vm_count=1), f"cancelled-{step.replace('_', '-')}"
    world.hooks[step] = lambda _arg: wait_for_cancel(1.0)
    async with running(client, world):
        handle = await _job(client, name, REQUEST)
        await _until(lambda: world.calls[step] > 0)
        await handle.signal("cancel")
        await _ended(handle)
        child = (await _children(client, name))[0]
    await _save(client, name, f"backup-job-{name}")
    await _save(client, child, f"backup-vm-{name}")


async def _failed(client: Client) -> None:
    def refuse(_arg: Any) -> None:
        raise ApplicationError("the export refuses uid 0", type="PermissionRefusedError", non_retryable=True)

    world = World(vm_count=1)
    world.hooks["check_transport"] = refuse
    async with running(client, world):
        await _ended(await _job(client, "failed", REQUEST))
        child = (await _children(client, "failed"))[0]
    await _save(client, "failed", "backup-job-failed")
    await _save(client, child, "backup-vm-failed")


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
        await _ended(await _job(client, "stuck", REQUEST))
        child = (await _children(client, "stuck"))[0]
        found = [item.id async for item in client.list_workflows("WorkflowType = 'RemoveSnapshot'")]
        await client.get_workflow_handle(found[0]).result()
    await _save(client, child, "backup-vm-removal-handed-over")
    await _save(client, found[0], "remove-snapshot-completed")


async def _blocked_removal(client: Client) -> None:
    """A removal that is refused until somebody puts it right, of a VM that is cancelled by its own signal."""

    def refuse(_arg: Any) -> None:
        raise ApplicationError("no privilege", type="PermissionRefusedError", non_retryable=True)

    world = World(vm_count=1)
    world.hooks["remove_snapshot"] = refuse
    world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(20.0)
    async with running(client, world):
        handle = await _job(client, "blocked", REQUEST)
        await _until(lambda: world.calls["transfer_disk"] > 0)
        child = (await _children(client, "blocked"))[0]
        await client.get_workflow_handle(child).signal("cancel")
        await _ended(handle)
        await _until(lambda: world.calls["remove_snapshot"] > 1)
        removal = client.get_workflow_handle(f"remove-snapshot {next(iter(world.snapshots))}")
        world.hooks.clear()
        await removal.signal("retry_now")
        await removal.result()
    await _save(client, child, "backup-vm-cancelled-by-its-own-signal")
    await _save(client, removal.id, "remove-snapshot-blocked")


async def _crash_consistent(client: Client) -> None:
    def refuse(arg: Any) -> None:
        if arg.options.quiesce:
            raise ApplicationError("VSS failed", type="QuiesceRefusedError", non_retryable=True)

    world = World(vm_count=1)
    world.options = VmOptions(quiesce=True, quiesce_fallback=True)
    world.hooks["create_snapshot"] = refuse
    async with running(client, world):
        await _ended(await _job(client, "crash-consistent", REQUEST))
        child = (await _children(client, "crash-consistent"))[0]
    await _save(client, child, "backup-vm-crash-consistent")


async def _begun_anew(client: Client) -> None:
    """A VM that has moved while it was read, and is backed up from a second snapshot."""
    world, moves = World(vm_count=1), iter([True])

    def move(_arg: Any) -> None:
        if next(moves, False):
            raise ApplicationError("the VM has moved", type="VmMovedError", non_retryable=True)

    world.hooks["transfer_disk"] = move
    async with running(client, world):
        await _ended(await _job(client, "begun-anew", REQUEST))
        child = (await _children(client, "begun-anew"))[0]
    await _save(client, child, "backup-vm-begun-anew")


async def _unequal_nodes(client: Client) -> None:
    world = World(vm_count=6, nodes=("n1", "n2"), streams=2)
    world.power = {"n1": 1.0, "n2": 3.0}
    async with running(client, world):
        await _ended(await _job(client, "unequal-nodes", REQUEST))
    await _save(client, "unequal-nodes", "backup-job-unequal-nodes")


async def _refused(client: Client) -> None:
    async with running(client, World(vm_count=0)):
        await _ended(await _job(client, "refused", {"group": "x"}))
        await _ended(await _job(client, "empty", REQUEST))
    await _save(client, "refused", "backup-job-refused-input")
    await _save(client, "empty", "backup-job-empty")


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
        handle = await _job(client, "long", REQUEST)
        first = handle.first_execution_run_id
        await _ended(handle)
    await _save(client, "long", "backup-job-continues-as-new", first)
    await _save(client, "long", "backup-job-continued")


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
            await _until(lambda: world.calls["restore_disk"] > 0)
            await handle.cancel()
        await _ended(handle)
    await _save(client, workflow_id, workflow_id)


async def _restores(client: Client) -> None:
    for kind, name, request in (
        ("RestoreVm", "restore-vm", NEW_VM),
        ("RestoreVm", "restore-in-place", IN_PLACE),
        ("RestoreDisk", "restore-disk", DISK),
    ):
        for end in ("completed", "failed", "cancelled"):
            await _restore(client, kind, name, request, end=end)


async def _prune(client: Client, end: str) -> None:
    def hook(name: str) -> None:
        if name == "purge_forgotten" and end == "failed":
            raise ApplicationError("HTTP 403", type="PermissionRefusedError", non_retryable=True)
        if name == "purge_forgotten" and end == "cancelled":
            wait_for_cancel(1.0)

    steps, workflow_id = TrivialPrune(hook), f"prune-repository-{end}"
    async with upkeep(client, steps.all()):
        handle = await client.start_workflow(
            "PruneRepository", {"media_agent": "vault"}, id=workflow_id, task_queue="commserve"
        )
        if end == "cancelled":
            await _until(lambda: len(steps.called) == 3)
            await handle.signal("cancel")
        await _ended(handle)
    await _save(client, workflow_id, workflow_id)


async def _prunes(client: Client) -> None:
    for end in ("completed", "failed", "cancelled"):
        await _prune(client, end)


IMAGE = random.Random(7).randbytes(12 * CHUNK)


def _upkeep_site(name: str) -> UpkeepSite:
    home = Path(tempfile.mkdtemp())
    for folder in (home, home / "offsite"):
        folder.mkdir(exist_ok=True)
        new_repository(folder)
    site = UpkeepSite(home, "127.0.0.1:1", name)
    for day in (1, 2):
        back_up(site.repository(), f"run-{day}", IMAGE[day * 100 :], day)
    return site


async def _upkeep_of(
    client: Client, name: str, kind: str, site: UpkeepSite, agents: tuple[str, ...], request: dict[str, Any]
) -> str:
    """Run a workflow to its end; the id of its first run."""
    async with site.workers(client, agents=agents):
        handle = await client.start_workflow(kind, request, id=name, task_queue="commserve")
        if not agents:
            await asyncio.sleep(1)
            await handle.signal("cancel")
        await _ended(handle)
    await _save(client, name, name)
    assert handle.first_execution_run_id
    return handle.first_execution_run_id


async def _upkeep(client: Client) -> None:
    """Verifications and copies that complete, find damage, and are cancelled while no MediaAgent runs."""
    site = _upkeep_site("whole")
    verify = {"media_agent": site.vault, "mode": "full"}
    await _upkeep_of(client, "verify-repository-completed", "VerifyRepository", site, (site.vault,), verify)
    await _upkeep_of(client, "verify-repository-cancelled", "VerifyRepository", site, (), verify)
    copy = {"source": site.vault}
    await _upkeep_of(client, "copy-backups-completed", "CopyBackups", site, (site.offsite,), copy)
    await _upkeep_of(client, "copy-backups-cancelled", "CopyBackups", site, (), copy)
    site = _upkeep_site("damaged")
    flip(pack_paths(site.repository())[0], 200)
    verify, copy = {"media_agent": site.vault, "mode": "full"}, {"source": site.vault}
    await _upkeep_of(client, "verify-repository-damaged", "VerifyRepository", site, (site.vault,), verify)
    await _upkeep_of(client, "copy-backups-incomplete", "CopyBackups", site, (site.offsite,), copy)


async def _long_upkeep(client: Client) -> None:
    """The first run of a verification that continues as new, and the last."""
    site = _upkeep_site("long")
    request = {"media_agent": site.vault, "mode": "full"}
    name = "verify-repository-continued"
    first = await _upkeep_of(client, name, "VerifyRepository", site, (site.vault,), request)
    await _save(client, name, "verify-repository-continues-as-new", first)


async def _sweeps(client: Client) -> None:
    """Sweeps that remove an orphan, cannot look at one vCenter, and are cancelled while no access node answers."""
    site = await site_of(client)
    for name in ("one", "two"):
        await _orphan(client, site, name)
    site.add("in debt", consolidation_needed=True)
    async with sweeping(client, site):
        await _ended(await _sweep(client, "sweep-snapshots-completed"))
    await _orphan(client, site, "three")
    site.blind = True
    async with sweeping(client, site):
        await _ended(await _sweep(client, "sweep-snapshots-incomplete"))
    site.hooks["list_snapshots"] = lambda _arg: wait_for_cancel(5.0)
    async with sweeping(client, site):
        handle = await _sweep(client, "sweep-snapshots-cancelled")
        await _until(lambda: site.calls["list_snapshots"] > 2)
        await handle.signal("cancel")
        await _ended(handle)
    for name in ("completed", "incomplete", "cancelled"):
        await _save(client, f"sweep-snapshots-{name}", f"sweep-snapshots-{name}")


async def _orphan(client: Client, site: SweepSite, name: str) -> None:
    gone = await owner(client, f"owner of {name}")
    await gone.terminate()
    site.add(name, site.marker(name, gone.id, run_of(gone)))


async def _sweep(client: Client, workflow_id: str) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("SweepSnapshots", {}, id=workflow_id, task_queue="commserve")


RECORDINGS: dict[str, tuple[Callable[[Client], Awaitable[None]], int]] = {
    "jobs": (_jobs, 0),
    "long-jobs": (_long_jobs, 80),
    "restores": (_restores, 0),
    "prunes": (_prunes, 0),
    "upkeep": (_upkeep, 0),
    "long-upkeep": (_long_upkeep, 40),
    "sweeps": (_sweeps, 0),
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
