"""The schedules that `safehaul setup` makes, on a real server: made, kept, changed, removed, and started."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleRange,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)

from lab.temporal import TemporalServer
from safehaul.config.loader import load
from safehaul.messages.prune import PruneReport
from tests.unit.retained_site import write_config
from tests.workflow.prune_workers import TrivialPrune, upkeep
from workers.cli.app import run
from workers.cli.schedules import Done, set_up


async def _cli(config: Path, *arguments: str) -> int:
    return await asyncio.to_thread(run, ["--config", str(config), *arguments])


async def test_the_command_that_makes_schedules(
    client: Client, temporal: TemporalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _gone(client)
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("127.0.0.1:1", temporal.address))
    assert await _cli(config, "setup", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "daily 11:00" in told
    assert "sun 12:00" in told
    assert "every 15m" in told
    assert await _cli(config, "setup", "--json") == 0
    assert [item["did"] for item in json.loads(capsys.readouterr().out)] == ["created"] * 3
    sweep = client.get_schedule_handle("sweep-snapshots")
    first, second = (await sweep.describe()).info.next_action_times[:2]
    assert second - first == timedelta(minutes=15)
    verification = client.get_schedule_handle("verify-vault")
    described = await verification.describe()
    assert {(at.weekday(), at.hour) for at in described.info.next_action_times} == {(6, 12)}
    assert await _cli(config, "setup", "--json") == 0
    assert [item["did"] for item in json.loads(capsys.readouterr().out)] == ["unchanged"] * 3
    await sweep.delete()
    await verification.delete()
    await client.get_schedule_handle("prune-vault").delete()
    await _gone(client)


def _only_prunes(home: Path) -> Path:
    """A configuration that wants no schedule of verifications, and none of sweeps."""
    config = write_config(home)
    text = config.read_text().replace("[[vm_groups]]", 'verify_at = ""\n[[vm_groups]]', 1)
    config.write_text('sweep_every = ""\n' + text)
    return config


def _only_sweeps(home: Path, every: str) -> Path:
    config = write_config(home)
    text = config.read_text().replace("[[vm_groups]]", 'verify_at = ""\nprune_at = ""\n[[vm_groups]]', 1)
    config.write_text(f'sweep_every = "{every}"\n{text}')
    return config


async def test_the_sweeps_schedule_is_made_changed_put_right_and_removed(
    client: Client, tmp_path: Path
) -> None:
    await _gone(client)
    handle = client.get_schedule_handle("sweep-snapshots")
    assert await _set_up(client, _only_sweeps(tmp_path, "5m")) == [("sweep-snapshots", "created")]
    assert await _set_up(client, _only_sweeps(tmp_path, "5m")) == [("sweep-snapshots", "unchanged")]
    assert await _set_up(client, _only_sweeps(tmp_path, "2h")) == [("sweep-snapshots", "updated")]
    described = await handle.describe()
    first, second = described.info.next_action_times[:2]
    assert second - first == timedelta(hours=2)
    assert isinstance(described.schedule.action, ScheduleActionStartWorkflow)
    assert described.schedule.action.workflow == "SweepSnapshots"

    def shifted(found: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule = found.description.schedule
        every = schedule.spec.intervals[0].every
        schedule.spec.intervals = [ScheduleIntervalSpec(every=every, offset=timedelta(minutes=7))]
        return ScheduleUpdate(schedule)

    await handle.update(shifted)
    assert await _set_up(client, _only_sweeps(tmp_path, "2h")) == [("sweep-snapshots", "updated")]
    assert await _set_up(client, _only_sweeps(tmp_path, "2h")) == [("sweep-snapshots", "unchanged")]
    assert await _set_up(client, _only_sweeps(tmp_path, "")) == [("sweep-snapshots", "removed")]
    assert await _set_up(client, _only_sweeps(tmp_path, "")) == []
    await _gone(client)


async def _set_up(client: Client, config: Path, **options: bool) -> list[tuple[str, str]]:
    done: list[Done] = await set_up(client, load(config), **options)
    return [(item.schedule, item.did) for item in done]


async def _gone(client: Client) -> None:
    """Schedules are found by the server's visibility, which lags."""
    for _ in range(200):
        if not [item async for item in await client.list_schedules()]:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("the schedules of another test are still there")


