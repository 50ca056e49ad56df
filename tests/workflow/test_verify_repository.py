"""VerifyRepository over a real repository, on a real server: loud about damage, goes on where a kill left it."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError

from lab.temporal import TemporalServer
from safehaul.media.verified import latest_report, read_findings
from safehaul.messages.verify import VerifyReport
from tests.unit.media_backup import CHUNK, back_up, flip, new_repository, pack_paths
from tests.workflow.upkeep_site import UpkeepSite
from workflows import policies

IMAGE = random.Random(7).randbytes(30 * CHUNK)


@pytest.fixture
def site(tmp_path: Path, temporal: TemporalServer) -> UpkeepSite:
    back_up(new_repository(tmp_path), "run-1", IMAGE)
    return UpkeepSite(tmp_path, temporal.address)


async def start(client: Client, site: UpkeepSite, **request: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        "VerifyRepository",
        {"media_agent": site.vault, **request},
        id=f"verify-{uuid.uuid4().hex[:8]}",
        task_queue="commserve",
    )


async def status(handle: WorkflowHandle[Any, Any]) -> str:
    return str((await handle.describe()).typed_search_attributes.get(policies.BACKUP_STATUS))


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    metadata: Any = await handle.query("__temporal_workflow_metadata")
    return str(metadata.current_details)


async def test_a_sound_repository_completes(client: Client, site: UpkeepSite) -> None:
    async with site.workers(client, agents=(site.vault,)):
        handle = await start(client, site, mode="full")
        report = VerifyReport.model_validate(await handle.result())
        assert report.sound
        assert report.bytes_read == report.bytes_total > 0
        assert await status(handle) == "Sound"
        assert "**Sound**: 1 backups" in await details(handle)
        assert (await handle.query("progress"))["bytes_read"] == report.bytes_read
    # A part for each pack: nothing that grows with the repository stands in a part's input or result.
    history = await handle.fetch_history()
    assert len(history.events) > 6 * 10
    assert latest_report(site.repository()) == report


async def test_damage_fails_it_and_names_the_backups(client: Client, site: UpkeepSite) -> None:
    flip(pack_paths(site.repository())[0], 200)
    async with site.workers(client, agents=(site.vault,)):
        handle = await start(client, site, mode="full")
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        cause = failed.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "DamageFound"
        assert "1 backups of web 1 have lost" in cause.message
        report = VerifyReport.model_validate(cause.details[0])
        assert [item.vm_name for item in report.damaged_backups] == ["web 1"]
        assert await status(handle) == "Damaged"
        assert "DAMAGED" in await details(handle)
        # It was noted: what comes next does not rely on the pack, and a sample says so again.
        again = await start(client, site, sample_percent=1)
        with pytest.raises(WorkflowFailureError):
            await again.result()
        healing = site.repository()
        back_up(healing, "run-2", IMAGE, "20260102T000000Z")
        healed = VerifyReport.model_validate(await (await start(client, site, sample_percent=1)).result())
        assert healed.leftovers == report.damaged_packs


async def test_a_long_one_continues_as_new(
    client: Client, site: UpkeepSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "HISTORY_EVENTS_PER_RUN", 30)
    async with site.workers(client, agents=(site.vault,), sandboxed=False):
        handle = await start(client, site, mode="full")
        report = VerifyReport.model_validate(await handle.result())
        last = await client.get_workflow_handle(handle.id).describe()
        assert last.run_id != handle.first_execution_run_id
        assert report.bytes_read == report.bytes_total
        assert report.packs == len(pack_paths(site.repository())), "no pack was read twice"


async def test_a_cancel_by_signal_ends_it_as_cancelled(client: Client, site: UpkeepSite) -> None:
    async with site.workers(client):
        handle = await start(client, site, mode="full")
        # No MediaAgent runs: it waits, and must end all the same.
        await asyncio.sleep(0.5)
        await handle.signal("no-such-signal")
        await handle.signal("cancel", "whatever")
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), 20)
        assert isinstance(failed.value.cause, CancelledError)
        assert await status(handle) == "VerifyCancelled"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"media_agent": "no-such"}, "no-such"),
        ({"mode": "full", "sample_percent": 10}, "sample_percent goes with mode sample"),
    ],
)
async def test_a_wrong_input_fails_at_once(
    client: Client, site: UpkeepSite, request_: dict[str, Any], message: str
) -> None:
    async with site.workers(client):
        handle = await start(client, site, **request_)
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), 20)
        cause = failed.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "InvalidInput"
        assert message in cause.message


@pytest.mark.slow
async def test_a_media_agent_that_is_killed_goes_on_where_it_was(
    client: Client, temporal: TemporalServer, tmp_path: Path
) -> None:
    """The real program, killed when it has recorded its first packs; the next one reads the others, and only those."""
    back_up(new_repository(tmp_path), "run-1", random.Random(7).randbytes(15_000 * CHUNK))
    site = UpkeepSite(tmp_path, temporal.address)
    packs = len(pack_paths(site.repository()))
    assert packs > 3000
    agent = site.media_agent(site.vault)
    try:
        async with site.workers(client):
            handle = await start(client, site, mode="full")
            deadline = time.monotonic() + 120
            while not list((tmp_path / "repository" / "verified").glob("*/0*")):
                assert time.monotonic() < deadline, agent.log_text()
                await asyncio.sleep(0.01)
            # The first findings are those of the lists; the packs' follow after 2,000 of them.
            while not any(part.sound for part in _findings(site)):
                assert time.monotonic() < deadline, agent.log_text()
                await asyncio.sleep(0.01)
            agent.kill()
            before = sum(len(part.sound) // 64 for part in _findings(site))
            assert 0 < before < packs, "it was killed in the middle"
            agent = site.media_agent(site.vault)
            report = VerifyReport.model_validate(await asyncio.wait_for(handle.result(), 180))
            assert report.sound
            sound = "".join(part.sound for part in _findings(site))
            ids = [sound[at : at + 64] for at in range(0, len(sound), 64)]
            assert len(ids) == len(set(ids)) == packs, "each pack once, the first ones not again"
    finally:
        agent.kill()


def _findings(site: UpkeepSite) -> list[Any]:
    repository = site.repository()
    runs = {found.name.split("/")[1] for found in repository.store.list("verified/")}
    found = [part for run in runs for part in read_findings(repository, run)]
    repository.close()
    return found
