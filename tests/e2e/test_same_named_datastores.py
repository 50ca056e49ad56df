"""Goal: one job backs up, and restores bring back, VMs of two datacentres whose datastores have the same name.

The whole way with real workers and filers: what discovery, the nodes, the steps of each VM and a restore tell each
other keeps the two apart, although the filer's address and path, the VMs' names and their directories are the same too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.esx.spec import ClusterSpec, DatacenterSpec
from lab.proof import compare_disks, frozen_record
from lab.site import (
    ADMINISTRATOR,
    BACKUP_USER,
    LAB_PASSWORD,
    DatastoreSpec,
    DiskSpec,
    Settings,
    Site,
    UserSpec,
    VmSpec,
)
from tests.e2e.restore_site import ALL_PRIVILEGES, Ran
from tests.e2e.site import data_centre, run_job

pytestmark = pytest.mark.slow

NEAR, FAR = "DC-Lab", "DC-Far"
STORE = {NEAR: "gold", FAR: "gold-far"}
"""By which name the hosts, and the lab's directories, know each datacentre's datastore `gold`."""
MIB = 2**20


def _site() -> Site:
    return Site(
        more_datacenters=[
            DatacenterSpec(name=FAR, clusters=[ClusterSpec(name="far-a", hosts=["far-1.lab"])])
        ],
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold", datacenter=NEAR),
            DatastoreSpec(
                name="gold-far", shown_as="gold", type="NFS", remote_path="/exports/gold", datacenter=FAR
            ),
        ],
        vms=[
            VmSpec(
                name="web",
                datastore=STORE[name],
                datacenter=name,
                power_state="poweredOff",
                disks=[DiskSpec(size_bytes=2 * MIB, content="random")],
            )
            for name in (NEAR, FAR)
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=ALL_PRIVILEGES),
        ],
        settings=Settings(record_frozen=True),
    )


@pytest.fixture(name="ran", scope="module")
def _ran() -> Iterator[Ran]:
    with data_centre(_site(), nodes=("node-1",)) as lab:
        lab.start_workers()
        yield Ran(lab, run_job(lab, "nightly-1"))


def _moref(ran: Ran, datacenter: str) -> str:
    directory = f"[{STORE[datacenter]}] web/"
    return next(vm.moref for vm in ran.lab.hosts.state().vms if vm.directory == directory)


def _backup(ran: Ran, datacenter: str) -> str:
    """The backup of that datacentre's VM, by its VC.GUID: both are called `web`."""
    guid = next(vm.instance_uuid for vm in ran.lab.hosts.state().vms if vm.moref == _moref(ran, datacenter))
    vm = next(vm for vm in ran.report["vms"] if vm["vc_guid"].endswith(guid))
    return f"{vm['vc_guid']}/{vm['backup_id']}"


def _differs(ran: Ran, datacenter: str, extent: Path) -> list[str]:
    snapshot = next(
        vm["snapshot_moref"] for vm in ran.report["vms"] if _backup(ran, datacenter).startswith(vm["vc_guid"])
    )
    return compare_disks(frozen_record(ran.lab.hosts, _moref(ran, datacenter), snapshot), {2000: extent})


def test_each_backup_holds_the_bytes_of_its_own_vm(ran: Ran) -> None:
    assert ran.report["status"] == "Completed", ran.report
    assert [vm["status"] for vm in ran.report["vms"]] == ["Completed", "Completed"]
    for name in (NEAR, FAR):
        image = ran.lab.home / f"{name}.raw"
        ran.lab.safehaul("restore", "disk", _backup(ran, name), "2000", "--to", str(image))
        assert _differs(ran, name, image) == []


def test_a_restore_must_name_the_datacentre_and_writes_there_alone(ran: Ran) -> None:
    arguments = ("vm", _backup(ran, NEAR), "--name", "moved", "--datastore", "gold")
    refused = ran.restore(*arguments)
    assert refused.returncode == 2
    message = " ".join(refused.stderr.split())
    for part in ("2 datacentres have a datastore 'gold'", f"'{FAR}'", f"'{NEAR}'", "`datacenter`"):
        assert part in message, message
    stores = {name: ran.lab.state / "datastores" / STORE[name] for name in (NEAR, FAR)}
    assert not any((home / "moved").exists() for home in stores.values())
    ran.restored(*arguments, "--datacenter", FAR)
    ran.lab.filers.wait_settled()
    assert _differs(ran, NEAR, stores[FAR] / "moved" / "vm-flat.vmdk") == []
    assert not (stores[NEAR] / "moved").exists()
    moved = next(vm for vm in ran.lab.hosts.state().vms if vm.name == "moved")
    assert moved.vmx_path == "[gold-far] moved/vm.vmx"


def test_a_namesake_in_the_other_datacentre_is_neither_met_nor_harmed(ran: Ran) -> None:
    """Goal: `moved` exists in the far datacentre; the same name, directory and path are free in the near one."""
    before = [vm.moref for vm in ran.lab.hosts.state().vms]
    ran.restored(*("vm", _backup(ran, FAR), "--name", "moved", "--datastore", "gold", "--datacenter", NEAR))
    ran.lab.filers.wait_settled()
    home = ran.lab.state / "datastores" / STORE[NEAR] / "moved"
    assert _differs(ran, FAR, home / "vm-flat.vmdk") == []
    after = ran.lab.hosts.state().vms
    assert [vm.vmx_path for vm in after if vm.moref not in before] == ["[gold] moved/vm.vmx"]
    assert set(before) <= {vm.moref for vm in after}


def test_a_disk_goes_to_the_datastore_of_the_vms_own_datacentre(ran: Ran) -> None:
    guid = _backup(ran, FAR).partition("/")[0]
    done = ran.restore("disk", _backup(ran, NEAR), "2000", "--to-vm", guid, "--datastore", "gold", "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    path = json.loads(done.stdout)["report"]["disks"][0]["path"]
    ran.lab.filers.wait_settled()
    extent = path.partition("] ")[2].removesuffix(".vmdk") + "-flat.vmdk"
    assert _differs(ran, NEAR, ran.lab.state / "datastores" / STORE[FAR] / extent) == []
    assert not (ran.lab.state / "datastores" / STORE[NEAR] / extent).exists()
    vm = next(vm for vm in ran.lab.hosts.state().vms if vm.moref == _moref(ran, FAR))
    assert [disk.chain[0].path.partition("]")[0] for disk in vm.hardware.disks] == ["[gold-far"] * 2


def test_a_vm_is_restored_over_itself_in_its_own_datacentre(ran: Ran) -> None:
    near = ran.lab.state / "datastores" / STORE[NEAR]
    files = {path: path.read_bytes() for path in near.rglob("*.vmdk")}
    report = ran.restored("vm", _backup(ran, FAR), "--in-place", "--confirm", "web", "--delete-old")
    ran.lab.filers.wait_settled()
    extent = report["disks"][0]["path"].partition("] ")[2].removesuffix(".vmdk") + "-flat.vmdk"
    far = ran.lab.state / "datastores" / STORE[FAR]
    assert _differs(ran, FAR, far / extent) == []
    assert [item["removed"] for item in report["old_disks"]] == [True]
    assert not (far / "web" / "web-flat.vmdk").exists()
    assert {path: path.read_bytes() for path in near.rglob("*.vmdk")} == files
