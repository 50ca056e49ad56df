"""Recorders of the repository's upkeep and of the sweep."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from tests.replay.recording import ended, save, until
from tests.unit.media_backup import CHUNK, flip, new_repository, pack_paths
from tests.unit.test_copying import back_up
from tests.workflow.prune_workers import TrivialPrune, upkeep
from tests.workflow.sweep_site import SweepSite, owner, run_of, site_of, sweeping
from tests.workflow.upkeep_site import UpkeepSite
from tests.workflow.world import wait_for_cancel


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
            await until(lambda: len(steps.called) == 3)
            await handle.signal("cancel")
        await ended(handle)
    await save(client, workflow_id, workflow_id)


async def prunes(client: Client) -> None:
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
        await ended(handle)
    await save(client, name, name)
    assert handle.first_execution_run_id
    return handle.first_execution_run_id


async def upkeep_runs(client: Client) -> None:
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


async def long_upkeep_runs(client: Client) -> None:
    """The first run of a verification that continues as new, and the last."""
    site = _upkeep_site("long")
    request = {"media_agent": site.vault, "mode": "full"}
    name = "verify-repository-continued"
    first = await _upkeep_of(client, name, "VerifyRepository", site, (site.vault,), request)
    await save(client, name, "verify-repository-continues-as-new", first)


async def sweeps(client: Client) -> None:
    """Sweeps that remove an orphan, cannot look at one vCenter, and are cancelled while no access node answers."""
    site = await site_of(client)
    for name in ("one", "two"):
        await _orphan(client, site, name)
    site.add("in debt", consolidation_needed=True)
    async with sweeping(client, site):
        await ended(await _sweep(client, "sweep-snapshots-completed"))
    await _orphan(client, site, "three")
    site.blind = True
    async with sweeping(client, site):
        await ended(await _sweep(client, "sweep-snapshots-incomplete"))
    site.hooks["list_snapshots"] = lambda _arg: wait_for_cancel(5.0)
    async with sweeping(client, site):
        handle = await _sweep(client, "sweep-snapshots-cancelled")
        await until(lambda: site.calls["list_snapshots"] > 2)
        await handle.signal("cancel")
        await ended(handle)
    for name in ("completed", "incomplete", "cancelled"):
        await save(client, f"sweep-snapshots-{name}", f"sweep-snapshots-{name}")


async def _orphan(client: Client, site: SweepSite, name: str) -> None:
    gone = await owner(client, f"owner of {name}")
    await gone.terminate()
    site.add(name, site.marker(name, gone.id, run_of(gone)))


async def _sweep(client: Client, workflow_id: str) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("SweepSnapshots", {}, id=workflow_id, task_queue="commserve")
