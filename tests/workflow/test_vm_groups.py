"""Goal: a job takes a whole group in place of a name, and what its rules and filters decide shows in its report."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError

from safehaul.messages.disks import DiskCriteria, DiskSelection
from safehaul.messages.job import DiscoverInput, Excluded, JobReport, OpenJobInput
from safehaul.messages.steps import CheckTransportInput
from tests.workflow.conftest import running
from tests.workflow.world import World
from workflows import policies

INLINE: dict[str, Any] = {
    "name": "adhoc",
    "vcenter": "vc",
    "media_agent": "ma",
    "rules": [{"all": [{"tag": "gold"}, {"not": {"name": "x", "ignore_case": True}}]}],
}


async def _run(client: Client, job_id: str, vm_group: Any) -> JobReport:
    job = await client.start_workflow("BackupJob", {"vm_group": vm_group}, id=job_id, task_queue="commserve")
    return JobReport.model_validate(await asyncio.wait_for(job.result(), 60))


async def test_a_whole_group_reaches_the_steps_that_need_it_and_names_the_job(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=1)
    opened: list[OpenJobInput] = []
    discovered: list[DiscoverInput] = []
    world.hooks["open_job"] = opened.append
    world.hooks["discover"] = discovered.append
    async with running(client, world):
        report = await _run(client, job_id, INLINE)
        described = await client.get_workflow_handle(job_id).describe()
    assert (report.status, report.vm_group) == ("Completed", "adhoc")
    assert [each.request.inline_group for each in opened] == [INLINE]
    assert [each.inline_group for each in discovered] == [INLINE]
    assert described.typed_search_attributes.get(policies.VM_GROUP) == "adhoc"


async def test_a_group_by_name_is_looked_up_where_it_is_needed(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    discovered: list[DiscoverInput] = []
    world.hooks["discover"] = discovered.append
    async with running(client, world):
        await _run(client, job_id, "test")
    assert [(each.settings.vm_group, each.inline_group) for each in discovered] == [("test", None)]


async def test_a_whole_group_that_is_wrong_fails_the_job_at_once_with_its_keys(
    client: Client, job_id: str
) -> None:
    world = World(vm_count=1)

    def refuse(_arg: OpenJobInput) -> None:
        # As the real step does (tests/unit/test_config_inline.py).
        raise ApplicationError("vm_group.rules[0]: …", type="InvalidInputError", non_retryable=True)

    world.hooks["open_job"] = refuse
    async with running(client, world):
        with pytest.raises(WorkflowFailureError) as ended:
            await _run(client, job_id, {**INLINE, "name": 7, "rules": [{"nmae": "x"}]})
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.message) == ("InvalidInputError", "vm_group.rules[0]: …")
    assert world.calls["open_job"] == 1


async def test_a_bomb_of_lists_fails_the_job_and_not_its_task_for_ever(client: Client, job_id: str) -> None:
    deep: Any = []
    for _ in range(60):
        deep = [deep]
    async with running(client, World(vm_count=1)):
        with pytest.raises(WorkflowFailureError) as ended:
            await _run(client, job_id, {**INLINE, "rules": deep})
    assert isinstance(ended.value.cause, ApplicationError)
    assert ended.value.cause.type == "InvalidInput"
    assert "nested more than 32 deep" in ended.value.cause.message


async def test_what_discovery_cannot_identify_is_failed_in_the_report(client: Client, job_id: str) -> None:
    world = World(vm_count=2)
    world.failed = [
        Excluded(name="twin a", vc_guid="vc.twin", reason="VC.GUID vc.twin belongs to several VMs"),
        Excluded(name="twin b", vc_guid="vc.twin", reason="VC.GUID vc.twin belongs to several VMs"),
        Excluded(name="lost", reason="the VM is orphaned"),
    ]
    async with running(client, world):
        report = await _run(client, job_id, "test")
    assert (report.status, report.totals.completed, report.totals.failed) == ("Partial", 2, 3)
    told = {vm.name: (vm.status, vm.reason) for vm in report.vms}
    assert told["twin b"] == ("Failed", "VC.GUID vc.twin belongs to several VMs")
    assert told["lost"] == ("Failed", "the VM is orphaned")
    assert world.calls["create_snapshot"] == 2


async def test_a_deselected_disk_is_told_and_leaves_the_vm_completed(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.transports = ["nas", "deselected"]
    selection = DiskSelection(exclude=[DiskCriteria(label="Hard disk 2")])
    world.options = world.options.model_copy(update={"disks": selection})
    asked: list[CheckTransportInput] = []
    world.hooks["check_transport"] = asked.append
    async with running(client, world):
        report = await _run(client, job_id, "test")
    (vm,) = report.vms
    assert (vm.status, vm.reason) == ("Completed", "")
    assert [(disk.label, disk.transport, disk.reason) for disk in vm.disks] == [
        ("Hard disk 1", "nas", ""),
        ("Hard disk 2", "deselected", "it is deselected"),
    ]
    # What nobody wanted is not counted as what there was to protect.
    assert vm.bytes_capacity == 1 << 20
    assert [each.disks for each in asked] == [selection]
    assert world.calls["transfer_disk"] == 1


async def test_a_disk_that_was_wanted_still_makes_it_partial(client: Client, job_id: str) -> None:
    world = World(vm_count=1)
    world.transports = ["nas", "deselected", "none"]
    async with running(client, world):
        report = await _run(client, job_id, "test")
    assert [(vm.status, vm.reason) for vm in report.vms] == [("Partial", "Hard disk 3: it is none")]


@pytest.mark.parametrize(
    ("transports", "says"),
    [
        (["deselected", "deselected"], "disk filters leave none of the disks of VM 'vm-00000': Hard disk 1"),
        (["deselected", "none"], "no disk of VM 'vm-00000' can go through the NAS transport"),
        ([], "no disk of VM 'vm-00000' can go through the NAS transport: no disks"),
    ],
)
async def test_a_vm_of_which_nothing_is_left_fails_without_a_snapshot_left(
    client: Client, job_id: str, transports: list[str], says: str
) -> None:
    world = World(vm_count=1)
    world.transports = transports
    async with running(client, world):
        with pytest.raises(WorkflowFailureError) as ended:
            await _run(client, job_id, "test")
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    report = JobReport.model_validate(cause.details[0])
    assert says in report.vms[0].reason
    assert not world.snapshots
