"""The headline as a person would see it: a BackupJob over installed workers, started by the plain `temporal` command.

A data centre of the lab with one VM whose only disk is the ext4 image, on nfs-ganesha over NFS v3; an access node with
one stream and a MediaAgent with an encrypted repository in a directory. The job's time is Temporal's own, from its
start to its end: all 17 steps, with the snapshot, the read-back and the catalogue. vCenter is simulated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from lab.datacentre import DataCentre
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
from tests.bench.figures import spread
from tests.bench.images import Images
from tests.bench.processes import BenchError, call, warm
from tests.e2e.site import data_centre, report_of, results_of, start_job, vm_of, wait_end

_JOB = "bench"
_NAME = "bench"
_WITHIN_S = 1800.0


@dataclass(frozen=True, slots=True)
class JobRun:
    """One job of one VM with one disk."""

    wall_s: float
    transfer_s: float
    """Of that the activity `transfer_disk`."""


def run_job(images: Images) -> JobRun:
    """A data centre of its own for each run: the repository must be empty. Raises BenchError, LabError."""
    with data_centre(
        _site(images.size_bytes),
        nodes=("node-1",),
        streams=1,
        filer="ganesha",
        encrypted=True,
        pack_size="64 MiB",
    ) as lab:
        flat = next((lab.state / "datastores").rglob("*-flat.vmdk"))
        call(["cp", "--sparse=auto", "--no-preserve=all", str(images.flat("ext4")), str(flat)])
        warm([flat])
        os.sync()
        lab.start_workers()
        start_job(lab, _JOB)
        if (ended := wait_end(lab, _JOB, _WITHIN_S)) != "COMPLETED":
            raise BenchError(f"the job ended as {ended}")
        vm = vm_of(report_of(lab, _JOB), _NAME)
        if vm["status"] != "Completed":
            raise BenchError(f"the job's VM ended as {vm['status']}: {vm['reason']}")
        (transfer,) = results_of(lab, vm["child_id"], "transfer_disk")
        return JobRun(_seconds(lab), float(transfer["seconds"]))


def figures(runs: Sequence[JobRun], images: Images) -> dict[str, float | str | None]:
    """What goes into the JSON object: medians."""
    wall, transfer = spread(run.wall_s for run in runs), spread(run.transfer_s for run in runs)
    return {
        "job_wall_s": wall and wall.middle,
        "job_mib_per_s": wall and (images.size_bytes >> 20) / wall.middle,
        "job_transfer_s": transfer and transfer.middle,
    }


def _seconds(lab: DataCentre) -> float:
    """From the start to the close of the workflow, by the server's clock."""
    done = lab.temporal.cli("workflow", "describe", "--workflow-id", _JOB, "--output", "json")
    info = json.loads(done.stdout)["workflowExecutionInfo"]
    begun, ended = (datetime.fromisoformat(info[key].rstrip("Z")[:26]) for key in ("startTime", "closeTime"))
    return (ended - begun).total_seconds()


def _site(size_bytes: int) -> Site:
    return Site(
        datastores=[
            DatastoreSpec(name=_NAME, type="NFS", remote_path="/exports/bench", capacity_bytes=4 * size_bytes)
        ],
        vms=[
            VmSpec(
                name=_NAME,
                datastore=_NAME,
                # Its content is replaced by the image's, with the guest at rest.
                disks=[DiskSpec(size_bytes=size_bytes, content="zero")],
                writes_before=0,
            )
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=BACKUP_PRIVILEGES),
        ],
        settings=Settings(),
    )
