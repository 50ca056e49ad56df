"""Measures both candidates of the job's topology: `python -m tests.experiments.topology.measure [VMS]`.

Real workflows, a real server with a file database, trivial steps. Prints one JSON line for each measurement: a
whole job; its cancel while every stream is busy; one child terminated; the parent terminated.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter

from lab.temporal import TemporalServer
from tests.experiments.topology.sharded import SHARD_VMS, Shard, ShardedJob
from tests.workflow import conftest
from tests.workflow.world import World, wait_for_cancel
from workflows.catalogue import WORKFLOWS

NODES, STREAMS = ("n1", "n2", "n3", "n4"), 10
BUSY = len(NODES) * STREAMS


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Measurement:
    """One candidate on one server."""

    def __init__(self, client: Client, server: TemporalServer, candidate: str, vms: int) -> None:
        self.client, self.server, self.candidate, self.vms = client, server, candidate, vms

    async def start(self, name: str) -> WorkflowHandle[Any, Any]:
        """Start a job of this candidate."""
        if self.candidate == "window":
            return await self.client.start_workflow(
                "BackupJob", {"vm_group": "test"}, id=name, task_queue="commserve"
            )
        streams = dict.fromkeys(NODES, STREAMS)
        return await self.client.start_workflow(
            ShardedJob.run, args=[self.vms, streams], id=name, task_queue="commserve"
        )

    async def whole(self) -> dict[str, Any]:
        """A whole job: cost and the largest history."""
        world, name = World(self.vms, NODES, STREAMS), f"{self.candidate}-whole-{time.monotonic_ns()}"
        assert self.server.process is not None
        async with conftest.running(self.client, world):
            server, own, begun = _cpu_of(self.server.process.pid), time.process_time(), time.monotonic()
            handle = await self.start(name)
            await handle.result()
            seconds = time.monotonic() - begun
            cpu = time.process_time() - own, _cpu_of(self.server.process.pid) - server
        runs = [item async for item in self.client.list_workflows(f"WorkflowId = '{name}'")]
        shards = [item async for item in self.client.list_workflows("WorkflowType = 'Shard'")]
        histories = [
            (item.id, item.run_id) for item in [*runs, *(s for s in shards if s.id.startswith(name))]
        ]
        events, sizes = [], []
        for workflow_id, run_id in histories:
            found = await self.client.get_workflow_handle(workflow_id, run_id=run_id).describe()
            events.append(found.raw_description.workflow_execution_info.history_length)
            sizes.append(found.raw_description.workflow_execution_info.history_size_bytes)
        return {
            "seconds": round(seconds, 1),
            "vms_per_s": round(self.vms / seconds, 1),
            "worker_cpu_s": round(cpu[0], 1),
            "server_cpu_s": round(cpu[1], 1),
            "parent_runs": len(runs),
            "largest_history_events": max(events),
            "largest_history_bytes": max(sizes),
            "completed": world.calls["write_index"],
            "snapshots_left": len(world.snapshots),
        }

    async def cancel(self) -> dict[str, Any]:
        """The job is cancelled while all streams are busy."""
        world = World(self.vms, NODES, STREAMS)
        world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(120)
        name = f"{self.candidate}-cancel-{time.monotonic_ns()}"
        async with conftest.running(self.client, world):
            handle = await self.start(name)
            await self._busy(world)
            begun = time.monotonic()
            if self.candidate == "window":
                await handle.signal("cancel")
            else:
                await handle.cancel()
            await _ended(handle)
            seconds = time.monotonic() - begun
            statuses = await self._statuses(name)
        return {
            "seconds_until_job_closed": round(seconds, 1),
            "children": statuses,
            "job": str((await handle.describe()).status),
            "snapshots_left": len(world.snapshots),
        }

    async def terminate(self, what: str) -> dict[str, Any]:
        """A child, a shard or the parent is terminated while all streams are busy."""
        world = World(min(self.vms, 3 * BUSY), NODES, STREAMS)
        world.hooks["transfer_disk"] = lambda _arg: wait_for_cancel(8)
        name = f"{self.candidate}-{what}-{time.monotonic_ns()}"
        async with conftest.running(self.client, world):
            measured = Measurement(self.client, self.server, self.candidate, world.vm_count)
            handle = await measured.start(name)
            await self._busy(world)
            await asyncio.sleep(1.5)  # visibility lags behind a little
            begun, before = time.monotonic(), len(world.snapshots)
            victims = {"parent": name, "shard": f"{name}/shard-0"}
            victim = victims.get(what) or next(iter(await self._running_children(name)))
            await self.client.get_workflow_handle(victim).terminate("measured")
            if what == "parent":
                await asyncio.sleep(25)
            else:
                await _ended(handle)
            seconds = time.monotonic() - begun
            left = await self._running_children(name)
            answer = {
                "seconds": round(seconds, 1),
                "snapshots_when_terminated": before,
                "snapshots_left": len(world.snapshots),
                "children": await self._statuses(name),
                "children_running_at_the_end": len(left),
            }
            for child in left:
                await self.client.get_workflow_handle(child).terminate("end of the measurement")
        return answer

    async def _busy(self, world: World) -> None:
        deadline = time.monotonic() + 120
        while world.calls["transfer_disk"] < BUSY:
            assert time.monotonic() < deadline, world.calls
            await asyncio.sleep(0.05)

    async def _children(self, name: str) -> list[Any]:
        found = [item async for item in self.client.list_workflows("WorkflowType = 'BackupVm'")]
        return [item for item in found if item.id.startswith(name)]

    async def _running_children(self, name: str) -> list[str]:
        return [
            item.id for item in await self._children(name) if item.status is WorkflowExecutionStatus.RUNNING
        ]

    async def _statuses(self, name: str) -> dict[str, int]:
        await asyncio.sleep(1.5)
        counts: dict[str, int] = {}
        for item in await self._children(name):
            label = item.status.name if item.status else "?"
            counts[label] = counts.get(label, 0) + 1
        return counts


async def _ended(handle: WorkflowHandle[Any, Any]) -> None:
    try:
        await handle.result()
    except WorkflowFailureError:
        return  # cancelled and failed jobs are what is measured


async def measure(vms: int) -> None:
    """All measurements, each candidate on a fresh server."""
    for candidate in ("window", "shards"):
        server = TemporalServer(Path(tempfile.mkdtemp()), ui=False)
        server.start()
        try:
            client = await Client.connect(server.address, data_converter=pydantic_data_converter)
            one = Measurement(client, server, candidate, vms)
            steps = {
                "whole": one.whole,
                "whole again": one.whole,
                "cancel": one.cancel,
                "cancel again": one.cancel,
            }
            for name, step in steps.items():
                print(
                    json.dumps({"candidate": candidate, "what": name, "vms": vms} | await step()), flush=True
                )
            for what in ("child", "parent") if candidate == "window" else ("child", "shard", "parent"):
                answer = await one.terminate(what)
                print(json.dumps({"candidate": candidate, "what": f"terminate {what}"} | answer), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    WORKFLOWS.extend([Shard, ShardedJob])  # the workers of the trivial world serve this very list
    assert SHARD_VMS > 0
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
