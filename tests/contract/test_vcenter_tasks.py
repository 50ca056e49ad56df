"""Goal: a task is waited for to its end, whichever it is, and events tell what was done and by whom."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from safehaul.errors import BusyError, NotFoundError, SafehaulError
from safehaul.vsphere import registration, tasks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.faults import moref
from tests.contract.snapshot_calls import NAME, OURS, remove_all
from tests.contract.vcenter_server import ADMINISTRATOR, PLAIN_VM, USER, Ability, Server, vm_named


@pytest.fixture(scope="module")
def vcenter(server: Server) -> VCenter:
    return server.administrator()


def start(vcenter: VCenter, vm: str, method: str) -> str:
    """Starts a task of a VM that takes no arguments and returns its moref."""
    return moref(vcenter.mutate(lambda session: getattr(session.managed(vim.VirtualMachine, vm), method)()))


def events(vcenter: VCenter, vm: str) -> list[Any]:
    """What happened to a VM, oldest first; also to one that is gone, which cannot be named in a filter."""
    newest = vim.event.EventFilterSpec(maxCount=1000)
    found = vcenter.read(lambda session: session.content.eventManager.QueryEvents(newest))
    own = [each for each in found if each.vm is not None and moref(each.vm.vm) == vm]
    return sorted(own, key=lambda event: event.key)


def test_a_task_that_succeeds_gives_its_result(server: Server, vcenter: VCenter) -> None:
    vm = vm_named(server, PLAIN_VM).moref
    beats: list[int | None] = []
    task = moref(
        vcenter.mutate(
            lambda session: session.managed(vim.VirtualMachine, vm).CreateSnapshot_Task(
                name=NAME, description=OURS, memory=False, quiesce=False
            )
        )
    )
    snapshot = tasks.wait(vcenter, task, beats.append, timeout_s=30)
    assert isinstance(snapshot, vim.vm.Snapshot)
    assert beats
    info = tasks.task_info(vcenter, task)
    assert (info.state, info.error) == ("success", None)
    assert "createSnapshot" in info.what
    assert task in info.what
    # Waiting again for what has ended is no mistake.
    assert moref(tasks.wait(vcenter, task)) == moref(snapshot)
    remove_all(vcenter, vm)


def test_a_task_that_fails_raises_its_fault(server: Server, vcenter: VCenter) -> None:
    vm = vm_named(server, "off").moref
    with pytest.raises(SafehaulError) as caught:
        # A server may refuse the call itself, or let the task fail.
        tasks.wait(vcenter, start(vcenter, vm, "PowerOffVM_Task"), timeout_s=30)
    assert isinstance(caught.value, BusyError)
    assert "InvalidPowerState" in str(caught.value)


def test_an_unknown_task_is_not_found(server: Server, vcenter: VCenter) -> None:
    for ask in (tasks.wait, tasks.task_info):
        with pytest.raises(NotFoundError):
            ask(vcenter, "task-999999")
    tasks.cancel(vcenter, "task-999999")


def test_a_task_that_has_ended_is_nothing_to_cancel(server: Server, vcenter: VCenter) -> None:
    vm = vm_named(server, "split").moref
    task = start(vcenter, vm, "PowerOffVM_Task")
    tasks.wait(vcenter, task, timeout_s=30)
    tasks.cancel(vcenter, task)
    assert tasks.running_snapshot_tasks(vcenter, vm) == []
    assert tasks.wait_out_snapshot_tasks(vcenter, vm) == 0


def test_events_tell_a_power_off_and_who_did_it(server: Server, vcenter: VCenter) -> None:
    vm = vm_named(server, "web 100% / blue")
    before = len(events(vcenter, vm.moref))
    registration.power_off(vcenter, vm.moref)
    told = events(vcenter, vm.moref)[before:]
    off = next(event for event in told if isinstance(event, vim.event.VmPoweredOffEvent))
    assert off.userName in {ADMINISTRATOR, USER}
    assert off.fullFormattedMessage
    assert off.createdTime.tzinfo is not None


def test_events_tell_a_registration_and_its_end(server: Server, vcenter: VCenter) -> None:
    off = vm_named(server, "off")
    registration.unregister(vcenter, off.moref)
    assert any(isinstance(event, vim.event.VmRemovedEvent) for event in events(vcenter, off.moref))
    place = registration.find_place(vcenter, "gold")
    registered = registration.register(vcenter, place, off.vmx_path, off.name)
    kind = (
        vim.event.VmRegisteredEvent
        if Ability.REGISTRATION_EVENT in server.abilities
        else vim.event.VmCreatedEvent
    )
    assert any(isinstance(event, kind) for event in events(vcenter, registered))
