"""An access node that dies while it removes a snapshot: another node goes on with the removal (step 13)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule
from lab.proof import Witness
from tests.e2e.site import data_centre, report_of, run_job, start_job, steps_of, until, wait_end
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow
VICTIM, OTHER = "access-node.node-2", "access-node.node-1"


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), streams=1) as started:
        started.start_workers()
        yield started
        started.hosts.clear_faults()


@pytest.mark.parametrize("phase", ["start", "middle"])
def test_a_node_killed_during_the_removal_leaves_no_snapshot(lab: DataCentre, phase: str) -> None:
    """`start`: vCenter has been asked, and the snapshot still stands; `middle`: it has left the tree already."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.clear_faults()
    lab.hosts.add_fault(
        FaultRule.model_validate(
            {"operation": "RemoveSnapshot", "effect": "stall", "nth": None, "times": 2, "seconds": 8.0}
            | {"phase": phase}
        )
    )
    job = f"killed-while-removing-{phase}"
    start_job(lab, job)
    mine: dict[str, str] = {}

    def removes() -> bool:
        """The removal for the victim's VM is under way in vCenter."""
        shown = lab.safehaul("job", "show", job, "--json", check=False)
        progress = json.loads(shown)["progress"] if shown else None
        running = (progress or {"running": []})["running"]
        mine.update((vm["name"], vm["child_id"]) for vm in running if vm["node"] == "node-2")
        return any(
            task.operation == "RemoveSnapshot" and task.state == "running" and task.entity_name in mine
            for task in lab.hosts.state().tasks
        )

    until(removes, 120)
    lab.workers[VICTIM].kill()
    try:
        # The removal does not wait for the dead node; step 14, when the snapshot is gone, gives it a while to return.
        (child,) = mine.values()
        until(lambda: [step.name for step in steps_of(lab, child)].count("remove_snapshot"), 240)
        assert witness.problems() == []
    finally:
        lab.start_worker("access-node", "node-2")
    wait_end(lab, job, 120)
    report = report_of(lab, job)
    by_node = {vm["node"]: vm for vm in report["vms"]}
    assert [vm["status"] for vm in report["vms"]] == ["Completed", "Completed"], report["vms"]
    killed = by_node["node-2"]
    (removal,) = [step for step in steps_of(lab, killed["child_id"]) if step.name == "remove_snapshot"]
    assert removal.queue == "access-nodes"
    assert removal.worker.split("@")[0] == OTHER
    assert not killed["snapshot_pending"]
    assert witness.problems() == []
    assert run_job(lab, f"after-{phase}")["status"] == "Completed"
    assert witness.problems() == []
