"""Each step replaced by a successful no-op, one at a time: the end-to-end check must notice every one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.processes import LabProcess
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    DatastoreSpec,
    DiskSpec,
    Settings,
    Site,
    UserSpec,
    VmSpec,
)
from tests.e2e.noop_worker import NOTHING_DONE
from tests.e2e.site import ENDED, data_centre, run_job, start_job, status
from tests.e2e.truth import before, violations

MIB = 2**20
NODE = "node-1"
NAMES = {"one", "two"}
COMMSERVE = {"open_job", "choose_coordinator", "record_job"}
MEDIA = {"open_backup", "seal_backup", "write_index"}
QUICK = {"transfer_disk", "remove_snapshot", "take_lease"}
# A job that needs longer hangs on the no-op, which is seen too. A real one takes about four seconds.
NOTICED_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    site = Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=[
            VmSpec(name=name, datastore="nfs-gold", disks=[DiskSpec(size_bytes=8 * MIB)], guest_rate=50)
            for name in sorted(NAMES)
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=BACKUP_PRIVILEGES),
        ],
        settings=Settings(record_frozen=True),
    )
    with data_centre(site, nodes=(NODE,), streams=1) as started:
        started.start_workers()
        yield started


def test_the_real_steps_pass_the_check(lab: DataCentre) -> None:
    at_first = before(lab)
    report = run_job(lab, "real")
    assert violations(lab, report, at_first, NAMES, 1) == []


def test_every_step_has_a_no_op() -> None:
    """The list below is complete: a new step must be added to it."""
    named = set()
    for path in (Path(__file__).parents[2] / "activities").glob("*.py"):
        for line in path.read_text().splitlines():
            if line.strip().startswith(("@step(", '@activity.defn(name="')):
                named.add(line.split('"')[1])
    restore = {
        "open_restore",
        "prepare_restore",
        "restore_disk",
        "write_vm_files",
        "register_vm",
        "discard_restore",
    }
    assert named - restore == set(NOTHING_DONE) | {"request_cancel", "reconcile", "report_unled_job"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(NOTHING_DONE)],
)
def test_a_step_that_does_nothing_is_noticed(lab: DataCentre, name: str) -> None:
    role = ("commserve",) if name in COMMSERVE else ("access-node", NODE)
    if name in MEDIA:
        role = ("media-agent", MEDIA_AGENT)
    at_first = before(lab)
    real = lab.workers[".".join(role)]
    real.stop()
    log = lab.directory / "logs" / f"noop-{name}.log"
    command = [sys.executable, "-m", "tests.e2e.noop_worker", name, *role]
    worker = LabProcess(
        f"noop {name}",
        command,
        log,
        environment=lab.environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        uid=lab.worker_uid,
        directory=lab.home,
    )
    try:
        worker.wait_until(worker.says_ready)
        job = f"noop-{name}"
        start_job(lab, job)
        deadline = time.monotonic() + NOTICED_WITHIN_S
        while status(lab, job) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.3)
        report = None
        if status(lab, job) in ENDED:
            report = json.loads(
                lab.safehaul("job", "show", job, "--json", check=False) or '{"report": null}'
            )["report"]
        else:
            lab.temporal.cli("workflow", "terminate", "--workflow-id", job)
        assert violations(lab, report, at_first, NAMES, 1), f"nobody notices that {name} does nothing"
    finally:
        worker.stop()
        _tidy(lab)
        lab.start_worker(*role)


def _tidy(lab: DataCentre) -> None:
    """Undo what the no-op left, so that the next case starts clean: snapshots, spool, running VM workflows."""
    for workflow_type in ("BackupVm", "BackupJob", "RemoveSnapshot"):
        query = f"WorkflowType='{workflow_type}' AND ExecutionStatus='Running'"
        listed = lab.temporal.cli("workflow", "list", "--query", query, "--output", "json")
        for item in json.loads(listed.stdout or "[]"):
            lab.temporal.cli("workflow", "terminate", "--workflow-id", item["execution"]["workflowId"])
    for vm in lab.hosts.state().vms:
        for snapshot in vm.snapshots:
            lab.hosts.wait_task(lab.hosts.remove_snapshot(snapshot.moref).task)
    for path in (lab.home / "spool").rglob("*"):
        if path.is_file():
            path.unlink()
