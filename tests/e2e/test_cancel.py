"""A job cancelled by signal at any of its moments ends Cancelled, and no snapshot is left (the three traps)."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule, Settings
from lab.proof import Witness
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    RESTORE_PRIVILEGES,
    DatastoreSpec,
    DiskSpec,
    Site,
    SnapshotSpec,
    UserSpec,
    VmSpec,
)
from tests.e2e.site import data_centre, report_of, start_job, vm_of, wait_end

MIB = 2**20
MIDDLE = 16 * MIB
"""An offset in the middle of the VMs' disks: only the transfer reads there."""


def small_site() -> Site:
    """Two VMs, one of which holds a user's snapshot."""
    return Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=[
            VmSpec(
                name="one",
                datastore="nfs-gold",
                disks=[DiskSpec(size_bytes=64 * MIB)],
                snapshots=[SnapshotSpec(name="mine", description="keep")],
                guest_rate=100,
            ),
            VmSpec(name="two", datastore="nfs-gold", disks=[DiskSpec(size_bytes=64 * MIB)], guest_rate=100),
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            ),
        ],
        settings=Settings(record_frozen=True),
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), nodes=("node-1",), gate=True) as started:
        started.start_workers()
        yield started


def _task_runs(lab: DataCentre, operation: str) -> bool:
    return any(
        task.operation == operation and task.state in ("queued", "running")
        for task in lab.hosts.state().tasks
    )


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.05)


def _stall(lab: DataCentre, operation: str, seconds: float) -> None:
    lab.hosts.clear_faults()
    if operation:
        lab.hosts.add_fault(
            FaultRule(operation=operation, effect="stall", nth=None, times=2, seconds=seconds, phase="middle")
        )


@pytest.mark.parametrize("moment", ["CreateSnapshot", "RemoveSnapshot"])
def test_a_cancel_while_vcenter_works_on_the_snapshot(lab: DataCentre, moment: str) -> None:
    """Traps 1 and 3: during the creation, and during the removal."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    _stall(lab, moment, 4.0)
    job = f"cancel-{moment.lower()}"
    start_job(lab, job)
    _until(lambda: _task_runs(lab, moment))
    _signal_cancel(lab, job)
    _check_cancelled(lab, job, witness)


def test_a_cancel_during_the_transfer(lab: DataCentre) -> None:
    """Trap 2: in the middle of the reading. The step may end well although it was asked to stop."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    _stall(lab, "", 0)
    lab.gate.hold("*-flat.vmdk", MIDDLE)
    try:
        start_job(lab, "cancel-transfer")
        _until(lambda: lab.gate.held == {"one-flat.vmdk", "two-flat.vmdk"})
        _signal_cancel(lab, "cancel-transfer")
        _until(lambda: _asked_to_stop(lab, "cancel-transfer") == ["transfer_disk", "transfer_disk"])
    finally:
        lab.gate.release()
    _check_cancelled(lab, "cancel-transfer", witness)


def _children(lab: DataCentre, job: str) -> list[str]:
    listed = lab.temporal.cli("workflow", "list", "--query", "WorkflowType='BackupVm'", "--output", "json")
    ids = [item["execution"]["workflowId"] for item in json.loads(listed.stdout)]
    return [child for child in ids if child.startswith(job + "/")]


def _asked_to_stop(lab: DataCentre, job: str) -> list[str]:
    """Which steps of the job's VMs have been asked to stop, by the VMs' histories."""
    asked: list[str] = []
    for child in _children(lab, job):
        shown = lab.temporal.cli("workflow", "show", "--workflow-id", child, "--output", "json")
        names: dict[str, str] = {}
        for event in json.loads(shown.stdout)["events"]:
            if scheduled := event.get("activityTaskScheduledEventAttributes"):
                names[event["eventId"]] = scheduled["activityType"]["name"]
            if cancelled := event.get("activityTaskCancelRequestedEventAttributes"):
                asked.append(names[cancelled["scheduledEventId"]])
    return asked


def _signal_cancel(lab: DataCentre, job: str) -> None:
    done = lab.temporal.cli("workflow", "signal", "--workflow-id", job, "--name", "cancel")
    assert done.returncode == 0, done.stderr


