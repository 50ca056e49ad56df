"""VMs that are not as one would wish: a user's snapshot on top of ours, disks that are not on NAS, a physical RDM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import Snapshot
from lab.proof import Witness, frozen_record, one_point_in_time
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
    SnapshotSpec,
    UserSpec,
    VmSpec,
)
from tests.e2e.site import (
    data_centre,
    differences,
    report_of,
    restored_images,
    run_job,
    start_job,
    until,
    vm_of,
    wait_end,
)

pytestmark = pytest.mark.slow

MIB = 2**20
MIDDLE = 16 * MIB
"""An offset in the middle of `shared`'s disk: only the transfer reads there."""
ADAS = "Ada's, before her change"


def _site() -> Site:
    return Site(
        datastores=[
            DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="local-vmfs", type="VMFS"),
        ],
        vms=[
            VmSpec(
                name="shared",
                datastore="nfs-gold",
                disks=[DiskSpec(size_bytes=64 * MIB)],
                snapshots=[SnapshotSpec(name="old", description="keep")],
                guest_rate=200,
            ),
            VmSpec(
                name="half-local",
                datastore="nfs-gold",
                disks=[DiskSpec(size_bytes=16 * MIB), DiskSpec(size_bytes=16 * MIB, datastore="local-vmfs")],
                guest_rate=50,
            ),
            VmSpec(
                name="local-only", datastore="local-vmfs", disks=[DiskSpec(size_bytes=8 * MIB)], guest_rate=50
            ),
            VmSpec(
                name="with-rdm",
                datastore="nfs-gold",
                disks=[DiskSpec(size_bytes=16 * MIB), DiskSpec(size_bytes=8 * MIB, rdm="physicalMode")],
                guest_rate=50,
            ),
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            ),
        ],
        settings=Settings(record_frozen=True),
    )


@dataclass(frozen=True)
class Ran:
    """A data centre in which a job has run, during whose transfer Ada took a snapshot of VM `shared`."""

    lab: DataCentre
    witness: Witness
    report: dict[str, Any]
    adas: Snapshot


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    with data_centre(_site(), nodes=("node-1",), gate=True) as lab:
        lab.start_workers()
        witness = Witness(lab.hosts, lab.state / "datastores")
        lab.gate.hold("shared*-flat.vmdk", MIDDLE)
        start_job(lab, "mixed")
        until(lambda: bool(lab.gate.held))
        lab.hosts.wait_task(lab.hosts.create_snapshot(_moref(lab, "shared"), ADAS, "keep").task)
        held = {item.name.split()[0]: item for item in _snapshots(lab)}
        assert held["Ada's,"].parent == held["safehaul"].moref, "ours is in the middle of the tree"
        time.sleep(1)  # the guest writes on: into her redo log
        lab.gate.release()
        wait_end(lab, "mixed")
        yield Ran(lab, witness, report_of(lab, "mixed"), held["Ada's,"])


def test_a_users_snapshot_on_top_of_ours_stands_and_ours_is_gone(ran: Ran) -> None:
    shared = vm_of(ran.report, "shared")
    assert shared["status"] == "Completed", shared["reason"]
    assert differences(ran.lab, shared, restored_images(ran.lab, shared)) == []
    old, adas = sorted(_snapshots(ran.lab), key=lambda item: item.create_time)
    assert (old.name, old.description, adas.moref, adas.description) == (
        "old",
        "keep",
        ran.adas.moref,
        "keep",
    )
    assert adas.parent == old.moref
    vm = ran.lab.hosts.vm(_moref(ran.lab, "shared"))
    assert vm.current_snapshot == adas.moref
    assert not vm.consolidation_needed
    assert ran.lab.hosts.check_frozen() == []


def test_what_the_users_snapshot_froze_reads_as_before(ran: Ran) -> None:
    """Through the chain as it is now, against the digest that was made when she took it."""
    record = frozen_record(ran.lab.hosts, _moref(ran.lab, "shared"), ran.adas.moref)
    for disk in record.disks:
        now = ran.lab.hosts.frozen_digest(ran.adas.moref, disk.disk_key)
        assert (now.sha256, now.capacity_bytes) == (disk.sha256, disk.capacity_bytes)


@pytest.mark.parametrize(
    ("name", "skipped", "says"),
    [
        ("half-local", 2001, "datastore 'local-vmfs' is VMFS, not NFS"),
        ("with-rdm", 2001, "it is not a file on an NFS datastore"),
    ],
)
def test_a_disk_that_nas_cannot_read_makes_the_vm_partial(
    ran: Ran, name: str, skipped: int, says: str
) -> None:
    vm = vm_of(ran.report, name)
    assert vm["status"] == "Partial", vm["reason"]
    assert [(disk["key"], disk["transport"]) for disk in vm["disks"]] == [(2000, "nas"), (skipped, "none")]
    assert says in vm["reason"]
    assert "Hard disk 2" in vm["reason"]
    images = restored_images(ran.lab, vm)
    assert differences(ran.lab, vm, images) == []
    shown = ran.lab.safehaul("backups", "show", f"{vm['vc_guid']}/{vm['backup_id']}")
    assert "Hard disk 2" in shown


def test_a_vm_without_any_nas_disk_fails_before_a_snapshot_is_made(ran: Ran) -> None:
    vm = vm_of(ran.report, "local-only")
    assert vm["status"] == "Failed"
    assert "NFS" in vm["reason"]
    assert vm["backup_id"] == ""
    assert "local-only" not in {record.vm_name for record in ran.lab.hosts.frozen_records()}


def test_of_the_vms_only_her_snapshot_and_its_files_are_new(ran: Ran) -> None:
    moref = _moref(ran.lab, "shared")
    layout = ran.lab.hosts.layout(moref)
    for disk in layout.disks:
        assert len(disk.chain) == len(_snapshots(ran.lab)) + 1, "one redo log for each snapshot, none of ours"
    in_use = {file.path.rsplit("/", 1)[-1] for file in layout.files}
    expected = [f"snapshot {ran.adas.moref} ({ADAS!r})", *(f"file {name}" for name in sorted(in_use))]
    for line in ran.witness.problems():
        assert line in [f"shared: {what} is left behind" for what in expected], line


def test_the_next_job_reads_on_top_of_her_snapshot(ran: Ran) -> None:
    """Last: the chain that our removal left in place is right for whoever comes next, and what she wrote is there."""
    witness = Witness(ran.lab.hosts, ran.lab.state / "datastores")
    again = vm_of(run_job(ran.lab, "after"), "shared")
    assert again["status"] == "Completed", again["reason"]
    images = restored_images(ran.lab, again)
    assert differences(ran.lab, again, images) == []
    record = frozen_record(ran.lab.hosts, _moref(ran.lab, "shared"), again["snapshot_moref"])
    assert record.frozen_sequence > ran.adas.frozen_sequence
    assert one_point_in_time(record, list(images.values())) == ""
    assert witness.problems() == []


def _moref(lab: DataCentre, name: str) -> str:
    return next(vm.moref for vm in lab.hosts.state().vms if vm.name == name)


def _snapshots(lab: DataCentre) -> list[Snapshot]:
    return lab.hosts.vm(_moref(lab, "shared")).snapshots
