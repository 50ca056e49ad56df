"""`safehaul setup`: the Temporal Schedules that keep repositories and snapshots in order, as the configuration says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any

import typer
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleCalendarSpec,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from safehaul.config.media_agent import MediaAgent
from safehaul.config.settings import Settings
from workers.bootstrap import connect
from workers.cli.output import Json, of, run, say, show_json, table
from workflows import policies

CATCH_UP_WITHIN = timedelta(hours=6)
"""A daily run that Temporal missed, being down, is made up for so long after: not at night, beside the backups."""
SWEEP_CATCH_UP_WITHIN = timedelta(minutes=1)
"""A sweep that was missed is made up by the next one."""


DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
"""Temporal counts them from 0."""


@dataclass(frozen=True)
class Wanted:
    """A schedule as the configuration wants it."""

    id: str
    """Of the schedule, and of the workflows that it starts: for these Temporal adds the time."""
    workflow: str
    """Type of the workflow."""
    argument: dict[str, str]
    summary: str
    when: str
    """For people; empty: none is wanted."""
    spec: ScheduleSpec
    catch_up_within: timedelta


@dataclass(frozen=True)
class Kind:
    """Schedules of one kind."""

    workflow: str
    """Type of the workflow."""
    id_prefix: str
    """What the ids of this kind begin with."""
    wanted: Callable[[Settings], list[Wanted]]


def _of_agents(
    workflow: str,
    id_of: Callable[[str], str],
    time_of: Callable[[MediaAgent], str],
    input_key: str = "media_agent",
) -> Kind:
    """One schedule for each MediaAgent, by the day; `input_key` of its workflow's input takes the MediaAgent's name.

    `time_of`: `HH:MM` each day, or `sun HH:MM` each week, in UTC; empty: none is wanted.
    """

    def wanted(settings: Settings) -> list[Wanted]:
        return [
            Wanted(
                id=id_of(agent.name),
                workflow=workflow,
                argument={input_key: agent.name},
                summary=f"{workflow} of {agent.name}",
                when=at if " " in at or not at else f"daily {at}",
                spec=_at(at),
                catch_up_within=CATCH_UP_WITHIN,
            )
            for agent in settings.media_agents
            for at in (time_of(agent),)
        ]

    return Kind(workflow, id_of(""), wanted)


def _sweeps(settings: Settings) -> list[Wanted]:
    """The one schedule of the sweep, by the interval."""
    every = settings.sweep_every
    minutes = int(every[:-1]) * (60 if every.endswith("h") else 1) if every else 0
    intervals = [ScheduleIntervalSpec(every=timedelta(minutes=minutes))] if minutes else []
    return [
        Wanted(
            id=policies.SWEEP_ID,
            workflow="SweepSnapshots",
            argument={},
            summary="Snapshots without an owner",
            when=f"every {every}" if every else "",
            spec=ScheduleSpec(intervals=intervals),
            catch_up_within=SWEEP_CATCH_UP_WITHIN,
        )
    ]


KINDS = (
    _of_agents("PruneRepository", policies.prune_id, lambda agent: agent.prune_at),
    _of_agents("VerifyRepository", policies.verify_id, lambda agent: agent.verify_at),
    _of_agents(
        "CopyBackups", policies.copy_id, lambda agent: agent.copy_at if agent.copy_to else "", "source"
    ),
    Kind("SweepSnapshots", policies.SWEEP_ID, _sweeps),
)


@dataclass(frozen=True)
class Done:
    """What became of one schedule."""

    schedule: str
    did: str
    """`created`, `updated`, `unchanged`, `removed`; `left`: it is not ours; `unknown`: ours, of no MediaAgent."""
    when: str
    note: str = ""


def setup(
    context: typer.Context,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    remove_unknown: Annotated[
        bool,
        typer.Option("--remove-unknown", help="Remove the schedules of MediaAgents that are not configured."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Create or update the Temporal Schedules of each MediaAgent, and of the sweep; a second time changes nothing.

    A schedule that somebody has paused stays so. Example: `safehaul setup --dry-run`.
    """
    settings = of(context).settings()

    async def work() -> list[Done]:
        return await set_up(await connect(settings), settings, dry_run=dry_run, remove_unknown=remove_unknown)

    done = run(work())
    if as_json:
        show_json([vars(item) for item in done])
        return
    table(["schedule", "when (UTC)", "would be" if dry_run else "is", "note"], [tuple(_row(i)) for i in done])
    if any(item.did == "unknown" for item in done):
        say("unknown ones were left: `safehaul setup --remove-unknown` removes them")


