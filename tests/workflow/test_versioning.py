"""An upgrade under way: what was begun ends on the build that began it, what is new starts on the current one, and a
snapshot's removal, which may take weeks, moves on.
"""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import VersioningBehavior
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.worker import WorkerDeploymentConfig

from lab.temporal import TemporalServer
from safehaul.messages.job import JobReport
from tests.documents import ROOT, commands
from tests.workflow.conftest import running
from tests.workflow.world import World
from workers.bootstrap import deployment
from workflows.catalogue import WORKFLOWS

REQUEST = {"vm_group": "test"}


@workflow.defn(name="OfBuildTwo", versioning_behavior=VersioningBehavior.PINNED)
class OfBuildTwo:
    """A type that only the second build has."""

    @workflow.run
    async def run(self) -> str:
        """Tell that it ran."""
        return "build two"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TemporalServer]:
    """A server of each test's own: which build is current concerns every queue of it."""
    started = TemporalServer(tmp_path, ui=False)
    started.start()
    yield started
    started.stop()


@pytest.fixture
async def client(server: TemporalServer) -> Client:
    return await Client.connect(server.address, data_converter=pydantic_data_converter)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WorkerDeploymentConfig]:
    """The deployment as a worker process reads it from its environment."""

    def of(number: str) -> WorkerDeploymentConfig:
        monkeypatch.setenv("SAFEHAUL_BUILD_ID", number)
        found = deployment()
        assert found is not None
        return found

    return of


async def documented(
    server: TemporalServer, start: str, *more: str, **names: str
) -> subprocess.CompletedProcess[str]:
    """Run the command of docs/upgrades.md that begins so, with `names` for its words in capitals."""
    command = next(
        each for each in commands(ROOT / "docs" / "upgrades.md") if each.text.startswith(f"temporal {start}")
    )
    words = [names.get(word, word) for word in shlex.split(command.text)[1:]]
    return await asyncio.to_thread(server.cli, *words, *more)


async def make_current(server: TemporalServer, number: str) -> None:
    """As docs/upgrades.md says; the server knows a build only when its workers have polled."""
    deadline = time.monotonic() + 30
    while True:
        done = await documented(server, "worker deployment set-current-version", "--yes", NEW=number)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr
        await asyncio.sleep(0.3)


async def build_of(handle: WorkflowHandle[Any, Any]) -> str:
    """The build that the workflow's last task ran on."""
    info = (await handle.describe()).raw_description.workflow_execution_info.versioning_info
    return info.deployment_version.build_id


async def start(client: Client, name: str) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("BackupJob", REQUEST, id=name, task_queue="commserve")


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


async def test_a_held_vm_ends_on_its_build_and_a_new_job_starts_on_the_next(
    client: Client, server: TemporalServer, build: Callable[[str], WorkerDeploymentConfig]
) -> None:
    old, new, gate = World(vm_count=1), World(vm_count=1), threading.Event()

    def hold(_arg: Any) -> None:
        gate.wait(60)

    old.hooks["transfer_disk"] = hold
    async with running(client, old, build=build("1")):
        await make_current(server, "1")
        held = await start(client, "held")
        await until(lambda: old.calls["transfer_disk"])
        async with running(client, new, build=build("2")):
            await make_current(server, "2")
            fresh = await start(client, "fresh")
            assert JobReport.model_validate(await fresh.result()).status == "Completed"
            gate.set()
            report = JobReport.model_validate(await held.result())
        child = client.get_workflow_handle(report.vms[0].child_id)
        assert report.status == "Completed"
        assert [await build_of(item) for item in (held, child, fresh)] == ["1", "1", "2"]
    both = ("transfer_disk", "seal_backup", "remove_snapshot", "close_job")
    assert [old.calls[step] for step in both] == [1, 1, 1, 1]
    assert [new.calls[step] for step in both] == [1, 1, 1, 1]
    assert not old.snapshots


async def test_a_removal_that_was_handed_over_goes_on_when_its_build_is_gone(
    client: Client, server: TemporalServer, build: Callable[[str], WorkerDeploymentConfig]
) -> None:
    old, new = World(vm_count=1), World(vm_count=0)

    def refuse(_arg: Any) -> None:
        if old.calls["remove_snapshot"] == 1:
            raise ApplicationError("locked", type="PermanentError", non_retryable=True)
        raise ApplicationError("still locked", type="BusyError")

    old.hooks["remove_snapshot"] = refuse
    new.snapshots = old.snapshots
    async with running(client, old, build=build("1")):
        await make_current(server, "1")
        job = await start(client, "job")
        with pytest.raises(WorkflowFailureError):
            await job.result()
        await until(lambda: old.calls["remove_snapshot"] >= 2)
    (name,) = old.snapshots
    removal = client.get_workflow_handle(f"remove-snapshot {name}")
    async with running(client, new, build=build("2")):
        await make_current(server, "2")
        await asyncio.wait_for(removal.result(), 60)
        assert await build_of(removal) == "2"
    assert not old.snapshots


async def test_the_catch_all_of_the_old_build_takes_no_type_of_the_new_one(
    client: Client, server: TemporalServer, build: Callable[[str], WorkerDeploymentConfig]
) -> None:
    async with running(client, World(vm_count=0), build=build("1")):
        await make_current(server, "1")
        early = await client.start_workflow("OfBuildTwo", id="early", task_queue="commserve")
        with pytest.raises(WorkflowFailureError):
            await early.result()
        types = [OfBuildTwo, *WORKFLOWS]
        async with running(client, World(vm_count=0), build=build("2"), workflows=types):
            await make_current(server, "2")
            for number in range(10):
                handle = await client.start_workflow("OfBuildTwo", id=f"n-{number}", task_queue="commserve")
                assert await handle.result() == "build two"


async def test_the_documents_commands_tell_an_old_build_and_move_a_workflow_from_it(
    client: Client, server: TemporalServer, build: Callable[[str], WorkerDeploymentConfig]
) -> None:
    old, new, gate = World(vm_count=1), World(vm_count=1), threading.Event()
    new.snapshots = old.snapshots

    def hold(_arg: Any) -> None:
        gate.wait(60)

    old.hooks["transfer_disk"] = hold
    async with running(client, old, build=build("1")):
        await make_current(server, "1")
        held = await start(client, "held")
        await until(lambda: old.calls["transfer_disk"])
        async with running(client, new, build=build("2")):
            await make_current(server, "2")
            told = await documented(server, "worker deployment describe-version", OLD="1")
            assert told.returncode == 0, told.stderr
            assert "draining" in told.stdout.lower()
            moved = await documented(server, "workflow update-options", ID="held")
            assert moved.returncode == 0, moved.stderr
            gate.set()
            report = JobReport.model_validate(await held.result())
        assert report.status == "Completed"
        assert await build_of(held) == "2"
        assert await build_of(client.get_workflow_handle(report.vms[0].child_id)) == "1"
    assert not old.snapshots
