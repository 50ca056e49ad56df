"""Follows a job's history, and those of all workflows that it and they start, with a client of its own.

It is the witness for what the job did: nothing of safehaul's own records is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.service import RPCError

_ENDS = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "COMPLETED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "FAILED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "CANCELED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "TERMINATED",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "TIMED_OUT",
}
_RETRY_S = 0.2
_ANSWER_WITHIN_S = 3.0


@dataclass
class History:
    """One workflow as far as it is known; `first_input` is what it was started with."""

    workflow_id: str
    run_id: str
    type: str
    first_input: Any = None
    events: list[HistoryEvent] = field(default_factory=list)
    end: str = ""
    """COMPLETED, FAILED, …; empty while it runs."""
    ended_at: float = 0.0
    """When the end was seen, by `time.monotonic()`."""

    def closing_report(self) -> Any:
        """The report that stands in the end, as JSON: the result, or what the failure carries. None without one."""
        if not self.events:
            return None
        last = self.events[-1]
        if self.end == "COMPLETED":
            return _first(last.workflow_execution_completed_event_attributes.result)
        if self.end == "FAILED":
            failure = last.workflow_execution_failed_event_attributes.failure
            return _first(failure.application_failure_info.details)
        return None

    def failure(self) -> str:
        """The failure's message."""
        if self.end != "FAILED":
            return ""
        return self.events[-1].workflow_execution_failed_event_attributes.failure.message

    def worker(self) -> str:
        """Identity of the worker that took the last workflow task; empty before the first."""
        for event in reversed(self.events):
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
                return event.workflow_task_started_event_attributes.identity
        return ""

    def text(self) -> str:
        """Every event, for evidence."""
        head = f"# {self.type} {self.workflow_id} {self.run_id} {self.end or 'runs'}"
        return "\n".join([head, *(str(event) for event in self.events)])


Told = Callable[[History, HistoryEvent], None]


class HistoryFollower:
    """Runs on a thread of its own."""

    def __init__(self, address: str, told: Told) -> None:
        """`told` is called on that thread with each new event."""
        self._address = address
        self._told = told
        self._lock = threading.Lock()
        self._histories: dict[str, History] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="histories", daemon=True)
        self._client: Client | None = None

    def start(self) -> None:
        """Connect. Raises RuntimeError when the server does not answer."""
        self._thread.start()
        self._client = self._call(Client.connect(self._address)).result(30)

    def stop(self) -> None:
        """Follow nothing more."""
        self.forget()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def forget(self) -> None:
        """Stop following, and forget what was seen."""
        self._call(self._cancel()).result(10)
        with self._lock:
            self._histories.clear()

    def follow(self, workflow_id: str, run_id: str, type_: str) -> None:
        """Follow a workflow, and what it starts, from its first event."""
        self._call(self._begin(History(workflow_id, run_id, type_))).result(10)

    def histories(self) -> list[History]:
        """What is followed, in the order in which it was found."""
        with self._lock:
            return list(self._histories.values())

    def start_job(self, workflow_id: str, vm_group: str) -> str:
        """Start a BackupJob as a person would; its run id."""
        assert self._client is not None
        starting = self._client.start_workflow(
            "BackupJob", {"vm_group": vm_group}, id=workflow_id, task_queue="commserve"
        )
        return str(self._call(starting).result(30).first_execution_run_id)

    def terminate(self, workflow_id: str) -> None:
        """End a workflow as `temporal workflow terminate` does."""
        assert self._client is not None
        self._call(self._client.get_workflow_handle(workflow_id).terminate("by the crash matrix")).result(10)

    def busy_workers(self) -> list[str]:
        """Identities of the workers that have an activity of a running workflow now, as the server knows them."""
        with contextlib.suppress(RPCError, TimeoutError):
            found: list[str] = self._call(self._busy_workers()).result(_ANSWER_WITHIN_S)
            return found
        return []

    async def _busy_workers(self) -> list[str]:
        assert self._client is not None
        found: list[str] = []
        for history in self.histories():
            if not history.end:
                told = await self._client.get_workflow_handle(history.workflow_id).describe()
                pending = told.raw_description.pending_activities
                found += [item.last_worker_identity for item in pending if item.last_worker_identity]
        return found

    def _call(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, history: History) -> None:
        with self._lock:
            if history.workflow_id in self._histories:
                return
            self._histories[history.workflow_id] = history
        task = asyncio.create_task(self._follow(history))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, history: History) -> None:
        assert self._client is not None
        seen = 0
        while not history.end:
            handle = self._client.get_workflow_handle(history.workflow_id, run_id=history.run_id)
            try:
                async for event in handle.fetch_history_events(wait_new_event=True, skip_archival=True):
                    if event.event_id <= seen:
                        continue
                    seen = event.event_id
                    await self._take(history, event)
                    if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
                        going_on = event.workflow_execution_continued_as_new_event_attributes
                        history.run_id, seen = going_on.new_execution_run_id, 0
                        break
            except RPCError:
                # The server is dead, or comes back.
                await asyncio.sleep(_RETRY_S)

    async def _take(self, history: History, event: HistoryEvent) -> None:
        history.events.append(event)
        if (
            event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
            and history.first_input is None
        ):
            history.first_input = _first(event.workflow_execution_started_event_attributes.input)
        self._told(history, event)
        if event.event_type == EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
            child = event.child_workflow_execution_started_event_attributes
            execution = child.workflow_execution
            await self._begin(History(execution.workflow_id, execution.run_id, child.workflow_type.name))
        history.end = _ENDS.get(event.event_type, "")
        history.ended_at = time.monotonic() if history.end else 0.0


def _first(payloads: Payloads) -> Any:
    """The first value, as JSON; None when there is none, or it is no JSON."""
    if not payloads.payloads:
        return None
    try:
        return json.loads(payloads.payloads[0].data)
    except ValueError:
        return None
