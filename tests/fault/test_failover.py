"""An access node dies while it reads a disk and never comes back: the VM goes on on another one (steps 8 to 12)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

import pytest

from lab.datacentre import DataCentre
from lab.proof import Witness
from tests.crash.play import IN_FLIGHT_BYTES
from tests.e2e.site import (
    data_centre,
    differences,
    report_of,
    restored_images,
    results_of,
    start_job,
    steps_of,
    until,
    wait_end,
)
from tests.e2e.test_cancel import MIB, small_site

pytestmark = pytest.mark.slow
PACK_BYTES = MIB
DISK_BYTES = 64 * MIB
LATE = 48 * MIB
"""An offset in the disks: most of them has been read and stored when it is reached."""
ELSEWHERE_WITHIN_S = 30.0


@pytest.fixture
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), streams=2, gate=True) as started:
        started.start_workers()
        yield started


def test_a_vm_goes_on_on_another_node_and_reads_no_more_than_a_pack_again(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.gate.hold("two-flat.vmdk", LATE)
    start_job(lab, "orphaned")
    until(lambda: lab.gate.held == {"two-flat.vmdk"}, 60)
    (running,) = (vm for vm in _progress(lab, "orphaned") if vm["name"] == "two")
    victim = running["node"]
    killed_at = datetime.now().astimezone()
    lab.workers[f"access-node.{victim}"].kill()
    lab.gate.release()
    wait_end(lab, "orphaned", 150)
    report = report_of(lab, "orphaned")
    vm = next(item for item in report["vms"] if item["name"] == "two")
    assert vm["status"] == "Completed", vm["reason"]
    assert vm["node"] != victim
    assert any(f"access node {victim} stopped answering" in line for line in vm["warnings"])
    steps = steps_of(lab, vm["child_id"])
    assert [step.name for step in steps].count("create_snapshot") == 1
    elsewhere = next(step for step in steps if step.name == "check_transport" and victim not in step.queue)
    silent_s = (elsewhere.scheduled.astimezone() - killed_at).total_seconds()
    print(f"on another node {silent_s:.1f} s after the kill")
    assert silent_s <= ELSEWHERE_WITHIN_S
    (disk,) = vm["disks"]
    assert 0 <= disk["bytes_read"] - DISK_BYTES < PACK_BYTES, "no more than a pack is read again"
    (transfer,) = (
        result
        for result in results_of(lab, vm["child_id"], "transfer_disk")
        if result["disk_key"] == disk["key"]
    )
    assert transfer["bytes_resumed"] >= LATE - IN_FLIGHT_BYTES - PACK_BYTES, (
        "what was durable is not read again"
    )
    assert differences(lab, vm, restored_images(lab, vm)) == []
    assert witness.problems() == []


def test_a_node_that_was_taken_for_dead_rejoins_and_its_zombie_harms_nothing(lab: DataCentre) -> None:
    """It is stopped, not killed: when it goes on, its transfer still runs and writes, but nobody counts on it."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.gate.hold("one-flat.vmdk", LATE)
    start_job(lab, "stopped")
    until(lambda: lab.gate.held == {"one-flat.vmdk"}, 60)
    (running,) = (vm for vm in _progress(lab, "stopped") if vm["name"] == "one")
    victim = lab.workers[f"access-node.{running['node']}"]
    victim.freeze()
    lab.gate.release()
    until(
        lambda: any(vm["node"] != running["node"] for vm in _progress(lab, "stopped") if vm["name"] == "one"),
        60,
    )
    victim.thaw()
    wait_end(lab, "stopped", 150)
    report = report_of(lab, "stopped")
    assert [vm["status"] for vm in report["vms"]] == ["Completed", "Completed"], report["vms"]
    for vm in report["vms"]:
        assert differences(lab, vm, restored_images(lab, vm)) == []
    assert witness.problems() == []
    start_job(lab, "afterwards")
    wait_end(lab, "afterwards", 120)
    assert {vm["node"] for vm in report_of(lab, "afterwards")["vms"]} == set(lab.nodes), (
        "the node has rejoined"
    )
    assert witness.problems() == []


def _progress(lab: DataCentre, job: str) -> list[dict[str, str]]:
    asked = lab.temporal.cli(
        "workflow", "query", "--workflow-id", job, "--type", "progress", "--output", "json"
    )
    answers = json.loads(asked.stdout)["queryResult"] if asked.returncode == 0 else []
    return list(answers[0]["running"]) if answers else []