async def _listed_schedules(client: Client, count: int) -> None:
    for _ in range(200):
        if len([item async for item in await client.list_schedules()]) == count:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"there are not {count} schedules")


async def test_schedules_are_made_kept_changed_and_removed(client: Client, tmp_path: Path) -> None:
    await _gone(client)
    config = _only_prunes(tmp_path)
    text = config.read_text()
    handle: ScheduleHandle = client.get_schedule_handle("prune-vault")
    assert await _set_up(client, config, dry_run=True) == [("prune-vault", "created")]
    assert await _set_up(client, config) == [("prune-vault", "created")]
    assert await _set_up(client, config) == [("prune-vault", "unchanged")]
    await handle.pause(note="a holiday")
    config.write_text(text.replace("[[vm_groups]]", 'prune_at = "09:30"\n[[vm_groups]]'))
    assert await _set_up(client, config, dry_run=True) == [("prune-vault", "updated")]
    assert await _set_up(client, config) == [("prune-vault", "updated")]
    assert await _set_up(client, config) == [("prune-vault", "unchanged")]
    described = await handle.describe()
    assert described.schedule.state.paused
    assert [(at.hour, at.minute) for at in described.info.next_action_times[:1]] == [(9, 30)]
    await _listed_schedules(client, 1)
    config.write_text(text.replace('"vault"', '"cellar"'))
    done = [("prune-cellar", "created"), ("prune-vault", "unknown")]
    assert await _set_up(client, config) == done
    assert await _set_up(client, config, remove_unknown=True) == [
        ("prune-cellar", "unchanged"),
        ("prune-vault", "removed"),
    ]
    config.write_text(
        text.replace('"vault"', '"cellar"').replace("[[vm_groups]]", 'prune_at = ""\n[[vm_groups]]')
    )
    await _listed_schedules(client, 1)
    assert await _set_up(client, config) == [("prune-cellar", "removed")]
    assert await _set_up(client, config) == []
    await _gone(client)


async def test_what_somebody_changed_is_put_right_and_a_schedule_of_his_own_is_left(
    client: Client, tmp_path: Path
) -> None:
    await _gone(client)
    config = _only_prunes(tmp_path)
    handle = client.get_schedule_handle("prune-vault")
    await _set_up(client, config)

    def only_in_may(found: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule = found.description.schedule
        schedule.spec.calendars = [replace(schedule.spec.calendars[0], month=(ScheduleRange(5),))]
        return ScheduleUpdate(schedule)

    await handle.update(only_in_may)
    assert await _set_up(client, config) == [("prune-vault", "updated")]
    assert await _set_up(client, config) == [("prune-vault", "unchanged")]
    await handle.delete()
    action = ScheduleActionStartWorkflow("PruneRoses", id="roses", task_queue="garden")
    await client.create_schedule("prune-vault", Schedule(action=action, spec=ScheduleSpec()))
    assert await _set_up(client, config) == [("prune-vault", "left")]
    await handle.delete()
    await _gone(client)


async def test_a_schedule_starts_a_prune(client: Client, tmp_path: Path) -> None:
    await _gone(client)
    steps = TrivialPrune()
    await _set_up(client, _only_prunes(tmp_path))
    handle = client.get_schedule_handle("prune-vault")
    try:
        async with upkeep(client, steps.all()):
            await handle.trigger()
            for _ in range(200):
                actions = (await handle.describe()).info.recent_actions
                if actions:
                    break
                await asyncio.sleep(0.05)
            started: Any = actions[0].action
            assert started.workflow_id.startswith("prune-vault")
            result = await client.get_workflow_handle(started.workflow_id).result()
    finally:
        await handle.delete()
    assert PruneReport.model_validate(result).media_agent == "vault"
    assert len(steps.called) == 4
