"""What a VM's workflow did and when, read from its history: for tests that stop it at a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

CLOSED = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "COMPLETED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "FAILED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "CANCELED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "TERMINATED",
}
ENDS = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: "activity_task_completed_event_attributes",
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: "activity_task_failed_event_attributes",
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: "activity_task_timed_out_event_attributes",
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: "activity_task_canceled_event_attributes",
}


EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass
class Run:
    """One activity of a history: the numbers of its events, and its times."""

    step: str
    scheduled: int
    scheduled_at: datetime
    ended_at: datetime | None = None
    ended: int = 0
    """Number of the event of its end; 0: it has not ended."""


@dataclass
class Past:
    """A history in short."""

    runs: list[Run] = field(default_factory=list)
    cancel_asked: int = 0
    """Number of the event by which the server told the workflow of its cancel; 0: never."""
    status: str = "RUNNING"
    first_run_id: str = ""
    begun_at: datetime = EPOCH
    ended_at: datetime | None = None

    @property
    def steps(self) -> list[str]:
        """The names of its activities in the order in which they were asked for, each once."""
        return list(dict.fromkeys(run.step for run in self.runs))

    def scheduled(self, step: str) -> int:
        """Number of the event that asked for the step first; 0: never."""
        return next((run.scheduled for run in self.runs if run.step == step), 0)

    def ended(self, step: str) -> int:
        """Number of the event with which the step ended first; 0: it did not."""
        return next((run.ended for run in self.runs if run.step == step), 0)

    def step_at(self, at: datetime) -> str:
        """What was under way at a moment; else what had been done last, or "start"."""
        begun = [run for run in self.runs if run.scheduled_at <= at]
        open_ = [run for run in begun if run.ended_at is None or run.ended_at > at]
        return open_[-1].step if open_ else f"after {begun[-1].step}" if begun else "start"


async def past_of(client: Client, workflow_id: str, run_id: str | None = None) -> Past:
    """Read a workflow's history."""
    past, by_event = Past(), dict[int, Run]()
    history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    past.begun_at = _time(history.events[0])
    past.first_run_id = history.events[0].workflow_execution_started_event_attributes.first_execution_run_id
    for event in history.events:
        kind = event.event_type
        if kind == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            name = event.activity_task_scheduled_event_attributes.activity_type.name
            by_event[event.event_id] = run = Run(name, event.event_id, _time(event))
            past.runs.append(run)
        elif kind in ENDS:
            run = by_event[getattr(event, ENDS[kind]).scheduled_event_id]
            run.ended_at, run.ended = _time(event), event.event_id
        elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
            past.cancel_asked = past.cancel_asked or event.event_id
        elif kind in CLOSED:
            past.status, past.ended_at = CLOSED[kind], _time(event)
    return past


async def first_event(
    client: Client, workflow_id: str, wanted: Callable[[Any], bool]
) -> tuple[int, int] | None:
    """The number of the first event of that kind, and of the last workflow task that had ended before it."""
    done = 0
    async for event in client.get_workflow_handle(workflow_id).fetch_history_events():
        if wanted(event):
            return event.event_id, done
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            done = event.event_id
    return None


def _time(event: Any) -> datetime:
    found: datetime = event.event_time.ToDatetime(UTC)
    return found