def _check_cancelled(lab: DataCentre, job: str, witness: Witness) -> None:
    assert wait_end(lab, job) == "CANCELED"
    lab.hosts.clear_faults()
    children = _children(lab, job)
    assert children
    assert {wait_end(lab, child) for child in children} == {"CANCELED"}
    assert witness.problems() == []
    # Temporal keeps no result of a cancelled workflow: what remains is its query, and the catalogue.
    progress = json.loads(lab.safehaul("job", "show", job, "--json"))["progress"]
    assert (progress["status"], progress["stage"]) == ("Cancelled", "done")
    assert progress["totals"]["cancelled"] == progress["totals"]["vms"] == 2
    with closing(sqlite3.connect(f"file:{lab.home / 'catalog.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "select status, vms, cancelled from jobs where job_id = ?", (progress["job_id"],)
        ).fetchall()
    assert rows == [("Cancelled", 2, 2)]
    backups = json.loads(lab.safehaul("backups", "list", "--json"))
    assert not [
        row for row in backups if row["status"] == "Completed" and row["job_id"] == progress["job_id"]
    ]


def test_cancel_vm_ends_that_vm_alone(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.clear_faults()
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", vm="one", seconds=5.0, phase="middle")
    )
    start_job(lab, "cancel-one")
    _until(lambda: _task_runs(lab, "CreateSnapshot"))
    lab.temporal.cli(
        *("workflow", "signal", "--workflow-id", "cancel-one"),
        *("--name", "cancel_vm", "--input", '{"vm": "one"}'),
    )
    assert wait_end(lab, "cancel-one") == "COMPLETED"
    report = report_of(lab, "cancel-one")
    assert (vm_of(report, "one")["status"], vm_of(report, "two")["status"]) == ("Cancelled", "Completed")
    assert witness.problems() == []


@pytest.mark.slow
def test_a_terminated_vm_workflow_is_failed_and_its_snapshot_goes(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.clear_faults()
    lab.gate.hold("two-flat.vmdk", MIDDLE)
    try:
        start_job(lab, "terminate-one")
        _until(lambda: lab.gate.held == {"two-flat.vmdk"})
        guid = next(vm.instance_uuid for vm in lab.hosts.state().vms if vm.name == "two")
        _until(lambda: len(_children(lab, "terminate-one")) == 2)
        child = next(item for item in _children(lab, "terminate-one") if item.endswith(guid))
        lab.temporal.cli("workflow", "terminate", "--workflow-id", child, "--reason", "killed by the test")
    finally:
        lab.gate.release()
    assert wait_end(lab, "terminate-one") in ("COMPLETED", "FAILED")
    failed = [vm for vm in report_of(lab, "terminate-one")["vms"] if vm["child_id"] == child]
    assert [vm["status"] for vm in failed] == ["Failed"]
    assert "ended without a report" in failed[0]["reason"]
    _until(lambda: witness.problems() == [])


def _child_of(lab: DataCentre, job: str, name: str) -> str:
    """The id of the workflow of one VM of the job, when it has begun."""
    guid = next(vm.instance_uuid for vm in lab.hosts.state().vms if vm.name == name)
    _until(lambda: any(item.endswith(guid) for item in _children(lab, job)))
    return next(item for item in _children(lab, job) if item.endswith(guid))


def _history(lab: DataCentre, workflow: str) -> str:
    return lab.temporal.cli("workflow", "show", "--workflow-id", workflow, "--output", "json").stdout


def _removal_ended(lab: DataCentre, child: str) -> bool:
    """Whether the RemoveSnapshot of that VM's workflow, with its second look, has ended."""
    query = f"WorkflowType='RemoveSnapshot' AND VcGuid='{child.rpartition('/')[2]}'"
    listed = lab.temporal.cli("workflow", "list", "--query", query, "--output", "json")
    states = [item["status"] for item in json.loads(listed.stdout)]
    return bool(states) and all(state == "WORKFLOW_EXECUTION_STATUS_COMPLETED" for state in states)


@pytest.mark.slow
def test_a_vm_workflow_terminated_while_vcenter_makes_the_snapshot_leaves_none(lab: DataCentre) -> None:
    """Nobody has heard the snapshot's moref: its removal waits for the running task, and finds it by its marker."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.clear_faults()
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", vm="two", seconds=8.0, phase="start")
    )
    start_job(lab, "terminate-creating")
    _until(lambda: _task_runs(lab, "CreateSnapshot"))
    child = _child_of(lab, "terminate-creating", "two")
    lab.temporal.cli("workflow", "terminate", "--workflow-id", child, "--reason", "killed by the test")
    assert wait_end(lab, "terminate-creating") in ("COMPLETED", "FAILED")
    _until(lambda: _removal_ended(lab, child), 120)
    assert witness.problems() == []


@pytest.mark.slow
def test_a_vm_workflow_terminated_before_vcenter_is_asked_leaves_no_snapshot(lab: DataCentre) -> None:
    """The creation still waits for somebody's task: it must not ask when that ends, for the removal has looked."""
    lab.hosts.clear_faults()
    moref = next(vm.moref for vm in lab.hosts.state().vms if vm.name == "two")
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", vm="two", seconds=40.0, phase="start")
    )
    by_hand = lab.hosts.create_snapshot(moref, "by hand", "Ada").task
    calls = lab.directory / "vcenter-calls.jsonl"
    before = calls.read_text().count('"CreateSnapshot_Task"')
    start_job(lab, "terminate-waiting")
    child = _child_of(lab, "terminate-waiting", "two")
    _until(lambda: "create_snapshot" in _history(lab, child))
    lab.temporal.cli("workflow", "terminate", "--workflow-id", child, "--reason", "killed by the test")
    assert wait_end(lab, "terminate-waiting") in ("COMPLETED", "FAILED")
    assert lab.hosts.task(by_hand).complete_time is None, "the moment was missed"
    _until(lambda: _removal_ended(lab, child), 150)
    snapshots = lab.hosts.vm(moref).snapshots
    assert [item.name for item in snapshots] == ["by hand"]
    assert calls.read_text().count('"CreateSnapshot_Task"') - before == 1, "for VM one, and for it alone"
    lab.hosts.wait_task(lab.hosts.remove_snapshot(snapshots[0].moref).task)
