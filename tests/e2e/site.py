"""What the end-to-end tests share: a running data centre, jobs started as a person would, histories read back."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.datacentre import VM_GROUP, DataCentre
from lab.other_user import UNUSED_UID, can_change_user
from lab.proof import compare_disks, frozen_record
from lab.site import Site

JOB_WITHIN_S = 180.0
ENDED = {"COMPLETED", "FAILED", "CANCELED", "TERMINATED", "TIMED_OUT"}


@contextmanager
def data_centre(site: Site, **options: Any) -> Iterator[DataCentre]:
    """A data centre whose workers run as a user who cannot read the datastores (as root), ended afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="safehaul-e2e-"))
    directory.chmod(0o755)
    uid = UNUSED_UID if can_change_user() else None
    lab = DataCentre(directory, site, worker_uid=uid, **{"ui": False, **options})
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
        left = lab.left_behind()
        shutil.rmtree(directory, ignore_errors=True)
        assert not left, f"processes are left behind: {left}"


def mounted_by_hosts_as(site: Site, type_: str) -> Site:
    """The same site whose NAS datastores are all of that type: `NFS` is v3, `NFS41` is v4.1."""
    stores = [
        store.model_copy(update={"type": type_}) if store.type != "VMFS" else store
        for store in site.datastores
    ]
    return site.model_copy(update={"datastores": stores})


def start_job(lab: DataCentre, workflow_id: str, group: str | dict[str, Any] = VM_GROUP) -> None:
    """Start a BackupJob with the plain `temporal` command, for a named group or one that is given whole."""
    done = lab.temporal.cli(
        *("workflow", "start", "--type", "BackupJob", "--task-queue", "commserve"),
        *("--workflow-id", workflow_id, "--input", json.dumps({"vm_group": group})),
    )
    assert done.returncode == 0, done.stderr


def start_restore(lab: DataCentre, workflow_id: str, vm: dict[str, Any], name: str) -> None:
    """Start a RestoreVm of the VM's backup as `name` on `nfs-gold`, with the plain `temporal` command."""
    wanted = {"backup": f"{vm['vc_guid']}/{vm['backup_id']}", "name": name, "datastore": "nfs-gold"}
    done = lab.temporal.cli(
        *("workflow", "start", "--type", "RestoreVm", "--task-queue", "commserve"),
        *("--workflow-id", workflow_id, "--input", json.dumps(wanted)),
    )
    assert done.returncode == 0, done.stderr


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def status(lab: DataCentre, workflow_id: str) -> str:
    """A workflow's status: RUNNING, COMPLETED, …."""
    done = lab.temporal.cli("workflow", "describe", "--workflow-id", workflow_id, "--output", "json")
    assert done.returncode == 0, done.stderr
    name = str(json.loads(done.stdout)["workflowExecutionInfo"]["status"])
    return name.removeprefix("WORKFLOW_EXECUTION_STATUS_")


def wait_end(lab: DataCentre, workflow_id: str, timeout_s: float = JOB_WITHIN_S) -> str:
    """Wait until the workflow has ended; its status."""
    deadline = time.monotonic() + timeout_s
    while True:
        now = status(lab, workflow_id)
        if now in ENDED:
            return now
        assert time.monotonic() < deadline, f"{workflow_id} is still {now}"
        time.sleep(0.3)


def failure_of(lab: DataCentre, workflow_id: str) -> str:
    """Why a workflow has failed, by the last event of its history; empty when it has not."""
    done = lab.temporal.cli("workflow", "show", "--workflow-id", workflow_id, "--output", "json")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)["events"][-1]
    failed = last.get("workflowExecutionFailedEventAttributes")
    return str(failed["failure"]["message"]) if failed else ""


def report_of(lab: DataCentre, workflow_id: str) -> dict[str, Any]:
    """The JobReport of a job that has ended."""
    shown = json.loads(lab.safehaul("job", "show", workflow_id, "--json", check=False))
    report = shown["report"]
    assert report, f"{workflow_id} has no report"
    return dict(report)


def run_job(lab: DataCentre, workflow_id: str, group: str | dict[str, Any] = VM_GROUP) -> dict[str, Any]:
    """Start a job, wait for its end, return its report."""
    start_job(lab, workflow_id, group)
    wait_end(lab, workflow_id)
    return report_of(lab, workflow_id)


