"""RestoreVm and RestoreDisk over trivial steps, on a real server: the order, the undoing, the report, the input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError

from safehaul.messages.restore import RestoreReport
from tests.workflow.conftest import running
from tests.workflow.world import World, wait_for_cancel

NEW = {"backup": "vc.1/b1", "name": "web restored", "datastore": "ds"}
IN_PLACE = {"backup": "vc.1/b1", "in_place": True, "confirm": "web"}
DISK = {"backup": "vc.1/b1", "disk": "2000", "to_vm": "web"}
ALL = [("RestoreVm", NEW), ("RestoreVm", IN_PLACE), ("RestoreDisk", DISK)]
ORDER = {
    "new": ["prepare_restore", "restore_disk", "write_vm_files", "register_vm", "finish_vm"],
    "in-place": ["prepare_in_place", "restore_disk", "switch_disks"],
    "disk": ["prepare_disk", "restore_disk", "switch_disks"],
}
IDS = list(ORDER)


async def start(client: Client, kind: str, job_id: str, *args: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(kind, args=list(args), id=job_id, task_queue="commserve")


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        await asyncio.sleep(0.02)


def steps(world: World) -> list[str]:
    return list(dict.fromkeys(name for name, _ in world.order if name != "ping" and "open" not in name))


def refuse(_arg: Any) -> None:
    raise ApplicationError("the datastore is gone", type="NotFoundError", non_retryable=True)


async def failure(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as ended:
        await handle.result()
    assert isinstance(ended.value.cause, ApplicationError), ended.value.cause
    return ended.value.cause


@pytest.mark.parametrize(("kind", "request_"), ALL, ids=IDS)
async def test_every_byte_is_compared_before_the_vm_is_touched(
    client: Client, job_id: str, kind: str, request_: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    world = World()
    async with running(client, world):
        handle = await start(client, kind, job_id, request_)
        report = RestoreReport.model_validate(await handle.result())
        progress = await handle.query("progress")
    which = request.node.callspec.id
    assert steps(world) == ORDER[which]
    assert (report.kind, report.status, report.reason) == (
        "new-vm" if which == "new" else which,
        "Restored",
        "",
    )
    assert len(report.disks) == progress["disks_done"] == (1 if which == "disk" else 2)
    assert progress["bytes_done"] == progress["bytes_total"] > 0
    kept = [item.removed for item in report.old_disks]
    assert kept == ([False, False] if which == "in-place" else [])


@pytest.mark.parametrize(("kind", "request_"), ALL, ids=IDS)
async def test_whichever_step_fails_all_is_undone_and_the_report_says_why(
    client: Client, job_id: str, kind: str, request_: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    which = request.node.callspec.id
    undo = "discard_restore" if which == "new" else "discard_disks"
    world = World()
    async with running(client, world):
        for number, step in enumerate(ORDER[which]):
            world.hooks = {step: refuse}
            world.order.clear()
            error = await failure(await start(client, kind, f"{job_id}-{number}", request_))
            report = RestoreReport.model_validate(error.details[0])
            assert (error.type, report.status, report.reason) == (
                "NotFoundError",
                "Failed",
                "the datastore is gone",
            )
            # A preparation in place writes nothing, so nothing is undone after it.
            undone = step not in {"prepare_in_place", "prepare_disk"}
            assert steps(world) == [*ORDER[which][: number + 1], *([undo] if undone else [])]


@pytest.mark.parametrize(("kind", "request_"), ALL, ids=IDS)
@pytest.mark.parametrize("heeds", [True, False])
async def test_a_cancel_while_a_disk_is_written_undoes_all(
    client: Client, job_id: str, kind: str, request_: dict[str, Any], heeds: bool
) -> None:
    """Also when the step ignores the cancel and returns a result."""
    world = World()

    def write(_arg: Any) -> None:
        wait_for_cancel(20)
        if heeds and activity.is_cancelled():
            raise CancelledError("the step was asked to stop")

    world.hooks["restore_disk"] = write
    async with running(client, world):
        handle = await start(client, kind, job_id, request_)
        await until(lambda: world.calls["restore_disk"])
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
    assert isinstance(ended.value.cause, CancelledError)
    assert world.calls["discard_restore"] + world.calls["discard_disks"] == 1
    assert world.calls["restore_disk"] == 1
    assert not world.calls["switch_disks"] + world.calls["register_vm"]


async def test_a_second_cancel_does_not_stop_the_undoing(client: Client, job_id: str) -> None:
    world = World()
    undone: list[bool] = []

    def slow(_arg: Any) -> None:
        time.sleep(1.5)
        undone.append(True)

    world.hooks |= {"restore_disk": lambda _arg: wait_for_cancel(20), "discard_disks": slow}
    async with running(client, world):
        handle = await start(client, "RestoreVm", job_id, IN_PLACE)
        await until(lambda: world.calls["restore_disk"])
        await handle.cancel()
        await until(lambda: world.calls["discard_disks"])
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert undone == [True]


async def test_a_cancel_once_the_vm_has_its_disks_skips_what_is_left_and_says_so(
    client: Client, job_id: str
) -> None:
    world = World()
    world.hooks["switch_disks"] = lambda _arg: wait_for_cancel(20)
    async with running(client, world):
        request = IN_PLACE | {"power_on": True, "delete_old_disks": True}
        handle = await start(client, "RestoreVm", job_id, request)
        await until(lambda: world.calls["switch_disks"])
        await handle.cancel()
        report = RestoreReport.model_validate(await handle.result())
    assert (report.status, report.powered_on) == ("Partial", False)
    assert "the old disks were not deleted" in report.reason
    assert "the VM was not powered on" in report.reason
    assert not world.calls["discard_disks"] + world.calls["power_on_vm"] + world.calls["remove_old_disks"]


async def test_power_and_old_disks_come_last_and_their_failure_makes_it_partial(
    client: Client, job_id: str
) -> None:
    world = World()
    world.hooks["power_on_vm"] = refuse
    async with running(client, world):
        request = IN_PLACE | {"power_on": True, "delete_old_disks": True}
        report = RestoreReport.model_validate(
            await (await start(client, "RestoreVm", job_id, request)).result()
        )
    assert steps(world)[-3:] == ["switch_disks", "remove_old_disks", "power_on_vm"]
    assert (report.status, report.reason) == (
        "Partial",
        "the VM was not powered on: the datastore is gone",
    )
    assert [item.removed for item in report.old_disks] == [True, True]
    assert not world.calls["discard_disks"]


async def test_what_the_nodes_own_clean_up_cannot_do_another_does(client: Client, job_id: str) -> None:
    world = World()
    world.hooks |= {"switch_disks": refuse, "discard_disks": _refuse_once()}
    async with running(client, world):
        error = await failure(await start(client, "RestoreVm", job_id, IN_PLACE))
    assert world.calls["discard_disks"] == 2
    assert "left in" not in error.message


async def test_what_nobody_can_clean_up_is_named(client: Client, job_id: str) -> None:
    world = World()
    world.hooks |= {"switch_disks": refuse, "discard_disks": refuse}
    async with running(client, world):
        error = await failure(await start(client, "RestoreVm", job_id, IN_PLACE))
    assert "what was written is left in [ds] vm" in error.message


def _refuse_once() -> Callable[[Any], None]:
    calls: list[bool] = []

    def hook(arg: Any) -> None:
        calls.append(True)
        if len(calls) == 1:
            refuse(arg)

    return hook


WRONG: list[tuple[str, list[Any], str]] = [
    ("RestoreVm", [], "takes an input"),
    ("RestoreVm", [NEW, NEW], "takes one input, got 2"),
    ("RestoreVm", [{"backup": "vc.1/b1"}], "name: a restore as a new VM needs it"),
    ("RestoreVm", [{"backup": "vc.1/b1", "name": "x"}], "datastore: a restore as a new VM"),
    ("RestoreVm", [NEW | {"mac": "same"}], "mac: Input should be 'new' or 'keep'"),
    ("RestoreVm", [NEW | {"networks": {"a": ""}}], "networks.a"),
    ("RestoreVm", [NEW | {"netwroks": {}}], "netwroks: Extra inputs are not permitted"),
    ("RestoreVm", [NEW | {"delete_old_disks": True}], "delete_old_disks: belongs to in_place only"),
    ("RestoreVm", [NEW | {"name": "n" * 81}], "name: String should have at most 80"),
    ("RestoreVm", [{"backup": "vc.1/b1", "in_place": True}], "confirm: a restore in place needs"),
    ("RestoreVm", [IN_PLACE | {"networks": {"a": "b"}}], "networks: a restore in place keeps"),
    ("RestoreVm", [IN_PLACE | {"connect": True}], "connect: a restore in place leaves"),
    ("RestoreVm", [IN_PLACE | {"mac": "keep"}], "mac: a restore in place leaves"),
    ("RestoreDisk", [{"backup": "vc.1/b1", "disk": "2000"}], "to_vm: Field required"),
    ("RestoreDisk", [DISK | {"disk": 2000}], "disk: Input should be a valid string"),
]


async def test_a_wrong_input_fails_at_once_and_names_the_field(client: Client, job_id: str) -> None:
    async with running(client, World()):
        for number, (kind, inputs, says) in enumerate(WRONG):
            error = await failure(await start(client, kind, f"{job_id}-{number}", *inputs))
            assert (error.type, says in error.message) == ("InvalidInput", True), error.message


async def test_what_a_step_finds_wrong_with_the_input_is_invalid_input_too(
    client: Client, job_id: str
) -> None:
    def wrong(_arg: Any) -> None:
        raise ApplicationError("networks: no 'x'", type="InvalidInputError", non_retryable=True)

    world = World()
    world.hooks["prepare_restore"] = wrong
    async with running(client, world):
        error = await failure(await start(client, "RestoreVm", job_id, NEW))
    assert (error.type, error.message) == ("InvalidInput", "networks: no 'x'")
