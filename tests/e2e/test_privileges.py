"""Each privilege that a backup needs, taken away alone: the report names it, and no snapshot stays for lack of one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from lab.datacentre import DataCentre
from lab.proof import Witness
from lab.site import BACKUP_PRIVILEGES, BACKUP_USER
from tests.e2e.site import data_centre, report_of, run_job
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow

REMOVE = "VirtualMachine.State.RemoveSnapshot"
FOR_BACKUPS = ("System.Read", "VirtualMachine.State.CreateSnapshot", REMOVE, "Datastore.Browse")


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), nodes=("node-1",)) as started:
        started.start_workers()
        yield started


@pytest.fixture(autouse=True)
def _give_back(lab: DataCentre) -> Iterator[None]:
    yield
    lab.hosts.set_user(BACKUP_USER, BACKUP_PRIVILEGES)


def _take_away(lab: DataCentre, privilege: str) -> None:
    lab.hosts.set_user(BACKUP_USER, [item for item in BACKUP_PRIVILEGES if item != privilege])


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.mark.parametrize("privilege", [item for item in FOR_BACKUPS if item != REMOVE])
def test_a_missing_privilege_is_named_and_nothing_is_left(lab: DataCentre, privilege: str) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    _take_away(lab, privilege)
    report = run_job(lab, f"without-{privilege.lower()}")
    assert report["status"] == "Failed"
    for reason in [vm["reason"] for vm in report["vms"]] or [report["reason"]]:
        assert privilege in reason, reason
    assert witness.problems() == []


def test_a_removal_without_its_privilege_waits_until_it_is_back(lab: DataCentre) -> None:
    """The VM's report says that it is pending and why; RemoveSnapshot says it too, goes on, and ends by itself."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    _take_away(lab, REMOVE)
    report = run_job(lab, "without-remove")
    assert report["status"] == "Failed"
    for vm in report["vms"]:
        assert vm["snapshot_pending"]
        assert REMOVE in vm["reason"]
        assert "RemoveSnapshot goes on with it" in vm["reason"]
    pending = _removals(lab, "RemovalBlocked", 2)
    assert len([line for line in witness.problems() if "is left behind" in line and "snapshot-" in line]) == 2
    lab.hosts.set_user(BACKUP_USER, BACKUP_PRIVILEGES)
    for workflow in pending:
        lab.temporal.cli("workflow", "signal", "--workflow-id", workflow, "--name", "retry_now")
    _until(lambda: witness.problems() == [], 60)
    assert sorted(_removals(lab, "Removed", 2)) == sorted(pending)
    assert report_of(lab, "without-remove")["status"] == "Failed"
    assert run_job(lab, "with-remove")["status"] == "Completed"


def _removals(lab: DataCentre, status: str, count: int) -> list[str]:
    """The RemoveSnapshot workflows that a person finds in the web UI by this `BackupStatus`."""
    query = f"WorkflowType='RemoveSnapshot' AND BackupStatus='{status}'"
    found: list[str] = []

    def listed() -> bool:
        done = lab.temporal.cli("workflow", "list", "--query", query, "--output", "json")
        found[:] = [item["execution"]["workflowId"] for item in json.loads(done.stdout)]
        return len(found) == count

    _until(listed, 30)
    return found