def vm_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    """One VM's report."""
    return dict(next(vm for vm in report["vms"] if vm["name"] == name))


@dataclass(frozen=True)
class DoneStep:
    """One activity of a history that succeeded."""

    name: str
    queue: str
    worker: str
    scheduled: datetime
    completed: datetime


def steps_of(lab: DataCentre, workflow_id: str) -> list[DoneStep]:
    """The activities that a workflow has completed, in the order of their completion, from its history."""
    done = lab.temporal.cli("workflow", "show", "--workflow-id", workflow_id, "--output", "json")
    assert done.returncode == 0, done.stderr
    scheduled: dict[str, tuple[str, str, datetime]] = {}
    started: dict[str, str] = {}
    steps: list[DoneStep] = []
    for item in json.loads(done.stdout)["events"]:
        kind = item["eventType"].removeprefix("EVENT_TYPE_")
        at = datetime.fromisoformat(item["eventTime"][:26])
        if kind == "ACTIVITY_TASK_SCHEDULED":
            detail = item["activityTaskScheduledEventAttributes"]
            scheduled[item["eventId"]] = (detail["activityType"]["name"], detail["taskQueue"]["name"], at)
        elif kind == "ACTIVITY_TASK_STARTED":
            detail = item["activityTaskStartedEventAttributes"]
            started[detail["scheduledEventId"]] = detail["identity"]
        elif kind == "ACTIVITY_TASK_COMPLETED":
            number = item["activityTaskCompletedEventAttributes"]["scheduledEventId"]
            name, queue, begun = scheduled[number]
            steps.append(DoneStep(name, queue, started.get(number, ""), begun, at))
    return steps


def queues_asked(lab: DataCentre, workflow_id: str, activity: str) -> list[str]:
    """The task queues on which a workflow has scheduled an activity, taken or not, in order, from its history."""
    done = lab.temporal.cli("workflow", "show", "--workflow-id", workflow_id, "--output", "json")
    assert done.returncode == 0, done.stderr
    asked = (item.get("activityTaskScheduledEventAttributes") for item in json.loads(done.stdout)["events"])
    return [item["taskQueue"]["name"] for item in asked if item and item["activityType"]["name"] == activity]


def results_of(lab: DataCentre, workflow_id: str, activity: str) -> list[dict[str, Any]]:
    """What the activity of that name has returned in a workflow, from its history."""
    done = lab.temporal.cli("workflow", "show", "--workflow-id", workflow_id, "--output", "json")
    names: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    for item in json.loads(done.stdout)["events"]:
        if scheduled := item.get("activityTaskScheduledEventAttributes"):
            names[item["eventId"]] = scheduled["activityType"]["name"]
        completed = item.get("activityTaskCompletedEventAttributes")
        if completed and names[completed["scheduledEventId"]] == activity:
            results.append(json.loads(base64.b64decode(completed["result"]["payloads"][0]["data"])))
    return results


def restored_images(lab: DataCentre, vm: dict[str, Any]) -> dict[int, Path]:
    """Every stored disk of a VM's backup, written to raw files with `safehaul restore disk`."""
    images: dict[int, Path] = {}
    for disk in vm["disks"]:
        if disk["transport"] == "nas":
            target = lab.home / f"image-{vm['vc_guid'][-8:]}-{disk['key']}-{time.monotonic_ns()}.raw"
            backup = f"{vm['vc_guid']}/{vm['backup_id']}"
            lab.safehaul("restore", "disk", backup, str(disk["key"]), "--to", str(target))
            images[disk["key"]] = target
    return images


def differences(lab: DataCentre, vm: dict[str, Any], images: dict[int, Path]) -> list[str]:
    """How images differ from what the VM's snapshot froze, by the hosts' own digests."""
    moref = next(item.moref for item in lab.hosts.state().vms if item.name == vm["name"])
    skipped = {disk["key"]: disk["reason"] for disk in vm["disks"] if disk["transport"] != "nas"}
    return compare_disks(frozen_record(lab.hosts, moref, vm["snapshot_moref"]), images, skipped)


def is_root() -> bool:
    """True when workers can run as another user."""
    return os.geteuid() == 0
