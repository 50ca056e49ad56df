"""A sweep in a running data centre: what a terminated job leaves goes, with a proof; all else stays."""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule, Vm
from lab.proof import Witness
from safehaul.messages.marker import SnapshotMarker
from tests.e2e.site import data_centre, failure_of, start_job, status, until, wait_end
from tests.e2e.test_cancel import MIDDLE, _asked_to_stop, _children, small_site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), nodes=("node-1",), gate=True) as started:
        started.start_workers()
        yield started


@pytest.fixture(autouse=True)
def _released(lab: DataCentre) -> Iterator[None]:
    yield
    lab.gate.release()


def _group(*names: str) -> dict[str, Any]:
    rules = [{"name": name} for name in names]
    return {"vcenter": "lab", "media_agent": "vault", "rules": rules, "min_free_bytes": "1 MiB"}


def _reading(lab: DataCentre, job: str, *names: str) -> dict[str, str]:
    """A job whose VMs hold their snapshots and read; the VMs' workflow ids by name."""
    lab.gate.hold("*-flat.vmdk", MIDDLE)
    start_job(lab, job, _group(*names))
    until(lambda: {f"{name}-flat.vmdk" for name in names} <= set(lab.gate.held))
    shown = json.loads(lab.safehaul("job", "show", job, "--json", check=False))
    return {vm["name"]: vm["child_id"] for vm in shown["progress"]["running"]}


def _terminate(lab: DataCentre, workflow_id: str) -> None:
    done = lab.temporal.cli("workflow", "terminate", "--workflow-id", workflow_id)
    assert done.returncode == 0, done.stderr


def _sweep(lab: DataCentre, *options: str) -> dict[str, Any]:
    found = json.loads(lab.safehaul("snapshots", "sweep", "--json", *options))
    return dict(found["report"])


def _verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {item["vm_name"]: item["verdict"] for item in report["snapshots"]}


def _ours(vm: Vm) -> list[str]:
    return [item.moref for item in vm.snapshots if SnapshotMarker.parse(item.description)]


def test_what_a_terminated_job_leaves_is_removed_and_nothing_else(lab: DataCentre) -> None:
    """Job and VM are terminated; a job that lives, a user and another installation hold snapshots too."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    child = _reading(lab, "terminated", "one")["one"]
    _terminate(lab, "terminated")
    _terminate(lab, child)
    (orphan,) = _ours(lab.hosts.vm("one"))
    living = _reading(lab, "living", "two")["two"]
    # Another safehaul's, down to the workflow's and run's id; and one of a user who likes our names.
    ours = next(item for item in lab.hosts.vm("one").snapshots if item.moref == orphan)
    marker = SnapshotMarker.parse(ours.description)
    assert marker is not None
    other = marker.model_copy(update={"installation": str(uuid.uuid4())})
    for name, description in ((other.snapshot_name, other.text()), ("safehaul by hand", "Ada's")):
        lab.hosts.wait_task(lab.hosts.create_snapshot("one", name, description).task)
    before = [item.moref for item in lab.hosts.vm("one").snapshots]

    looked = _sweep(lab, "--dry-run")
    assert _verdicts(looked) == {"one": "would be removed", "two": "held"}
    assert [item.moref for item in lab.hosts.vm("one").snapshots] == before

    report = _sweep(lab)
    assert _verdicts(report) == {"one": "removed", "two": "held"}
    now = lab.hosts.vm("one")
    assert [item.moref for item in now.snapshots] == [item for item in before if item != orphan]
    assert not now.consolidation_needed
    assert len(_ours(lab.hosts.vm("two"))) == 1
    made = report["snapshots"][0]["certificate"]
    assert made["morefs"] == [orphan]
    assert [node["moref"] for node in made["tree_after"]] == [item.moref for item in now.snapshots]
    assert [node["moref"] for node in made["tree_before"]] == before
    assert made["snapshot_files"], "the orphan's redo log went with it"
    stores = lab.state / "datastores"
    for path in made["snapshot_files"]:
        assert not (stores / "nfs-gold" / path.partition("] ")[2]).exists()
    assert {item["kind"] for item in report["findings"]} == {"other installation", "unproved"}
    assert lab.hosts.check_frozen() == []

    lab.gate.release()
    assert wait_end(lab, "living") == "COMPLETED"
    assert status(lab, living) == "COMPLETED"
    assert _sweep(lab)["snapshots"] == []
    for item in lab.hosts.vm("one").snapshots:
        if item.name.startswith("safehaul"):
            lab.hosts.wait_task(lab.hosts.remove_snapshot(item.moref).task)
    assert witness.problems() == []


def test_a_vm_that_goes_on_without_its_job_is_cancelled(lab: DataCentre) -> None:
    """Terminate ends the job alone: the VM's workflow lives, and would go on reading for nobody."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    # It is in the middle of its snapshot's creation meanwhile: nothing else waits so long without a time-out.
    slow = {"operation": "CreateSnapshot", "effect": "stall", "seconds": 45.0, "phase": "middle"}
    lab.hosts.add_fault(FaultRule.model_validate(slow))
    start_job(lab, "beheaded", _group("two"))
    until(lambda: any(task.state == "running" for task in lab.hosts.state().tasks))
    (child,) = _children(lab, "beheaded")
    _terminate(lab, "beheaded")

    def seen() -> list[str]:
        """Visibility lags: a sweep that comes too early leaves it to the next."""
        return [item["workflow_id"] for item in _sweep(lab, "--dry-run")["cancelled"]]

    until(lambda: seen() == [child])
    assert status(lab, child) == "RUNNING"
    assert _asked_to_stop(lab, "beheaded") == []
    report = _sweep(lab)
    assert [item["workflow_id"] for item in report["cancelled"]] == [child]
    assert set(_verdicts(report).values()) <= {"held"}, "it removes its snapshot itself"
    assert wait_end(lab, child) == "CANCELED", failure_of(lab, child)
    assert witness.problems() == []
    assert _sweep(lab)["cancelled"] == []


def test_orphans_of_a_lost_namespace_are_adopted_by_hand(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lost = str(uuid.uuid4())
    marker = SnapshotMarker(
        installation=tomllib.loads(lab.config.read_text())["installation_id"],
        namespace=lost,
        workflow_id="nightly/1/two",
        first_run_id=str(uuid.uuid4()),
        vc_guid=f"{lab.hosts.state().instance_uuid}.{lab.hosts.vm('two').instance_uuid}",
    )
    lab.hosts.wait_task(lab.hosts.create_snapshot("two", marker.snapshot_name, marker.text()).task)
    told = _sweep(lab)
    assert told["snapshots"] == []
    assert [item["kind"] for item in told["findings"]] == ["other namespace"]
    assert _verdicts(_sweep(lab, "--adopt", lost)) == {"two": "removed"}
    assert witness.problems() == []
