"""Stops a job at a case's point, by whatever can be had from outside for a point of that kind."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator

from lab.esx.api import FaultRule
from tests.crash.points import Point
from tests.crash.sightings import Sighting
from tests.crash.stage import Stage

HELD_CALL_S = 25.0
"""How long a creation is on its way to vCenter when whoever asked is dead. A try asks within 12 s of its start or not
at all (`activities.snapshot.ASK_WITHIN_S`), so its successor begins while this one may still arrive."""
STALLED_TASK_S = 30.0
"""How long vCenter sits on a creation that it has accepted."""
_CREATE = Point("vcenter", "CreateSnapshot_Task")
_LOOK_EVERY_S = 0.05
_NO_ANSWER = (OSError, http.client.HTTPException)


@contextlib.contextmanager
def armed(stage: Stage, point: Point) -> Iterator[None]:
    """While it is open, `stage.sightings.wait` tells when the point is reached; a held call waits for `release`."""
    arm = {"vcenter": _vcenter, "clock": _clock, "zombie": _zombie}.get(point.kind)
    stage.sightings.begin(point)
    over = threading.Event()
    thread = arm(stage, point, over) if arm is not None else None
    try:
        yield
    finally:
        over.set()
        release(stage)
        stage.hosts.clear_faults()
        if thread is not None:
            thread.join()


def release(stage: Stage) -> None:
    """Let whatever is held go on."""
    stage.sightings.release()
    # A vCenter that is dead holds nothing.
    with contextlib.suppress(*_NO_ANSWER):
        stage.admin().release()


def release_after_s(point: Point) -> float:
    """How long after the kill what is held is let go."""
    return HELD_CALL_S if point.name == "held-call" and point.kind == "zombie" else 0.0


def rest_after_s(point: Point) -> float:
    """How long after the kill something that the case itself has planned may still happen."""
    if point.kind != "zombie":
        return 0.0
    return HELD_CALL_S if point.name == "held-call" else STALLED_TASK_S


def _vcenter(stage: Stage, point: Point, over: threading.Event) -> threading.Thread:
    admin = stage.admin()
    admin.hold(point.name, point.nth, point.when)

    def wait() -> None:
        while not over.is_set():
            with contextlib.suppress(*_NO_ANSWER):
                port = admin.wait_held()
                if port is not None:
                    stage.sightings.reach(Sighting(point.kind, point.name, point.when, client_port=port))
                    return

    return _run(wait)


def _clock(stage: Stage, point: Point, over: threading.Event) -> threading.Thread:
    def wait() -> None:
        if not over.wait(float(point.name)):
            stage.sightings.reach(Sighting(point.kind, point.name, point.when))

    return _run(wait)


def _zombie(stage: Stage, point: Point, over: threading.Event) -> threading.Thread:
    """A creation that vCenter executes (`held-call`) or ends (the others) long after it was asked for."""
    if point.name == "held-call":
        return _vcenter(stage, _CREATE, over)
    stage.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", vm="one", seconds=STALLED_TASK_S, phase="start")
    )

    def creating() -> bool:
        return any(
            task.operation == "CreateSnapshot" and task.entity_name == "one" and task.complete_time is None
            for task in stage.hosts.state().tasks
        )

    def then() -> None:
        if point.name == "terminated":
            for history in stage.follower.histories():
                if isinstance(history.first_input, dict) and history.first_input.get("name") == "one":
                    stage.follower.terminate(history.workflow_id)
        stage.sightings.reach(Sighting(point.kind, point.name, point.when))

    return _run(lambda: _when(creating, then, over))


def _when(condition: Callable[[], bool], then: Callable[[], None], over: threading.Event) -> None:
    while not over.is_set():
        if condition():
            then()
            return
        time.sleep(_LOOK_EVERY_S)


def _run(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name="trigger", daemon=True)
    thread.start()
    return thread
