"""vCenter's tasks: they outlive their client, so they are waited for with heartbeats, and found again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from safehaul.errors import BusyError, ConnectionLostError, NotFoundError, SafehaulError, SessionLostError
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import translate
from safehaul.vsphere.properties import Properties, read_object, read_objects

Heartbeat = Callable[[int | None], None]
"""Told the progress in percent (None: unknown) at each poll; raises to stop the waiting."""

DEFAULT_TIMEOUT_S: Final = 3600.0
_FIRST_POLL_S: Final = 0.1
_LAST_POLL_S: Final = 2.0
# A vCenter that restarts is away for some minutes, and the task on the host goes on.
_OUTAGE_S: Final = 300.0
# Part by part, and not `info` as a whole: it also names the task's object, which some servers give a type that
# the API does not allow there (the snapshot of a removal, where an entity of the inventory must stand).
_RUNNING_PATHS: Final = ["info.state", "info.name", "info.descriptionId"]
_INFO_PATHS: Final = [
    "info.state",
    "info.progress",
    "info.result",
    "info.error",
    "info.descriptionId",
    "info.entityName",
]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """Where a task is."""

    state: str
    """`queued`, `running`, `success` or `error`."""
    progress: int | None
    """Percent."""
    result: Any
    """A managed object, a data object or None."""
    error: Any
    """The fault of a task that failed."""
    what: str
    """The operation and its object, for messages."""


def no_heartbeat(_progress: int | None) -> None:
    """For callers that need no sign of life."""


def pause(duration_s: float, heartbeat: Heartbeat, progress: int | None = None) -> None:
    """Sleeps with a heartbeat at least every second."""
    end = time.monotonic() + duration_s
    while True:
        heartbeat(progress)
        left_s = end - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(left_s, 1.0))


def wait(
    vcenter: VCenter,
    task_moref: str,
    heartbeat: Heartbeat = no_heartbeat,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    poll_s: float = _LAST_POLL_S,
) -> Any:
    """Waits for the end of a task and returns its result (a managed object, a data object or None).

    Polls quickly at first, then every `poll_s`. A vCenter that is away is asked again for some minutes.
    When this stops early (time-out, error, heartbeat that raises), the task itself goes on.

    Raises:
        SafehaulError: what the task failed with, translated.
        NotFoundError: vCenter has forgotten the task: look for its effect.
        BusyError: still running after `timeout_s`.
        ConnectionLostError: vCenter was away for too long.
    """
    deadline = time.monotonic() + timeout_s
    interval_s = min(_FIRST_POLL_S, poll_s)
    away_since: float | None = None
    while True:
        try:
            info = task_info(vcenter, task_moref)
            away_since = None
        except (ConnectionLostError, SessionLostError):
            now = time.monotonic()
            away_since = away_since or now
            if now - away_since > _OUTAGE_S or now > deadline:
                raise
            info = None
        if info is not None:
            heartbeat(info.progress)
            if info.state == "success":
                return info.result
            if info.state == "error":
                raise translate(info.error, info.what)
        if time.monotonic() >= deadline:
            state = info.state if info is not None else "out of reach"
            raise BusyError(
                f"task {task_moref} (vCenter {vcenter.name}) is {state} after {timeout_s:g} s; it goes on"
            )
        pause(
            min(interval_s, max(0.0, deadline - time.monotonic())), heartbeat, info.progress if info else None
        )
        interval_s = min(interval_s * 1.5, poll_s)


def task_info(vcenter: VCenter, task_moref: str) -> TaskInfo:
    """Where a task is now.

    Raises:
        NotFoundError: vCenter has forgotten it (some minutes after its end), or tells nothing of it.
        PermissionRefusedError: the account may not see it.
        UnreadableAnswerError: its result or fault is of a kind that this client does not know.
    """
    found = vcenter.read(lambda session: read_object(session, vim.Task, task_moref, _INFO_PATHS))
    found.require("info.state")
    state = found.get("info.state")
    if state is None:
        raise NotFoundError(
            f"task {task_moref} (vCenter {vcenter.name}) tells nothing: it is over and forgotten"
        )
    found.require("info.result", "info.error")
    operation, name = found.get("info.descriptionId", "task"), str(found.get("info.entityName", ""))
    return TaskInfo(
        state=str(state),
        progress=found.get("info.progress"),
        result=found.get("info.result"),
        error=found.get("info.error"),
        what=f"{operation} on {name!r} ({task_moref}, vCenter {vcenter.name})",
    )


def cancel(vcenter: VCenter, task_moref: str) -> None:
    """Asks vCenter to cancel a task; its end must still be waited for. A task that has ended is left alone.

    Raises:
        SafehaulError: the task cannot be cancelled.
    """
    try:
        vcenter.mutate(lambda session: session.managed(vim.Task, task_moref).CancelTask())
    except SafehaulError:
        if not _has_ended(vcenter, task_moref):
            raise


def _has_ended(vcenter: VCenter, task_moref: str) -> bool:
    try:
        return task_info(vcenter, task_moref).state in {"success", "error"}
    except NotFoundError:
        return True


def running_snapshot_tasks(vcenter: VCenter, vm_moref: str) -> list[str]:
    """Morefs of the VM's unfinished tasks that make, remove or consolidate snapshots, whoever started them.

    Raises:
        NotFoundError: no such VM.
    """
    vm = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm_moref, ["recentTask"]))
    return running_snapshot_tasks_of(vcenter, vm.get("recentTask") or [])


def running_snapshot_tasks_of(vcenter: VCenter, recent_tasks: list[Any]) -> list[str]:
    """The same from a VM's `recentTask`; tasks that vCenter has just forgotten are not running."""
    tasks = vcenter.read(lambda session: _readable_tasks(session, recent_tasks))
    return [each.moref for each in tasks if _is_running_snapshot_task(each)]


