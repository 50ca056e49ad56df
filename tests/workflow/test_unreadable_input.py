"""Goal: whatever bytes come as input, a workflow refuses them at once and in words, and a job goes on undisturbed.

The SDK decodes an input before the workflow runs, and a task that fails there is tried again for ever: the test looks
into the history that no task failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from lab.temporal import TemporalServer
from safehaul.messages.job import JobReport
from tests.workflow.conftest import running
from tests.workflow.world import World
from workers.converter import DATA_CONVERTER
from workflows.backup_job import BackupJob
from workflows.catalogue import type_names

REQUEST = {"vm_group": "demo"}
UNHANDLED_COMMAND = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
LEVELS = (200, 1_000, 10_000)
"""Pydantic's reader takes two hundred."""
JSON = b"json/plain"


def _raw(data: bytes, encoding: bytes = JSON) -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding}, data=data))


def _lists(levels: int) -> RawValue:
    return _raw(b'{"vm_group": {"rules": ' + b"[" * levels + b"]" * levels + b"}}")


def _objects(levels: int) -> RawValue:
    return _raw(b'{"backup": ' * levels + b"1" + b"}" * levels)


UNREADABLE: dict[str, tuple[RawValue, str]] = {
    **{f"lists {levels}": (_lists(levels), "stand too deep inside each other") for levels in LEVELS},
    **{f"objects {levels}": (_objects(levels + 2), "stand too deep inside each other") for levels in LEVELS},
    "no JSON": (_raw(b'{"vm_group": '), "Invalid JSON"),
    "no text": (_raw(b'"\xff\xfe"'), "Invalid JSON"),
    "nothing": (_raw(b""), "Invalid JSON"),
    "another encoding": (_raw(b"?", b"binary/encrypted"), "Unknown payload encoding binary/encrypted"),
    "an encoding that is no text": (_raw(b"?", b"\xff"), "UnicodeDecodeError"),
    "null with something": (_raw(b"x", b"binary/null"), "could not be converted"),
}


@pytest.fixture
async def client(temporal: TemporalServer) -> Client:
    """A client, and so workers, with the converter of safehaul's own processes."""
    return await Client.connect(temporal.address, data_converter=DATA_CONVERTER)


