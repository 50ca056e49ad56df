"""CopyBackups between two real repositories, on a real server: all that is missing, damage apart, kills survived."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    ScheduleActionExecutionStartWorkflow,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import ApplicationError

from lab.processes import tool
from lab.temporal import TemporalServer
from safehaul.catalog.catalog import Catalog
from safehaul.config.loader import load
from safehaul.media.copying import BackupCopier, Copied
from safehaul.media.forgotten import forget
from safehaul.media.manifest import BackupRef, list_backups
from safehaul.media.store import open_deleting_store
from safehaul.messages.copy import CopyReport
from tests.unit.media_backup import CHUNK, flip, new_repository, pack_paths, restore
from tests.unit.test_copying import back_up, check_copy
from tests.workflow.upkeep_site import UpkeepSite
from workers.cli.schedules import set_up
from workflows import policies

IMAGE = random.Random(7).randbytes(12 * CHUNK)


@pytest.fixture
def site(tmp_path: Path, temporal: TemporalServer) -> UpkeepSite:
    new_repository(tmp_path)
    (tmp_path / "offsite").mkdir()
    new_repository(tmp_path / "offsite")
    return UpkeepSite(tmp_path, temporal.address)


async def start(client: Client, site: UpkeepSite, **request: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        "CopyBackups",
        {"source": site.vault, **request},
        id=f"copy-{uuid.uuid4().hex[:8]}",
        task_queue="commserve",
    )


async def status(handle: WorkflowHandle[Any, Any]) -> str:
    return str((await handle.describe()).typed_search_attributes.get(policies.BACKUP_STATUS))


def backed_up(site: UpkeepSite, days: int) -> list[BackupRef]:
    source = site.repository()
    return [back_up(source, f"run-{day}", IMAGE[day * 100 :], day) for day in range(1, days + 1)]


async def test_what_is_missing_is_copied_and_listed_under_the_targets_name(
    client: Client, site: UpkeepSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.upkeep_copy.PAGE", 2)
    monkeypatch.setattr(policies, "HISTORY_EVENTS_PER_RUN", 20)
    refs = backed_up(site, 5)
    async with site.workers(client, agents=(site.offsite,), sandboxed=False):
        handle = await start(client, site)
        report = CopyReport.model_validate(await handle.result())
        assert (report.copied, report.failed) == (5, 0)
        assert report.target == site.offsite
        assert (
            await client.get_workflow_handle(handle.id).describe()
        ).run_id != handle.first_execution_run_id
        again = CopyReport.model_validate(await (await start(client, site)).result())
        assert (again.copied, again.bytes_read) == (0, 0)
        assert await status(handle) == "Copied"
    source, target = site.repository(), site.repository("offsite")
    for day, ref in enumerate(refs, start=1):
        check_copy(source, target, ref, IMAGE[day * 100 :])
    catalog = Catalog(f"sqlite:///{site.home}/catalog.db")
    rows = catalog.list_backups()
    catalog.close()
    assert {(row.media_agent, row.backup_id, row.status) for row in rows} == {
        (site.offsite, ref.backup_id, "Partial") for ref in refs
    }


async def command(site: UpkeepSite, *words: str) -> tuple[int, str]:
    """A command's exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        tool("safehaul"),
        "--config",
        str(site.config),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode()


async def test_the_commands_start_a_copy_and_tell_how_it_stands(client: Client, site: UpkeepSite) -> None:
    backed_up(site, 2)
    async with site.workers(client, agents=(site.offsite,)):
        code, told = await command(site, "copy", "start", "nightly", "--wait")
        assert code == 0, told
        assert "2 backups copied" in told
        name = f"copy-{site.vault}-{site.offsite}-nightly"
        assert f"started {name}" in told
        code, told = await command(site, "copy", "status")
        assert (code, name in told) == (0, True), told
        code, told = await command(site, "copy", "status", name, "--json")
        assert (code, json.loads(told)["progress"]["report"]["copied"]) == (0, 2), told
        for path in pack_paths(site.repository()):
            flip(path, 200)
        back_up(site.repository(), "run-3", IMAGE, 3)
        code, told = await command(site, "copy", "start", "--wait", "--json")
        assert (code, "is damaged" in told) == (1, True), told
        code, told = await command(site, "copy", "status", f"copy-{site.vault}-{site.offsite}")
        assert (code, "failed" in told) == (1, True), told
    code, told = await command(site, "copy", "start", "--from", site.offsite)
    assert (code, "has no copy_to" in told) == (2, True), told
    code, told = await command(site, "copy", "start", "--latest-only", "--all")
    assert (code, "not both" in told) == (2, True), told


