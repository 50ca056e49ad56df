"""A data centre in which one step after the other is replaced by a successful no-op (tests.e2e.noop_worker)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.processes import LabProcess
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

NODE = "node-1"
NAMES = {"one", "two"}
_COMMSERVE = {
    *("open_job", "choose_coordinator", "record_job", "request_cancel", "reconcile", "report_unled_job"),
    "open_restore",
}
_MEDIA_AGENT = {"open_backup", "seal_backup", "write_index", "leave_unfinished"}


def tiny_site() -> Site:
    """Two running VMs with a disk of 8 MiB each."""
    return Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=[
            VmSpec(name=name, datastore="nfs-gold", disks=[DiskSpec(size_bytes=8 * 2**20)], guest_rate=50)
            for name in sorted(NAMES)
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            ),
        ],
        settings=Settings(record_frozen=True),
    )


def role_of(step: str) -> tuple[str, ...]:
    """Which worker does a step, as `safehaul worker` takes it."""
    if step in _COMMSERVE:
        return ("commserve",)
    return ("media-agent", MEDIA_AGENT) if step in _MEDIA_AGENT else ("access-node", NODE)


class Replacing:
    """Puts no-ops in and takes them out; a worker is started anew only when it must be another one."""

    def __init__(self, lab: DataCentre) -> None:
        self._lab = lab
        self._replaced: tuple[str, ...] = ()

    def replace(self, step: str) -> None:
        """From now on `step` is a no-op, and every other step is real."""
        role = role_of(step)
        if self._replaced != role:
            self.restore()
        self._lab.workers[".".join(role)].stop()
        worker = LabProcess(
            f"noop {step}",
            [sys.executable, "-m", "tests.e2e.noop_worker", step, *role],
            self._lab.directory / "logs" / f"noop-{step}.log",
            environment=self._lab.environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            uid=self._lab.worker_uid,
            directory=self._lab.home,
        )
        self._lab.workers[".".join(role)] = worker
        self._replaced = role
        worker.wait_until(worker.says_ready)

    def restore(self) -> None:
        """Every step is real again."""
        if self._replaced:
            self._lab.workers[".".join(self._replaced)].stop()
            self._lab.start_worker(*self._replaced)
        self._replaced = ()


def tidy(lab: DataCentre) -> None:
    """Undo what a no-op left, so that the next case starts clean: workflows, snapshots, spool."""
    listed = lab.temporal.cli("workflow", "list", "--query", "ExecutionStatus='Running'", "--output", "json")
    for item in json.loads(listed.stdout or "[]"):
        lab.temporal.cli("workflow", "terminate", "--workflow-id", item["execution"]["workflowId"])
    for vm in lab.hosts.state().vms:
        for snapshot in vm.snapshots:
            lab.hosts.wait_task(lab.hosts.remove_snapshot(snapshot.moref).task)
    for path in (lab.home / "spool").rglob("*"):
        if path.is_file():
            path.unlink()