async def _failed_tasks(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """Without those that the server refuses because something came in while they were done."""
    history = await handle.fetch_history()
    return [
        event.workflow_task_failed_event_attributes.failure.message
        for event in history.events
        if event.HasField("workflow_task_failed_event_attributes")
        and event.workflow_task_failed_event_attributes.cause != UNHANDLED_COMMAND
    ]


async def _refused(client: Client, kind: str, name: str, value: RawValue) -> ApplicationError:
    handle = await client.start_workflow(kind, args=[value], id=name, task_queue="commserve")
    with pytest.raises(WorkflowFailureError) as ended:
        await asyncio.wait_for(handle.result(), 20)
    assert await _failed_tasks(handle) == []
    assert isinstance(ended.value.cause, ApplicationError)
    return ended.value.cause


@pytest.mark.parametrize("kind", type_names())
async def test_an_input_that_cannot_be_read_fails_the_workflow_at_once(
    client: Client, job_id: str, kind: str
) -> None:
    async with running(client, World(vm_count=0)):
        for number, (value, says) in enumerate(UNREADABLE.values()):
            cause = await _refused(client, kind, f"{job_id}-{number}", value)
            assert cause.type == "InvalidInput"
            assert cause.message.startswith("the input cannot be read: "), cause.message
            assert says in cause.message
            assert "an input looks like" in cause.message


@pytest.mark.parametrize("levels", [33, 100, 190])
async def test_a_group_that_can_just_be_read_is_refused_for_its_depth(
    client: Client, job_id: str, levels: int
) -> None:
    async with running(client, World(vm_count=0)):
        cause = await _refused(client, "BackupJob", job_id, _lists(levels))
    assert "vm_group: is nested more than 32 deep" in cause.message


async def test_an_unknown_type_is_told_whatever_its_input_is(client: Client, job_id: str) -> None:
    async with running(client, World(vm_count=0)):
        cause = await _refused(client, "BackupJobb", job_id, _lists(10_000))
    assert "workflow type 'BackupJobb' does not exist" in cause.message


async def test_a_thousand_wrong_fields_are_told_in_a_message_that_the_server_takes(
    client: Client, job_id: str
) -> None:
    """Goal: a failure's message must not be larger than a failure may be, or its task would fail for ever."""
    fields = ", ".join(f'"{"x" * 1000}{number}": 1' for number in range(1000))
    async with running(client, World(vm_count=0)):
        cause = await _refused(client, "RestoreVm", job_id, _raw(f"{{{fields}}}".encode()))
    assert "and 981 more" in cause.message
    assert len(cause.message) < 10_000


async def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


async def test_signals_that_cannot_be_read_are_shown_and_harm_nothing(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    going_on: list[bool] = []
    world.hooks["transfer_disk"] = lambda _arg: _wait_for(going_on)
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        await _until(lambda: world.calls["transfer_disk"])
        for name in ("cancel_vm", "vm_finished", "halt"):
            for value, _ in UNREADABLE.values():
                await handle.signal(name, value)
            shown = "\n".join((await handle.query(BackupJob.progress)).rejected_signals)
            assert f"signal {name}" in shown.replace("'", "")
            assert name != "cancel_vm" or "its input cannot be read: " in shown
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("request_cancel_vm", _lists(10_000))
        assert "its input cannot be read" in str(refused.value.cause)
        going_on.append(True)
        report = JobReport.model_validate(await handle.result())
        assert await _failed_tasks(handle) == []
    assert report.status == "Completed"


@pytest.mark.parametrize("how", ["signal", "update"])
@pytest.mark.parametrize("levels", LEVELS)
async def test_a_cancel_counts_whatever_comes_with_it(
    client: Client, job_id: str, how: str, levels: int
) -> None:
    world = World(vm_count=1)
    world.hooks["transfer_disk"] = lambda _arg: time.sleep(1)
    async with running(client, world):
        handle = await client.start_workflow("BackupJob", REQUEST, id=job_id, task_queue="commserve")
        await _until(lambda: world.calls["transfer_disk"])
        if how == "signal":
            await handle.signal("cancel", _lists(levels))
        else:
            assert "is being cancelled" in await handle.execute_update("request_cancel", _lists(levels))
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), 30)
        assert (await handle.describe()).status.name == "CANCELED"  # type: ignore[union-attr] # it has one: it has ended
        assert await _failed_tasks(handle) == []
    assert not world.snapshots


async def test_a_pause_counts_whatever_comes_with_it(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    async with running(client, world):
        handle = await client.start_workflow(
            "BackupJob",
            REQUEST,
            id=job_id,
            task_queue="commserve",
            start_signal="pause",
            start_signal_args=[_lists(10_000)],
        )
        await _until(lambda: world.calls["load_page"])
        assert (await handle.query(BackupJob.progress)).paused_since is not None
        await handle.signal("resume", _lists(10_000))
        report = JobReport.model_validate(await handle.result())
        assert await _failed_tasks(handle) == []
    assert report.status == "Completed"


async def test_signals_before_the_job_is_open_are_looked_at_too(client: Client, job_id: str) -> None:
    """Goal: a signal that comes with the start is handled before `run` begins, and must not fail that task."""
    async with running(client, World(vm_count=1)):
        handle = await client.start_workflow(
            "BackupJob",
            REQUEST,
            id=job_id,
            task_queue="commserve",
            start_signal="cancel_vm",
            start_signal_args=[_objects(10_000)],
        )
        report = JobReport.model_validate(await handle.result())
        rejected = (await handle.query(BackupJob.progress)).rejected_signals
        assert await _failed_tasks(handle) == []
    assert report.status == "Completed"
    assert any("its input cannot be read" in each for each in rejected)


def _wait_for(flag: list[bool]) -> None:
    deadline = time.monotonic() + 30
    while not flag and time.monotonic() < deadline:
        time.sleep(0.02)
