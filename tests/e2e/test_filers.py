"""One job over a filer as real ones are: each datastore read in the version and by the path that its hosts mount."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.filers import GaneshaFilers
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
    results_of,
    run_job,
    start_job,
    vm_of,
    wait_end,
)
from tests.ganesha import GANESHA

pytestmark = [*GANESHA, pytest.mark.slow]
MIB = 2**20
OTHER_RULES: dict[str, dict[str, Any]] = {
    "squashed": {"root_access": False},
    "secure": {"privileged_port": True},
    "elsewhere": {"path": "/exports/another"},
    "other-version": {"versions": ("3",)},
}
"""Datastores whose export for backups is not as this node needs it; the last is mounted by the hosts over v4.1."""


USERS = [
    UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
    UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]),
]
MIDDLE = 16 * MIB
"""An offset in the middle of a disk of 48 MiB: only the transfer reads there."""


def site() -> Site:
    """A VM over both versions, one with a user's snapshot on v4.1, and one for each wrong rule."""
    stores = [
        DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
        DatastoreSpec(name="silver", type="NFS41", remote_path="/exports/deep/silver"),
        *(
            DatastoreSpec(
                name=name, type="NFS41" if name == "other-version" else "NFS", remote_path=f"/exports/{name}"
            )
            for name in OTHER_RULES
        ),
    ]
    disk = DiskSpec(size_bytes=8 * MIB)
    return Site(
        datastores=stores,
        vms=[
            VmSpec(
                name="both",
                datastore="gold",
                disks=[
                    DiskSpec(size_bytes=24 * MIB),
                    DiskSpec(size_bytes=17 * MIB + 512, datastore="silver"),
                ],
                guest_rate=100,
            ),
            VmSpec(
                name="chain",
                datastore="silver",
                disks=[DiskSpec(size_bytes=16 * MIB)],
                snapshots=[SnapshotSpec(name="mine", description="keep")],
                guest_rate=100,
            ),
            *(VmSpec(name=name, datastore=name, disks=[disk], guest_rate=20) for name in OTHER_RULES),
        ],
        users=USERS,
        settings=Settings(record_frozen=True),
    )


@dataclass(frozen=True)
class Ran:
    """A data centre in which the job has run."""

    lab: DataCentre
    report: dict[str, Any]
    witness: Witness
    served_bytes: int


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    with data_centre(site(), nodes=("node-1",), filer="ganesha", export_rules=OTHER_RULES) as lab:
        lab.start_workers()
        witness = Witness(lab.hosts, lab.state / "datastores")
        before = lab.served_bytes()
        report = run_job(lab, "filers-1")
        yield Ran(lab, report, witness, lab.served_bytes() - before)


def test_the_version_and_the_path_were_those_of_the_hosts(ran: Ran) -> None:
    """Goal: the configuration names neither; ganesha exports each datastore in one version only."""
    reads = ran.lab.config.read_text().split("[[restore_exports]]")[0]
    assert "version" not in reads
    (checked,) = results_of(ran.lab, vm_of(ran.report, "both")["child_id"], "check_transport")
    assert [(disk["nfs_version"], disk["export"]) for disk in checked["disks"]] == [
        ("3", "127.0.0.1:/exports/gold"),
        ("4.1", "127.0.0.1:/exports/deep/silver"),
    ]


def test_the_filer_served_what_the_report_claims(ran: Ran) -> None:
    claimed = ran.report["totals"]["bytes_read"]
    assert claimed > 0
    assert abs(ran.served_bytes - claimed) <= 0.05 * claimed


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("squashed", ["step 8", ".vmdk'", "uid 0", "an unreserved port", "no_root_squash"]),
        ("secure", ["'secure'", "rejects uid 0", "an unreserved port", "reserved_port = true"]),
        ("elsewhere", ["'elsewhere'", "/exports/elsewhere", "offers this node", "/exports/another"]),
        ("other-version", ["'other-version'", "NFS version 4.1", "hides"]),
    ],
)
def test_a_vm_whose_filer_keeps_the_node_out_fails_and_says_what_to_change(
    ran: Ran, name: str, parts: list[str]
) -> None:
    vm = vm_of(ran.report, name)
    assert vm["status"] == "Failed"
    assert vm["backup_id"] == ""
    for part in parts:
        assert part in vm["reason"]


@pytest.mark.parametrize(("name", "datastore"), [("chain", "gold"), ("both", "silver")])
def test_a_vm_restored_through_the_writable_export_equals_the_frozen_point_in_time(
    ran: Ran, name: str, datastore: str
) -> None:
    """Goal: byte for byte what the snapshot froze, read over each version and written over each."""
    vm = vm_of(ran.report, name)
    assert vm["status"] == "Completed", vm["reason"]
    new = f"{name} on {datastore}"
    ran.lab.safehaul(
        *("restore", "vm", f"{vm['vc_guid']}/{vm['backup_id']}", "--name", new, "--datastore", datastore)
    )
    home = ran.lab.state / "datastores" / datastore / new
    flats = sorted(home.glob("*-flat.vmdk"), key=lambda path: (len(path.name), path.name))
    keys = [disk["key"] for disk in vm["disks"]]
    assert differences(ran.lab, vm, dict(zip(keys, flats, strict=True))) == []
    vms = {item.name: item.moref for item in ran.lab.hosts.state().vms}
    record = frozen_record(ran.lab.hosts, vms[name], vm["snapshot_moref"])
    assert len(record.disks) == len(flats)
    assert one_point_in_time(record, flats) == ""
    assert {path.stat().st_mode & 0o777 for path in flats} == {0o600}
    assert new in vms


def test_nothing_is_left_behind_and_nothing_foreign_was_touched(ran: Ran) -> None:
    assert ran.witness.problems() == []


@pytest.mark.slow
def test_a_disk_that_goes_from_under_its_reader_is_stale_at_step_11_and_is_read_anew() -> None:
    """Goal: the real thing of vmware-facts 6: the VM moves while it is read, the filer closes what it had open, and the
    access node's handle gets NFS3ERR_STALE on the wire.
    """
    stores = [
        DatastoreSpec(name=name, type="NFS", remote_path=f"/exports/{name}") for name in ("gold", "lead")
    ]
    vm = VmSpec(name="two", datastore="gold", disks=[DiskSpec(size_bytes=48 * MIB)], guest_rate=50)
    small = Site(datastores=stores, vms=[vm], users=USERS, settings=Settings(record_frozen=True))
    with data_centre(small, nodes=("node-1",), filer="ganesha", gate=True) as lab:
        lab.start_workers()
        witness = Witness(lab.hosts, lab.state / "datastores")
        lab.gate.hold("two*-flat.vmdk", MIDDLE)
        start_job(lab, "stale-1")
        deadline = time.monotonic() + 90
        while not lab.gate.held:
            assert time.monotonic() < deadline, "the disk is not read"
            time.sleep(0.05)
        moref = lab.hosts.state().vms[0].moref
        lab.hosts.wait_task(lab.hosts.relocate(moref, "lead").task)
        assert isinstance(lab.filers, GaneshaFilers)
        lab.filers.restart()
        lab.gate.release()
        wait_end(lab, "stale-1")
        moved = vm_of(report_of(lab, "stale-1"), "two")
        assert moved["status"] == "Completed", moved["reason"]
        (told,) = moved["warnings"]
        for part in ("anew", "step 11", "Hard disk 1", "[gold]", "[lead]", "Storage vMotion"):
            assert part in told
        assert "stale file handle" in lab.workers["access-node.node-1"].log_text()
        assert differences(lab, moved, restored_images(lab, moved)) == []
        assert witness.problems() == []
