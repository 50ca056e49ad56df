"""Who is killed, and how each comes back. Every kill is SIGKILL, from outside."""

from __future__ import annotations

import os
import random
from pathlib import Path

from lab.datacentre import MEDIA_AGENT
from lab.processes import LabProcess
from tests.crash.points import REPLACEABLE, Case
from tests.crash.sightings import Sighting
from tests.crash.stage import Stage

MEDIA_AGENT_WORKER = f"media-agent.{MEDIA_AGENT}"
_SPARE = "#2"


class Victims:
    """The killable processes of a stage, by name: `commserve`, `access-node.node-1`, `temporal`, …."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lab = stage.lab

    def add_spare(self, process: str) -> None:
        """Start a second worker of the same name, which can take over. Access nodes have each other."""
        if process == "commserve":
            self._start("commserve" + _SPARE)
        elif process == "media-agent":
            self._start(MEDIA_AGENT_WORKER + _SPARE)

    def end_spares(self) -> None:
        """End every second worker."""
        for name in [name for name in self._lab.workers if name.endswith(_SPARE)]:
            self._lab.workers.pop(name).stop()

    def chosen(self, case: Case, sighting: Sighting) -> str:
        """Which process of the case's kind dies: the one that did what was seen, else one that is at work."""
        if case.process not in REPLACEABLE:
            return case.process
        names = [
            name for name in sorted(self._lab.workers) if name.split("#")[0].split(".")[0] == case.process
        ]
        if len(names) == 1:
            return names[0]
        by_pid = {self._lab.workers[name].pid: name for name in names}
        owner = owner_of_port(sighting.client_port, list(by_pid)) if sighting.client_port else None
        if owner is not None:
            return by_pid[owner]
        if f"access-node.{sighting.node}" in names:
            return f"access-node.{sighting.node}"
        busy = [by_pid[pid] for pid in map(_pid_of, self._busy(case.process)) if pid in by_pid]
        return busy[0] if busy else random.Random(case.id).choice(names)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        if name == "filer":
            self._stage.filers.kill()
        else:
            self._process(name).kill()

    def revive(self, name: str) -> None:
        """Start it again as it was, and wait until it is ready. Raises LabError."""
        if name == "filer":
            self._stage.filers.start_again()
        elif name == "vcenter":
            self._lab.start_vcenter()
        elif name == "temporal":
            self._lab.temporal.start()
        else:
            self._start(name)

    def ended_by_themselves(self, killed: str) -> list[str]:
        """Processes that do not run although nobody has killed them."""
        names = [*self._lab.workers, "vcenter", "temporal"]
        return [name for name in names if name != killed and not self._process(name).running]

    def _busy(self, process: str) -> list[str]:
        follower = self._stage.follower
        if process == "commserve":
            return [history.worker() for history in reversed(follower.histories()) if not history.end]
        return follower.busy_workers()

    def _process(self, name: str) -> LabProcess:
        if name == "temporal":
            assert self._lab.temporal.process is not None
            return self._lab.temporal.process
        return self._lab.processes[name] if name == "vcenter" else self._lab.workers[name]

    def _start(self, name: str) -> None:
        self._lab.start_worker(*name.removesuffix(_SPARE).split(".", 1), label=name)


def _pid_of(identity: str) -> int:
    """The pid in a worker's identity, `ROLE@HOST:PID`."""
    text = identity.rpartition(":")[2]
    return int(text) if text.isdigit() else 0


def owner_of_port(port: int, pids: list[int]) -> int | None:
    """Which of the processes has a TCP connection from that local port (proc(5)); None when none has."""
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            sockets.add(f"socket:[{fields[9]}]")
    for pid in pids:
        try:
            files = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:  # it has ended, or is another user's
            continue
        for file in files:
            try:
                if os.readlink(file) in sockets:  # noqa: PTH115 - the target is a name, and no path
                    return pid
            except OSError:  # closed meanwhile
                continue
    return None
