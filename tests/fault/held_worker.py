"""A worker whose steps can be held: `python -m tests.fault.held_worker DIRECTORY ROLE [NAME]`.

Every step is the real one. Where a file `STEP.PHASE.KEY` stands in the directory the step waits until the file is gone,
and says so by a file `….held`: `before` it does anything, or `after` it is done and before its worker answers. KEY is
the end of the workflow's id: of a VM's its instanceUuid, else the whole. A held step heartbeats, but heeds no cancel.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, get_type_hints

from temporalio import activity

from activities.beat import keep_alive
from activities.coordination import JobCoordination, NodeCoordination
from activities.discovery import Discoverer
from activities.index import AccessNodeIndexing, MediaAgentIndexing
from activities.snapshot import Snapshots
from activities.transfer import Transfers
from activities.transport import Transport
from safehaul.config.loader import find_config, load
from workers import access_node, commserve, media_agent

CLASSES: tuple[type, ...] = (
    NodeCoordination,
    JobCoordination,
    Discoverer,
    Snapshots,
    Transport,
    Transfers,
    AccessNodeIndexing,
    MediaAgentIndexing,
)


def _steps() -> Iterator[tuple[type, str, str, Callable[[Any, Any], Any]]]:
    """Each step that can be held: its class, its attribute's name, its name as an activity, and itself."""
    for owner in CLASSES:
        for name, member in list(vars(owner).items()):
            definition = activity._Definition.from_callable(member) if callable(member) else None
            if definition is not None and not iscoroutinefunction(member):
                yield owner, name, str(definition.name), member


def can_be_held() -> set[str]:
    """The steps' names: all but the CommServe's own."""
    return {step for _, _, step, _ in _steps()}


def hold_all(directory: Path) -> None:
    """Put a holding step in every step's place."""
    for owner, name, step, real in _steps():
        setattr(owner, name, _holding(step, real, directory))


def _holding(name: str, real: Callable[[Any, Any], Any], directory: Path) -> Callable[[Any, Any], Any]:
    hints = get_type_hints(getattr(real, "__wrapped__", real))
    result = hints.pop("return")
    (argument,) = hints.values()

    def held(self: Any, arg: Any) -> Any:
        _wait(directory, name, "before")
        done = real(self, arg)
        _wait(directory, name, "after")
        return done

    held.__annotations__ = {"arg": argument, "return": result}
    return activity.defn(name=name, no_thread_cancel_exception=True)(held)


def _wait(directory: Path, step: str, phase: str) -> None:
    workflow_id = activity.info().workflow_id or ""
    hold = directory / f"{step}.{phase}.{workflow_id.rpartition('.')[2]}"
    if not hold.exists():
        return
    hold.with_name(f"{hold.name}.held").touch()
    while hold.exists():
        if activity.info().heartbeat_timeout is not None:
            keep_alive(f"held {phase}")
        time.sleep(0.05)


def main() -> None:
    """Be the worker."""
    directory, role, *rest = sys.argv[1:]
    hold_all(Path(directory))
    settings = load(find_config(None))
    if role == "commserve":
        asyncio.run(commserve.serve(settings))
    elif role == "media-agent":
        asyncio.run(media_agent.serve(settings, rest[0]))
    else:
        asyncio.run(access_node.serve(settings, rest[0]))


if __name__ == "__main__":
    main()