async def test_a_damaged_backup_fails_the_copy_and_holds_up_no_other(
    client: Client, site: UpkeepSite
) -> None:
    small = random.Random(9).randbytes(3 * CHUNK)
    other = back_up(site.repository(), "other", small, vc_guid="vc.z", vm_name="z")
    shared = set(pack_paths(site.repository()))
    first = backed_up(site, 1)[0]
    for path in set(pack_paths(site.repository())) - shared:
        flip(path, 200)
    async with site.workers(client, agents=(site.offsite,)):
        handle = await start(client, site)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        cause = failed.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "CopyIncomplete"
        assert first.backup_id in cause.message
        report = CopyReport.model_validate(cause.details[0])
        assert (report.copied, report.failed) == (1, 1)
        assert "is damaged" in report.failures[0].reason
        assert await status(handle) == "CopyIncomplete"
    assert list(list_backups(site.repository("offsite"))) == [other]


async def test_what_the_source_forgets_meanwhile_is_no_failure(client: Client, site: UpkeepSite) -> None:
    refs = backed_up(site, 3)
    source, copied = site.repository(), BackupCopier.copy

    def forget_next(self: BackupCopier, ref: BackupRef) -> Copied:
        done = copied(self, ref)
        if ref == refs[0]:
            forget(source, open_deleting_store(source.store.url), refs[1], "old")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BackupCopier, "copy", forget_next)
        async with site.workers(client, agents=(site.offsite,)):
            report = CopyReport.model_validate(await (await start(client, site)).result())
    assert (report.copied, report.gone, report.failed) == (2, 1, 0)
    assert list(list_backups(site.repository("offsite"))) == [refs[0], refs[2]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"target": "no-such"}, "no-such"),
        ({"latest_only": True, "all": True}, "not both"),
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


async def test_the_schedules_of_verification_and_copy_start_what_they_say(
    client: Client, site: UpkeepSite
) -> None:
    done = await set_up(client, load(site.config))
    names = {f"verify-{site.vault}", f"verify-{site.offsite}", f"copy-{site.vault}"}
    assert names <= {item.schedule for item in done}
    backed_up(site, 1)
    async with site.workers(client, agents=(site.vault, site.offsite)):
        for name, kind in (
            (f"copy-{site.vault}", "CopyBackups"),
            (f"verify-{site.vault}", "VerifyRepository"),
        ):
            handle = client.get_schedule_handle(name)
            await handle.trigger()
            deadline = time.monotonic() + 20
            while not (actions := (await handle.describe()).info.recent_actions):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            started = actions[0].action
            assert isinstance(started, ScheduleActionExecutionStartWorkflow)
            run = client.get_workflow_handle(started.workflow_id)
            await asyncio.wait_for(run.result(), 30)
            assert (await run.describe()).workflow_type == kind
    for item in done:
        await client.get_schedule_handle(item.schedule).delete()


@pytest.mark.slow
async def test_a_media_agent_that_is_killed_goes_on_with_the_copy(client: Client, site: UpkeepSite) -> None:
    """The real program, killed with packs of a backup durable: another process stores no more than is missing."""
    image = random.Random(5).randbytes(6000 * CHUNK)
    ref = back_up(site.repository(), "run-1", image)
    agent = site.media_agent(site.offsite)
    try:
        async with site.workers(client):
            handle = await start(client, site)
            deadline = time.monotonic() + 120
            records = site.home / "offsite" / "repository" / "sessions"
            while len(list(records.glob("copy-*/disk-2000/*"))) < 50:
                assert time.monotonic() < deadline, agent.log_text()
                await asyncio.sleep(0.01)
            agent.kill()
            before = {path.name for path in pack_paths(site.repository("offsite"))}
            agent = site.media_agent(site.offsite)
            report = CopyReport.model_validate(await asyncio.wait_for(handle.result(), 300))
            assert report.copied == 1
            assert report.bytes_read < len(image) - 40 * 3 * CHUNK, "what was durable is not read again"
    finally:
        agent.kill()
    target = site.repository("offsite")
    assert restore(target, ref) == image
    check_copy(site.repository(), target, ref, image)
    packs = {path.name for path in pack_paths(target)}
    assert len(before & packs) >= 50
    # Three chunks make a pack; the kill costs at most the packs that were under way.
    assert len(packs) <= 6000 // 3 + len(before) - 50 + 10