async def set_up(
    client: Client, settings: Settings, *, dry_run: bool = False, remove_unknown: bool = False
) -> list[Done]:
    """Bring the schedules to what the configuration says; returns what was done, or would be. Raises RPCError."""
    done = []
    for kind in KINDS:
        wanted = kind.wanted(settings)
        done += [await _bring_about(client, each, dry_run=dry_run) for each in wanted]
        for schedule_id in sorted(await _ours(client, kind) - {each.id for each in wanted}):
            if remove_unknown and not dry_run:
                await client.get_schedule_handle(schedule_id).delete()
            note = "its MediaAgent is not in the configuration"
            done.append(Done(schedule_id, "removed" if remove_unknown else "unknown", "", note))
    return [item for item in done if item.did]


async def _bring_about(client: Client, wanted: Wanted, *, dry_run: bool) -> Done:
    handle = client.get_schedule_handle(wanted.id)
    there = await _described(handle)
    starts = getattr(there.action, "workflow", "") if there is not None else wanted.workflow
    if starts != wanted.workflow:
        return Done(wanted.id, "left", "", f"somebody's own schedule of this name starts {starts}")
    if not wanted.when:
        if there is None:
            return Done(wanted.id, "", "")
        if not dry_run:
            await handle.delete()
        return Done(wanted.id, "removed", "", "the configuration wants none")
    schedule = _schedule(wanted)
    if there is None:
        if not dry_run:
            await client.create_schedule(wanted.id, schedule)
        return Done(wanted.id, "created", wanted.when)
    paused = "it is paused" if there.state.paused else ""
    if await _same(client, there, schedule):
        return Done(wanted.id, "unchanged", wanted.when, paused)

    def change(found: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(replace(schedule, state=found.description.schedule.state))

    if not dry_run:
        await handle.update(change)
    return Done(wanted.id, "updated", wanted.when, paused)


def _schedule(wanted: Wanted) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            wanted.workflow,
            wanted.argument,
            id=wanted.id,
            task_queue=policies.COMMSERVE_QUEUE,
            static_summary=wanted.summary,
        ),
        spec=wanted.spec,
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=wanted.catch_up_within),
    )


def _at(at: str) -> ScheduleSpec:
    """`HH:MM` each day, or `sun HH:MM` each week; empty: never."""
    if not at:
        return ScheduleSpec()
    day, _, time = at.rpartition(" ")
    hour, minute = map(int, time.split(":"))
    days = ScheduleRange(DAYS.index(day)) if day else ScheduleRange(0, len(DAYS) - 1)
    calendar = ScheduleCalendarSpec(
        hour=(ScheduleRange(hour),), minute=(ScheduleRange(minute),), day_of_week=(days,)
    )
    return ScheduleSpec(calendars=[calendar])


async def _described(handle: ScheduleHandle) -> Schedule | None:
    try:
        return (await handle.describe()).schedule
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def _same(client: Client, there: Schedule, wanted: Schedule) -> bool:
    """Whether a schedule is as it should be; whether it is paused is its user's affair."""
    return await _told(client, there) == await _told(client, wanted)


async def _told(client: Client, schedule: Schedule) -> list[Any]:
    action = schedule.action
    if not isinstance(action, ScheduleActionStartWorkflow):
        return []
    arguments = list(action.args)
    if arguments and not isinstance(arguments[0], dict):
        arguments = await client.data_converter.decode(arguments)
    spec, policy = schedule.spec, schedule.policy
    times = [{part: list(map(_span, getattr(item, part))) for part in _PARTS} for item in spec.calendars]
    intervals = [(item.every, item.offset or timedelta()) for item in spec.intervals]
    others = (
        spec.cron_expressions,
        spec.skip,
        spec.start_at,
        spec.end_at,
        spec.time_zone_name,
    )
    what = [
        action.workflow,
        arguments,
        action.id,
        action.task_queue,
        times,
        intervals,
        list(map(bool, others)),
    ]
    return [*what, policy.overlap, policy.catchup_window, policy.pause_on_failure]


_PARTS = ("second", "minute", "hour", "day_of_month", "month", "year", "day_of_week")


def _span(span: ScheduleRange) -> tuple[int, int, int]:
    """A range in the one form: the server fills in what was left out."""
    return span.start, max(span.start, span.end), max(1, span.step)


async def _ours(client: Client, kind: Kind) -> set[str]:
    """Ids of the schedules of a kind that are there, by their id and what they start."""
    found = set()
    async for item in await client.list_schedules():
        action = item.schedule.action if item.schedule else None
        if item.id.startswith(kind.id_prefix) and getattr(action, "workflow", "") == kind.workflow:
            found.add(item.id)
    return found


def _row(item: Done) -> list[str]:
    return [item.schedule, item.when, item.did, item.note]
