"""A snapshot costs space while it is held: a datastore that gets too full loses the snapshot, not its guests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from activities.transfer import WATCH_EVERY_S
from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.proof import Witness
from lab.site import BACKUP_PRIVILEGES, BACKUP_USER, DatastoreSpec, DiskSpec
from tests.e2e.site import data_centre, report_of, run_job, start_job, vm_of, wait_end
from tests.e2e.test_cancel import small_site
from workflows.policies import ROOM_LOOKED_AT_EVERY

pytestmark = pytest.mark.slow
MIB = 2**20
MIDDLE = 16 * MIB


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    """VMs of 64 and 96 MiB on a datastore of 1 GiB, of which 512 MiB must stay free."""
    store = DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold", capacity_bytes=1024 * MIB)
    one, two = small_site().vms
    two = two.model_copy(update={"disks": [*two.disks, DiskSpec(size_bytes=32 * MIB)]})
    site = small_site().model_copy(update={"datastores": [store], "vms": [one, two]})
    with data_centre(site, nodes=("node-1",), gate=True, min_free="512 MiB") as started:
        started.start_workers()
        yield started


@contextmanager
def somebody_fills_it(lab: DataCentre) -> Iterator[None]:
    filler = lab.state / "datastores" / "nfs-gold" / "somebodys.iso"
    with filler.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, 600 * MIB)
    _refreshed(lab)
    yield
    filler.unlink()
    _refreshed(lab)


def _refreshed(lab: DataCentre) -> None:
    """As in real sites, vCenter looks at a datastore's free space at its own pace: here when something else changes.

    The hosts measure twice a second at most.
    """
    time.sleep(0.6)
    lab.hosts.set_user(BACKUP_USER, BACKUP_PRIVILEGES)


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_datastore_that_fills_up_while_the_snapshot_is_held_loses_the_snapshot(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.gate.hold("two*-flat.vmdk", MIDDLE)
    start_job(lab, "filling")
    _until(lambda: bool(lab.gate.held))
    with somebody_fills_it(lab):
        time.sleep(WATCH_EVERY_S + 1)
        lab.gate.release()
        wait_end(lab, "filling")
    vm = vm_of(report_of(lab, "filling"), "two")
    assert vm["status"] == "Failed"
    for part in ("step 11", "'nfs-gold'", "min_free_bytes", "removed"):
        assert part in vm["reason"]
    assert witness.problems() == []


def test_it_is_looked_at_before_each_disk_however_short_they_are(lab: DataCentre) -> None:
    """Goal: disks that each take less than a look's time, or that wait for a stream, are not read without a look."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.gate.hold("two-flat.vmdk", MIDDLE)
    start_job(lab, "short disks")
    _until(lambda: bool(lab.gate.held))
    with somebody_fills_it(lab):
        lab.gate.release()
        wait_end(lab, "short disks")
    vm = vm_of(report_of(lab, "short disks"), "two")
    assert vm["status"] == "Failed"
    for part in ("step 11", "'nfs-gold'", "min_free_bytes", "removed"):
        assert part in vm["reason"]
    assert [disk["bytes_read"] > 0 for disk in vm["disks"]] == [True, False]
    assert witness.problems() == []


def test_it_is_looked_at_while_the_vm_waits_for_its_media_agent(
    lab: DataCentre,
) -> None:
    """Goal: the MediaAgent is away, and the datastore fills up meanwhile: the snapshot goes all the same."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    agent = f"media-agent.{MEDIA_AGENT}"
    lab.workers[agent].stop()
    try:
        start_job(lab, "agent away")
        _until(lambda: bool(_snapshots(lab)))
        with somebody_fills_it(lab):
            _until(lambda: not _snapshots(lab), ROOM_LOOKED_AT_EVERY.total_seconds() + 60)
            lab.start_worker("media-agent", MEDIA_AGENT)
            wait_end(lab, "agent away")
    finally:
        if not lab.workers[agent].running:
            lab.start_worker("media-agent", MEDIA_AGENT)
    for vm in report_of(lab, "agent away")["vms"]:
        assert vm["status"] == "Failed"
        for part in ("step 10", "'nfs-gold'", "min_free_bytes", "removed"):
            assert part in vm["reason"]
    assert witness.problems() == []


def _snapshots(lab: DataCentre) -> list[str]:
    """Those of ours."""
    names = (snapshot.name for vm in lab.hosts.state().vms for snapshot in vm.snapshots)
    return [name for name in names if name.startswith("safehaul ")]


def test_no_snapshot_is_made_on_a_datastore_that_is_too_full(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    snapshots_before = len(lab.hosts.frozen_records())
    with somebody_fills_it(lab):
        report = run_job(lab, "full")
    for vm in report["vms"]:
        assert vm["status"] == "Failed"
        for part in ("step 6", "nfs-gold", "min_free_bytes"):
            assert part in vm["reason"]
    assert len(lab.hosts.frozen_records()) == snapshots_before
    assert witness.problems() == []
    after = run_job(lab, "emptied")
    assert after["status"] == "Completed", [vm["reason"] for vm in after["vms"]]
