"""Events of the followed histories as sightings: a task asked for is before, its end is after."""

from __future__ import annotations

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from tests.crash.histories import History
from tests.crash.points import When
from tests.crash.sightings import Sighting, Sightings


class HistoryTap:
    """Activities by their type's name, workflow tasks as `BackupVm task`."""

    def __init__(self, sightings: Sightings) -> None:
        self._sightings = sightings

    def told(self, history: History, event: HistoryEvent) -> None:
        """An event has appeared in a history."""
        found = _name(history, event)
        if found is not None:
            name, when, queue = found
            node = queue.split(".")[1] if queue.startswith("access-node.") else _node(history)
            self._sightings.see(Sighting("history", name, when, node=node))


def _name(history: History, event: HistoryEvent) -> tuple[str, When, str] | None:
    kind = event.event_type
    if kind == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:
        return f"{history.type} task", "before", ""
    if kind == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
        return f"{history.type} task", "after", ""
    if kind == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
        asked = event.activity_task_scheduled_event_attributes
        return asked.activity_type.name, "before", asked.task_queue.name
    if kind == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
        number = event.activity_task_completed_event_attributes.scheduled_event_id
        for earlier in reversed(history.events):
            if earlier.event_id == number:
                asked = earlier.activity_task_scheduled_event_attributes
                return asked.activity_type.name, "after", asked.task_queue.name
    return None


def _node(history: History) -> str:
    """The access node of a VM's workflow."""
    return str(history.first_input.get("node", "")) if isinstance(history.first_input, dict) else ""
