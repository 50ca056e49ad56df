"""A VM of which a file is missing is Partial, and everyone is told: the job, the backup, and who restores it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.datacentre import DataCentre
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
from safehaul.vm_files import MAX_FILE_BYTES
from tests.e2e.site import data_centre, run_job, steps_of, vm_of

pytestmark = pytest.mark.slow

MIB = 2**20
NVRAM = "[nfs-new] large/large.nvram"


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    """Two VMs on a datastore that the hosts mount by NFS 4.1, and the node by what the filer speaks: 3."""
    site = Site(
        datastores=[DatastoreSpec(name="nfs-new", type="NFS41", remote_path="/exports/new")],
        vms=[
            VmSpec(name=name, datastore="nfs-new", disks=[DiskSpec(size_bytes=8 * MIB)])
            for name in ("large", "whole")
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            ),
        ],
        settings=Settings(record_frozen=True),
    )
    with data_centre(site, nodes=("node-1",), streams=2) as started:
        started.start_workers()
        yield started


def test_a_file_that_is_too_large_makes_its_vm_partial_everywhere(lab: DataCentre) -> None:
    nvram = lab.state / "datastores" / "nfs-new" / "large" / "large.nvram"
    with nvram.open("r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    report = run_job(lab, "skips")
    large, whole = vm_of(report, "large"), vm_of(report, "whole")
    assert (whole["status"], whole["skipped_files"]) == ("Completed", [])
    assert large["status"] == "Partial"
    assert f"{NVRAM}: it has 67,108,865 bytes" in large["reason"]
    assert [item["path"] for item in large["skipped_files"]] == [NVRAM]
    assert report["status"] == "Partial"

    backup = f"{large['vc_guid']}/{large['backup_id']}"
    shown = json.loads(lab.safehaul("backups", "show", backup, "--json"))
    assert [(item["kind"], item["label"]) for item in shown["manifest"]["skipped"]] == [("file", NVRAM)]
    assert shown["index"]["status"] == "Partial"
    assert all(not file["name"].endswith(".nvram") for file in shown["manifest"]["files"])
    told = " ".join(lab.safehaul("backups", "show", backup).split())
    assert f"file not in the backup: {NVRAM}: it has" in told

    left = [path for path in (lab.home / "spool").rglob("*") if path.is_file()]
    assert left == []


def test_the_nfs_version_that_is_told_is_the_one_that_was_spoken(lab: DataCentre) -> None:
    whole = vm_of(run_job(lab, "versions"), "whole")
    assert "check_transport" in [step.name for step in steps_of(lab, whole["child_id"])]
    shown = json.loads(lab.safehaul("backups", "show", f"{whole['vc_guid']}/{whole['backup_id']}", "--json"))
    assert [disk["details"]["nfs_version"] for disk in shown["manifest"]["disks"]] == ["3"]
