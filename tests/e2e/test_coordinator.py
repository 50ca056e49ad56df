"""A static plan is kept to; a coordinator that dies in the middle of a job has a successor that plans anew."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from activities.records import read_plan_page
from lab.datacentre import DataCentre
from lab.esx.api import FaultRule
from lab.proof import Witness
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    RESTORE_PRIVILEGES,
    DatastoreSpec,
    DiskSpec,
    Settings,
    Site,
    UserSpec,
    VmSpec,
)
from safehaul.media import jobs
from safehaul.media.repository import Repository
from safehaul.media.store import open_store
from tests.e2e.site import data_centre, differences, report_of, restored_images, run_job, start_job, wait_end

pytestmark = pytest.mark.slow
MIB = 2**20
SIZES_MIB = {"large": 48, "a": 8, "b": 8, "c": 8, "d": 8, "e": 8}


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    site = Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=[
            VmSpec(name=name, datastore="nfs-gold", disks=[DiskSpec(size_bytes=size * MIB)], guest_rate=50)
            for name, size in SIZES_MIB.items()
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            ),
        ],
        settings=Settings(record_frozen=True),
    )
    with data_centre(site, streams=1, distribution="static") as started:
        started.start_workers()
        yield started


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def _plan(lab: DataCentre, job_id: str, epoch: int) -> dict[str, list[str]]:
    """The VMs of each node's queue in the plan that stands in the job's objects."""
    repository = Repository.open(open_store(f"file://{lab.repository}"), for_writing=False)
    plan: dict[str, list[str]] = defaultdict(list)
    for name in jobs.list_job_objects(repository, job_id):
        parts = name.split("/")
        if parts[:2] == ["plan", f"{epoch:06d}"]:
            plan[parts[2]] += [vm.name for vm in read_plan_page(repository, job_id, name)]
    repository.close()
    return dict(plan)


def _true(lab: DataCentre, report: dict[str, Any]) -> None:
    """Every VM once; each Completed one equals what its snapshot froze."""
    assert Counter(vm["name"] for vm in report["vms"]) == Counter(list(SIZES_MIB))
    for vm in report["vms"]:
        if vm["status"] == "Completed":
            images = restored_images(lab, vm)
            assert differences(lab, vm, images) == []
            for image in images.values():
                image.unlink()


def test_each_node_does_its_own_queue_of_a_static_plan(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    report = run_job(lab, "static")
    assert (report["status"], report["distribution"]) == ("Completed", "static")
    plan = _plan(lab, report["job_id"], 1)
    assert sorted(plan) == ["node-1", "node-2"]
    done: dict[str, list[str]] = {"node-1": [], "node-2": []}
    for vm in sorted(report["vms"], key=lambda item: item["started_at"]):
        done[vm["node"]].append(vm["name"])
    assert done == plan
    assert all(plan.values()), "nodes of equal power share the VMs"
    assert [vm["given_by"] for vm in report["vms"]].count("request") == len(SIZES_MIB) - 2
    _true(lab, report)
    assert witness.problems() == []


def test_a_dead_coordinators_successor_plans_anew_and_repeats_no_vm(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", nth=None, times=2, seconds=3.0, phase="middle")
    )
    start_job(lab, "beheaded")
    _until(lambda: sum(task.state == "running" for task in lab.hosts.state().tasks) >= 2, 60)
    asked = lab.temporal.cli(
        "workflow", "query", "--workflow-id", "beheaded", "--type", "progress", "--output", "json"
    )
    first = json.loads(asked.stdout)["queryResult"][0]["coordinator"]
    other = next(node for node in lab.nodes if node != first)
    lab.workers[f"access-node.{first}"].kill()
    try:
        wait_end(lab, "beheaded", 240)
        report = report_of(lab, "beheaded")
    finally:
        lab.start_worker("access-node", first)
    assert report["coordinator"] == other
    assert report["lease_epoch"] == 2
    assert any(first in line and "stopped answering" in line for line in report["left_out"])
    assert {(vm["node"], vm["status"]) for vm in report["vms"]} == {(other, "Completed")}
    moved = [
        vm for vm in report["vms"] if any(f"access node {first} stopped" in line for line in vm["warnings"])
    ]
    planned_anew = _plan(lab, report["job_id"], 2)
    assert list(planned_anew) == [other]
    begun_before = set(SIZES_MIB) - set(planned_anew[other])
    assert [vm["name"] in begun_before for vm in moved] == [True], "a VM that had begun is not planned again"
    _true(lab, report)
    _until(lambda: witness.problems() == [], 60)
