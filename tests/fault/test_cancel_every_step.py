"""A cancel at each step of a VM and of a job, in the five ways, before the step begins and after it is done.

The steps are those of a clean run's history. In one job each VM is held at a step of its own; nothing is left of any,
no foreign snapshot is touched, and each is Cancelled, unless its index was being written when the cancel came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from lab.datacentre import MEDIA_AGENT, VM_GROUP, DataCentre
from lab.proof import Witness
from safehaul.messages.progress import JobProgress
from tests.e2e.site import report_of, run_job
from tests.fault.held_worker import can_be_held
from tests.fault.histories import Past, past_of
from tests.fault.holding import VMS, Holds, holding_data_centre
from tests.fault.test_cancel_latency import OF_ONE_VM, OF_THE_JOB, true_ends
from workers.converter import DATA_CONVERTER

pytestmark = pytest.mark.slow
ONE_VM: dict[str, Any] = {
    "vcenter": "lab",
    "media_agent": MEDIA_AGENT,
    "rules": [{"name": "vm-00"}],
    "min_free_bytes": "1 MiB",
}
NEVER = 1 << 30
"""Number of an event that did not happen."""
REPORTING = ("write_reports", "close_job")


@dataclass
class Held:
    """A data centre, and the steps of a clean run in it."""

    lab: DataCentre
    holds: Holds
    of_a_vm: list[str]
    of_a_job: list[str]

    def each_at_its_own(self) -> dict[str, str]:
        """VM → step."""
        return {f"vm-{number:02}": step for number, step in enumerate(self.of_a_vm)}


@pytest.fixture(scope="module")
def held() -> Iterator[Held]:
    with holding_data_centre() as (lab, holds):
        report = run_job(lab, "clean")
        assert report["status"] == "Completed"

        async def steps() -> tuple[list[str], list[str]]:
            client = await connect(lab)
            vm = await past_of(client, report["vms"][0]["child_id"])
            return vm.steps, (await past_of(client, "clean")).steps

        of_a_vm, of_a_job = asyncio.run(steps())
        assert {"create_snapshot", "transfer_disk", "remove_snapshot", "write_index"} < set(of_a_vm)
        assert len(of_a_vm) <= VMS
        yield Held(lab, holds, of_a_vm, of_a_job)


async def connect(lab: DataCentre) -> Client:
    return await Client.connect(lab.temporal.address, data_converter=DATA_CONVERTER)


async def begin(
    client: Client, name: str, group: str | dict[str, Any] = VM_GROUP
) -> WorkflowHandle[object, object]:
    return await client.start_workflow("BackupJob", {"vm_group": group}, id=name, task_queue="commserve")


async def children_of(job: WorkflowHandle[object, object], names: set[str]) -> dict[str, str]:
    """VM → the id of its workflow, of the running VMs."""
    progress = JobProgress.model_validate(await job.query("progress"))
    found = {vm.name: vm.child_id for vm in progress.running if vm.name in names}
    assert found.keys() == names
    return found


async def told_of_their_cancel(client: Client, ids: list[str]) -> None:
    deadline = time.monotonic() + 30
    for child in ids:
        while not (await past_of(client, child)).cancel_asked:
            assert time.monotonic() < deadline, "a VM is not told of its cancel"
            await asyncio.sleep(0.2)


async def ended(client: Client, workflow_id: str) -> Past:
    with suppress(WorkflowFailureError):
        await client.get_workflow_handle(workflow_id).result()
    return await past_of(client, workflow_id)


@pytest.mark.parametrize("way", [*OF_ONE_VM, *OF_THE_JOB])
@pytest.mark.parametrize("phase", ["before", "after"])
async def test_a_cancel_at_any_step_of_a_vm(held: Held, phase: str, way: str) -> None:
    lab, steps = held.lab, held.each_at_its_own()
    witness = Witness(lab.hosts, lab.state / "datastores")
    client = await connect(lab)
    name = f"cancel-{phase}-{way.replace(' ', '-')}"
    with held.holds.at(steps, phase):
        job = await begin(client, name)
        await asyncio.to_thread(held.holds.all_held)
        children = await children_of(job, set(steps))
        if way == "signal to the job":
            await job.signal("cancel")
        elif way == "cancel of the job":
            await job.cancel()
        for vm, child in children.items():
            if way == "cancel_vm":
                await job.signal("cancel_vm", {"vm": vm})
            elif way == "signal to the VM":
                await client.get_workflow_handle(child).signal("cancel")
            elif way == "cancel of the VM":
                await client.get_workflow_handle(child).cancel()
        await told_of_their_cancel(client, list(children.values()))
    pasts = {vm: await ended(client, child) for vm, child in children.items()}
    found = {steps[vm]: past.status for vm, past in pasts.items()}
    assert [vm for vm, past in pasts.items() if past.status not in true_ends(past)] == []
    assert {step for step, status in found.items() if status == "COMPLETED"} == {"write_index", "ask_for_vm"}
    job_past = await ended(client, name)
    assert job_past.status == ("CANCELED" if way in OF_THE_JOB else "COMPLETED")
    if way in OF_ONE_VM:
        told = {vm["name"]: vm["status"] for vm in report_of(lab, name)["vms"]}
        assert {vm: told[vm] for vm in steps} == {
            vm: "Completed" if past.status == "COMPLETED" else "Cancelled" for vm, past in pasts.items()
        }
    assert witness.problems() == []


@pytest.mark.parametrize("way", OF_THE_JOB)
async def test_a_cancel_at_any_step_of_the_job(held: Held, way: str) -> None:
    """From the report (step 17) on a job is what it reports, and a signal is not passed on to the server any more."""
    lab = held.lab
    witness = Witness(lab.hosts, lab.state / "datastores")
    client = await connect(lab)
    found: dict[str, str] = {}
    for step in [step for step in held.of_a_job if step in can_be_held()]:
        name = f"cancel-at-{step.replace('_', '-')}-{OF_THE_JOB.index(way)}"
        held.holds.hold(step, "before", name)
        try:
            job = await begin(client, name, ONE_VM)
            await asyncio.to_thread(held.holds.all_held)
            await (job.signal("cancel") if way == "signal to the job" else job.cancel())
            if way != "signal to the job" or step not in REPORTING:
                await told_of_their_cancel(client, [name])
        finally:
            held.holds.release()
        past = await ended(client, name)
        reporting = min(past.scheduled(step) or NEVER for step in REPORTING)
        found[step] = past.status
        in_time = 0 < past.cancel_asked < reporting
        assert in_time == (step not in REPORTING), step
        assert past.status == ("CANCELED" if in_time else "COMPLETED"), step
        assert witness.problems() == [], step
    assert {"discover", "take_lease", "prepare_node", "distribute", "load_page", "close_job"} <= set(found)
