"""A job that is paused: what was read is not read again, and no snapshot outlasts the pause's limit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.proof import Witness
from lab.site import DiskSpec
from tests.e2e.site import (
    data_centre,
    differences,
    report_of,
    restored_images,
    results_of,
    start_job,
    steps_of,
    until,
    vm_of,
    wait_end,
)
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow
MIB = 2**20
MIDDLE = 24 * MIB
LATER = 40 * MIB
HEARD_WITHIN_S = 3.0
"""A step hears of a pause with the answer to its next heartbeat, and heartbeats are sent two seconds apart."""
HOLD_S = 8


@pytest.fixture
def lab() -> Iterator[DataCentre]:
    """Two VMs and one stream; the first one's disk, which nobody writes to, is held in the middle."""
    one, two = small_site().vms
    disk = DiskSpec(size_bytes=48 * MIB, content="random")
    site = small_site().model_copy(
        update={"vms": [one.model_copy(update={"disks": [disk], "guest_rate": 0}), two]}
    )
    with data_centre(site, nodes=("node-1",), streams=1, gate=True) as started:
        started.start_workers()
        yield started


def _group(**options: Any) -> dict[str, Any]:
    rules = [{"name": "one"}, {"name": "two"}]
    return {
        "vcenter": "lab",
        "media_agent": MEDIA_AGENT,
        "rules": rules,
        "order": "listed",
        "min_free_bytes": "1 MiB",
        **options,
    }


def _progress(lab: DataCentre, job: str) -> dict[str, Any]:
    return dict(json.loads(lab.safehaul("job", "show", job, "--json"))["progress"])


def _paused_in_the_middle(lab: DataCentre, job: str, group: dict[str, Any]) -> str:
    """Start a job and pause it while the first VM is read; the id of that VM's workflow."""
    lab.gate.hold("one-flat.vmdk", MIDDLE)
    start_job(lab, job, group)
    until(lambda: lab.gate.held)
    (running,) = _progress(lab, job)["running"]
    assert "is paused" in lab.safehaul("job", "pause", job)
    # The rest of so small a disk would be read before the step has heartbeated once.
    lab.gate.hold("one-flat.vmdk", LATER)
    time.sleep(HEARD_WITHIN_S)
    lab.gate.release()
    return str(running["child_id"])


def _held(lab: DataCentre) -> list[str]:
    """Names of VMs that hold a snapshot of ours."""
    return [
        vm.name
        for vm in lab.hosts.state().vms
        if any(item.name.startswith("safehaul ") for item in vm.snapshots)
    ]


def _pending(lab: DataCentre, child: str) -> list[str]:
    shown = lab.temporal.cli("workflow", "describe", "--workflow-id", child, "--output", "json")
    return [item["activityType"]["name"] for item in json.loads(shown.stdout).get("pendingActivities", [])]


def test_a_vm_goes_on_where_it_was_and_reads_nothing_twice(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    child = _paused_in_the_middle(lab, "paused", _group())
    until(lambda: not _pending(lab, child))
    served = lab.served_bytes()
    time.sleep(3.0)
    assert _held(lab) == ["one"]
    assert lab.served_bytes() == served, "nothing is read while the job is paused"
    told = _progress(lab, "paused")
    assert (told["waiting"], len(told["running"]), bool(told["paused_since"])) == (1, 1, True)
    assert "goes on" in lab.safehaul("job", "resume", "paused")
    assert wait_end(lab, "paused") == "COMPLETED"
    vm = vm_of(report_of(lab, "paused"), "one")
    assert vm["status"] == "Completed"
    (transfer,) = results_of(lab, child, "transfer_disk")
    assert transfer["bytes_resumed"] >= MIDDLE - 8 * MIB, transfer
    assert len(results_of(lab, child, "create_snapshot")) == 1
    assert differences(lab, vm, restored_images(lab, vm)) == []
    assert witness.problems() == []


def test_a_snapshot_does_not_outlast_the_pauses_limit_and_the_vm_begins_anew(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    child = _paused_in_the_middle(lab, "long", _group(pause_hold_s=HOLD_S))
    assert _held(lab) == ["one"]
    until(lambda: not _held(lab), HOLD_S + 10)
    until(lambda: witness.problems() == [])
    until(lambda: "leave_unfinished" in _done(lab, child))
    assert len(_progress(lab, "long")["running"]) == 1
    lab.safehaul("job", "resume", "long")
    assert wait_end(lab, "long") == "COMPLETED"
    vm = vm_of(report_of(lab, "long"), "one")
    assert vm["status"] == "Completed"
    assert "the pause lasts longer than a snapshot is held for it" in vm["warnings"][0]
    assert len(results_of(lab, child, "create_snapshot")) == 2
    assert vm["disks"][0]["bytes_deduplicated"] > 0, "what was stored before the pause is found"
    assert differences(lab, vm, restored_images(lab, vm)) == []
    assert witness.problems() == []


def _done(lab: DataCentre, child: str) -> list[str]:
    return [step.name for step in steps_of(lab, child)]
