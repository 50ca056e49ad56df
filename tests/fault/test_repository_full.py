"""A repository that fills up in the middle of a transfer: the VM fails and says so, nothing is held meanwhile."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.datacentre import DataCentre
from lab.other_user import can_change_user
from lab.proof import Witness
from tests.e2e.site import data_centre, differences, report_of, restored_images, run_job, start_job, wait_end
from tests.e2e.test_cancel import small_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_change_user(), reason="only root can mount a small file system: run as root"),
]
# A VM's disk needs about 4 MiB of it: there is room for the job's own objects, and not for the first disk.
SMALL = "3m"


@pytest.fixture
def lab() -> Iterator[DataCentre]:
    """A data centre whose repository is a file system of its own, too small for what is to come."""
    with data_centre(small_site(), nodes=("node-1",), streams=1) as started:
        _mount(started.repository, SMALL)
        try:
            # After the mount: workers that run as another user have a mount namespace of their own.
            started.start_workers()
            yield started
            for worker in started.workers.values():
                worker.stop()
        finally:
            subprocess.run(["umount", "--lazy", str(started.repository)], check=True)


def test_a_full_repository_fails_the_vm_at_once_and_the_next_job_succeeds(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    start_job(lab, "full")
    # Waiting for room would hold the VMs' snapshots for as long.
    assert wait_end(lab, "full", 90) == "FAILED"
    report = report_of(lab, "full")
    for vm in report["vms"]:
        assert vm["status"] == "Failed"
        assert vm["backup_id"] == ""
        assert vm["reason"].startswith("step 11: "), vm["reason"]
        for part in (str(lab.repository), "No space left on device", "make room in the repository"):
            assert part in vm["reason"]
    assert witness.problems() == []
    assert not [path for path in lab.repository.rglob(".new-*") if path.is_file()], "what did not fit is gone"

    subprocess.run(["mount", "-o", "remount,size=64m", str(lab.repository)], check=True)
    after = run_job(lab, "after")
    assert after["status"] == "Completed", [vm["reason"] for vm in after["vms"]]
    for vm in after["vms"]:
        assert differences(lab, vm, restored_images(lab, vm)) == []
    assert witness.problems() == []


def _mount(repository: Path, size: str) -> None:
    """Put a tmpfs of that size in the place of the repository, with what it holds and its owner's rights."""
    aside, owner = repository.with_name("aside"), repository.stat()
    repository.rename(aside)
    repository.mkdir()
    options = f"size={size},uid={owner.st_uid},gid={owner.st_gid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(repository)], check=True)
    subprocess.run(["cp", "--archive", f"{aside}/.", str(repository)], check=True)
    shutil.rmtree(aside)
