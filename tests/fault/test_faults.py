"""What goes wrong at a real site: a node killed, a privilege missing, a VM moved, a locked file, a wrong password."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from lab.datacentre import PASSWORD_VARIABLE, DataCentre
from lab.esx.api import FaultRule
from lab.proof import Witness
from lab.site import BACKUP_PRIVILEGES, BACKUP_USER
from tests.e2e.site import data_centre, queues_asked, report_of, run_job, start_job, vm_of, wait_end
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), streams=1) as started:
        started.start_workers()
        yield started


@pytest.fixture(autouse=True)
def _clean(lab: DataCentre) -> Iterator[None]:
    yield
    lab.hosts.clear_faults()
    lab.hosts.set_user(BACKUP_USER, BACKUP_PRIVILEGES)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_killed_access_nodes_vm_is_completed_on_the_other_node_and_no_snapshot_is_left(
    lab: DataCentre,
) -> None:
    """It dies while vCenter makes its snapshot, which the other node finds by its name."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", nth=None, times=2, seconds=3.0, phase="middle")
    )
    start_job(lab, "node-killed")
    _until(lambda: sum(task.state == "running" for task in lab.hosts.state().tasks) >= 2, 60)
    victim = lab.workers["access-node.node-2"]
    victim.kill()
    try:
        wait_end(lab, "node-killed", 240)
        report = report_of(lab, "node-killed")
        assert [(vm["status"], vm["node"]) for vm in report["vms"]] == [("Completed", "node-1")] * 2, report[
            "vms"
        ]
        (moved,) = (vm for vm in report["vms"] if vm["warnings"])
        assert "access node node-2 stopped answering" in moved["warnings"][0]
        assert witness.problems() == []
        asked = queues_asked(lab, moved["child_id"], "remove_snapshot")
        assert set(asked) == {"access-node.node-1"}, "nobody waits for a dead node again"
    finally:
        lab.start_worker("access-node", "node-2")
    assert run_job(lab, "after-the-kill")["status"] == "Completed"


def test_a_missing_privilege_is_named_and_nothing_is_left(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    privilege = "VirtualMachine.State.CreateSnapshot"
    lab.hosts.set_user(BACKUP_USER, [item for item in BACKUP_PRIVILEGES if item != privilege])
    report = run_job(lab, "no-privilege")
    assert report["status"] == "Failed"
    for vm in report["vms"]:
        assert privilege in vm["reason"], vm["reason"]
    assert witness.problems() == []


def test_a_locked_file_is_waited_for_and_the_vm_is_completed(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.add_fault(FaultRule(operation="RemoveSnapshot", effect="locked", vm="two", times=1))
    report = run_job(lab, "locked")
    assert vm_of(report, "two")["status"] == "Completed", vm_of(report, "two")["reason"]
    vm = vm_of(report, "two")
    shown = json.loads(lab.safehaul("backups", "show", f"{vm['vc_guid']}/{vm['backup_id']}", "--json"))
    assert shown["index"]["removal"]["consolidations"] >= 1
    assert witness.problems() == []


def test_a_vcenter_that_is_killed_and_comes_back_costs_nothing(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.add_fault(
        FaultRule(operation="RemoveSnapshot", effect="stall", nth=None, times=2, seconds=4.0, phase="middle")
    )
    start_job(lab, "vcenter-killed")
    _until(
        lambda: any(
            task.operation == "RemoveSnapshot" and task.state == "running" for task in lab.hosts.state().tasks
        ),
        90,
    )
    lab.processes["vcenter"].kill()
    time.sleep(2)
    lab.start_vcenter()
    wait_end(lab, "vcenter-killed", 240)
    report = report_of(lab, "vcenter-killed")
    assert report["status"] == "Completed", [vm["reason"] for vm in report["vms"]]
    assert witness.problems() == []


def test_a_wrong_password_fails_at_once_with_one_try(lab: DataCentre) -> None:
    calls = lab.directory / "vcenter-calls.jsonl"
    for node in lab.nodes:
        lab.workers[f"access-node.{node}"].stop()
    original = dict(lab.environment)
    lab.extra_environment = {PASSWORD_VARIABLE: "wrong"}
    try:
        for node in lab.nodes:
            lab.start_worker("access-node", node)
        before = calls.read_text().count('"Login"')
        start_job(lab, "wrong-password")
        assert wait_end(lab, "wrong-password", 60) == "FAILED"
        assert calls.read_text().count('"Login"') - before == 1
        shown = lab.safehaul("job", "show", "wrong-password", check=False)
        assert "refused user" in shown
        assert "wrong" not in shown.replace("wrong-password", "")
    finally:
        lab.extra_environment = {}
        for node in lab.nodes:
            lab.workers[f"access-node.{node}"].stop()
            lab.start_worker("access-node", node)
    assert lab.environment == original