def wait_out_snapshot_tasks(
    vcenter: VCenter,
    vm_moref: str,
    heartbeat: Heartbeat = no_heartbeat,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> int:
    """Waits until no snapshot task of the VM is queued or running; how they end does not matter.

    Returns:
        How many tasks were waited for.

    Raises:
        BusyError: one still runs after `timeout_s`.
        NotFoundError: no such VM.
    """
    deadline = time.monotonic() + timeout_s
    waited: set[str] = set()
    while running := running_snapshot_tasks(vcenter, vm_moref):
        for task in running:
            waited.add(task)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise BusyError(f"snapshot tasks {running} of {vm_moref} still run after {timeout_s:g} s")
            try:
                wait(vcenter, task, heartbeat, timeout_s=left_s)
            except (ConnectionLostError, SessionLostError):
                raise
            except SafehaulError as error:
                # Somebody's task failed, or ended and was forgotten: the state that follows is what counts.
                if isinstance(error, BusyError) and time.monotonic() >= deadline:
                    raise
    return len(waited)


def _readable_tasks(session: Session, tasks: list[Any]) -> list[Properties]:
    try:
        return read_objects(session, tasks, {vim.Task: _RUNNING_PATHS})
    except NotFoundError:
        found: list[Properties] = []
        for task in tasks:
            # The forgotten one spoils the answer for the others, so each is asked for alone.
            with contextlib.suppress(NotFoundError):
                found += read_objects(session, [task], {vim.Task: _RUNNING_PATHS})
        return found


def _is_running_snapshot_task(task: Properties) -> bool:
    if task.get("info.state") not in {"queued", "running"}:
        return False
    # `VirtualMachine.createSnapshot`, `vm.Snapshot.remove`, `VirtualMachine.consolidateDisks`, …: ids differ
    # between versions, so the words decide.
    name = task.get("info.name")
    method = getattr(getattr(name, "info", None), "wsdlName", None) or getattr(name, "name", None)
    words = f"{task.get('info.descriptionId')} {method}".lower()
    return "snapshot" in words or "consolidate" in words
