"""Restores over real parts: in place, a disk into a VM, a new VM with its options; refused, failed, cancelled.

Goal: the restored disks equal the frozen point in time byte for byte, and whatever goes wrong leaves the VM, its disks
and the datastore as they were.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule, Settings, Vm
from lab.esx.paths import split
from lab.other_user import as_user
from lab.processes import tool
from lab.proof import compare_disks, frozen_record
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    RESTORE_PRIVILEGES,
    DatastoreSpec,
    DiskSpec,
    Site,
    SnapshotSpec,
    UserSpec,
    VmSpec,
)
from tests.e2e.site import data_centre, run_job, vm_of, wait_end

MIB = 2**20
ALL_PRIVILEGES = [*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]


def restore_site() -> Site:
    """A VM that is off, one that is on, one with a user's snapshot, one whose configuration cannot be read."""
    return Site(
        networks=["VM Network", "Isolated"],
        distributed_networks=["dv-prod"],
        datastores=[
            DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="local-vmfs", type="VMFS"),
        ],
        vms=[
            VmSpec(
                name="off",
                datastore="nfs-gold",
                power_state="poweredOff",
                disks=[
                    DiskSpec(size_bytes=24 * MIB + 512, content="random"),
                    DiskSpec(size_bytes=32 * MIB, content="random"),
                ],
            ),
            VmSpec(name="on", datastore="nfs-gold", disks=[DiskSpec(size_bytes=16 * MIB)], guest_rate=50),
            VmSpec(
                name="kept",
                datastore="nfs-gold",
                power_state="poweredOff",
                disks=[DiskSpec(size_bytes=8 * MIB)],
                snapshots=[SnapshotSpec(name="mine", description="keep")],
            ),
            VmSpec(
                name="full",
                datastore="nfs-gold",
                power_state="poweredOff",
                disks=[DiskSpec(size_bytes=MIB, content="zero") for _ in range(15)],
            ),
            VmSpec(name="lost", datastore="nfs-gold", connection_state="inaccessible"),
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=ALL_PRIVILEGES),
        ],
        settings=Settings(record_frozen=True),
    )


@dataclass(frozen=True)
class Ran:
    """A data centre in which every readable VM has a backup."""

    lab: DataCentre
    report: dict[str, Any]

    def backup(self, name: str) -> str:
        vm = vm_of(self.report, name)
        return f"{vm['vc_guid']}/{vm['backup_id']}"

    def vm(self, name: str) -> Vm:
        return next(vm for vm in self.lab.hosts.state().vms if vm.name == name)

    def extents(self, vm: Vm) -> list[Path]:
        """The files that hold the VM's disks, in the order of their keys."""
        self.lab.restore_filer.wait_settled()
        found = []
        for disk in sorted(vm.hardware.disks, key=lambda disk: disk.key):
            store, inner = split(disk.chain[0].extent_path)
            found.append(self.lab.state / "datastores" / store / inner)
        return found

    def differs(self, name: str, extents: list[Path]) -> list[str]:
        """How files differ from what the named VM's snapshot froze."""
        vm = vm_of(self.report, name)
        record = frozen_record(self.lab.hosts, self.vm(name).moref, vm["snapshot_moref"])
        keys = [disk["key"] for disk in vm["disks"]]
        return compare_disks(record, dict(zip(keys, extents, strict=True)))

    def files(self) -> dict[str, str]:
        """Every file of the NAS datastore that is no log, with its content's digest."""
        self.lab.restore_filer.wait_settled()
        home = self.lab.state / "datastores" / "nfs-gold"
        found = {}
        for path in sorted(home.rglob("*")):
            if path.is_file() and path.suffix != ".log" and "on/" not in str(path.relative_to(home)):
                with path.open("rb") as file:
                    found[str(path.relative_to(home))] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `safehaul restore …` as a person would."""
        command = [tool("safehaul"), "restore", *arguments]
        uid = self.lab.worker_uid
        return subprocess.run(
            command if uid is None else as_user(uid, command),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
            cwd=self.lab.home,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.lab.home)} | self.lab.environment,
            stdin=subprocess.DEVNULL,
        )

    def restored(self, *arguments: str) -> dict[str, Any]:
        """The report of a restore that must succeed."""
        done = self.restore(*arguments, "--json")
        assert done.returncode == 0, (done.stdout, done.stderr)
        return dict(json.loads(done.stdout)["report"])


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    with data_centre(restore_site(), nodes=("node-1",)) as lab:
        lab.start_workers()
        yield Ran(lab, run_job(lab, "nightly-1"))


@pytest.fixture(autouse=True)
def _clean(ran: Ran) -> Iterator[None]:
    yield
    ran.lab.hosts.clear_faults()
    ran.lab.hosts.set_user(BACKUP_USER, ALL_PRIVILEGES)


def _spoil(path: Path) -> None:
    """What a person restores for: the disk is not what it was."""
    with path.open("r+b") as file:
        file.write(b"\xff" * MIB)


# In place.


def test_a_vm_is_restored_over_itself_and_the_next_job_backs_it_up(ran: Ran) -> None:
    before = ran.vm("off")
    old = ran.extents(before)
    for path in old:
        _spoil(path)
    assert ran.differs("off", old)
    report = ran.restored("vm", ran.backup("off"), "--in-place", "--confirm", "off")
    after = ran.vm("off")
    assert (report["kind"], report["status"], report["moref"]) == ("in-place", "Restored", before.moref)
    assert (after.instance_uuid, after.bios_uuid) == (before.instance_uuid, before.bios_uuid)
    assert report["vc_guid"] == vm_of(ran.report, "off")["vc_guid"]
    assert after.power_state == "poweredOff"
    assert [nic.mac_address for nic in after.hardware.nics] == [
        nic.mac_address for nic in before.hardware.nics
    ]
    new = ran.extents(after)
    assert set(new).isdisjoint(old)
    assert ran.differs("off", new) == []
    places = [(disk.controller_key, disk.unit_number, disk.uuid) for disk in before.hardware.disks]
    assert [(disk.controller_key, disk.unit_number, disk.uuid) for disk in after.hardware.disks] == places
    assert all(path.exists() for path in old), "the old disks are kept"
    assert [item["path"] for item in report["old_disks"]] == [
        disk.chain[0].path for disk in before.hardware.disks
    ]
    assert not any(item["removed"] for item in report["old_disks"])
    again = vm_of(run_job(ran.lab, "nightly-2"), "off")
    assert (again["status"], again["vc_guid"]) == ("Completed", vm_of(ran.report, "off")["vc_guid"])
    assert again["bytes_stored"] == 0, "the restored disks hold what the repository knows"


def test_the_old_disks_are_deleted_by_option_once_the_new_ones_are_attached(ran: Ran) -> None:
    old = ran.extents(ran.vm("off"))
    report = ran.restored("vm", ran.backup("off"), "--in-place", "--confirm", "off", "--delete-old")
    assert [item["removed"] for item in report["old_disks"]] == [True, True]
    assert not any(path.exists() for path in old)
    assert ran.differs("off", ran.extents(ran.vm("off"))) == []


@pytest.mark.parametrize(
    ("name", "confirm", "code", "says"),
    [
        ("off", "of", 2, "confirm: the VM of this backup is called 'off'"),
        ("on", "on", 1, "'on' is poweredOn: shut it down"),
        ("kept", "kept", 1, "'kept' has 1 snapshots"),
    ],
)
def test_in_place_is_refused_before_anything_is_written(
    ran: Ran, name: str, confirm: str, code: int, says: str
) -> None:
    files, vm = ran.files(), ran.vm(name)
    done = ran.restore("vm", ran.backup(name), "--in-place", "--confirm", confirm)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert ran.files() == files
    assert ran.vm(name).hardware == vm.hardware


def test_in_place_without_a_confirmation_is_refused_for_scripts(ran: Ran) -> None:
    done = ran.restore("vm", ran.backup("off"), "--in-place")
    assert done.returncode == 2
    assert "--confirm" in done.stderr


def test_a_switch_that_vcenter_refuses_leaves_the_vm_with_its_old_disks(ran: Ran) -> None:
    files, vm = ran.files(), ran.vm("off")
    ran.lab.hosts.add_fault(FaultRule(operation="ReconfigVM", effect="fail", fault="NotSupported"))
    done = ran.restore("vm", ran.backup("off"), "--in-place", "--confirm", "off", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["report"]["status"] == "Failed"
    assert ran.vm("off").hardware == vm.hardware
    assert ran.files() == files


def test_a_switch_whose_answer_is_lost_is_found_done(ran: Ran) -> None:
    ran.lab.hosts.add_fault(FaultRule(operation="ReconfigVM", effect="drop-after-start"))
    ran.restored("vm", ran.backup("off"), "--in-place", "--confirm", "off", "--delete-old")
    assert ran.differs("off", ran.extents(ran.vm("off"))) == []


# A disk into a VM.


def test_a_disk_is_restored_into_a_running_vm_as_one_more_disk(ran: Ran) -> None:
    before = ran.vm("on")
    report = ran.restored("disk", ran.backup("off"), "Hard disk 2", "--to-vm", "on")
    after = ran.vm("on")
    assert (report["kind"], report["status"], report["name"]) == ("disk", "Restored", "on")
    assert [disk.key for disk in after.hardware.disks][:1] == [disk.key for disk in before.hardware.disks]
    added = after.hardware.disks[-1]
    assert (len(after.hardware.disks), added.unit_number) == (2, 1)
    record = frozen_record(ran.lab.hosts, ran.vm("off").moref, vm_of(ran.report, "off")["snapshot_moref"])
    assert compare_disks(record, {2001: ran.extents(after)[-1]}) == []
    assert added.uuid not in {disk.uuid for disk in ran.vm("off").hardware.disks}, "a disk of its own"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["2000", "--to-vm", "nobody"], 1, "to_vm: vCenter lab has no VM 'nobody'"),
        (["2000", "--to-vm", "lost"], 1, "'lost'"),
        (["2000", "--to-vm", "full"], 1, "no free place"),
        (["9", "--to-vm", "on"], 2, "disk: the backup holds no disk '9'; it holds: 2000 (Hard disk 1)"),
        (["2000", "--to-vm", "on", "--datastore", "local-vmfs"], 1, "'local-vmfs' is VMFS, not NFS"),
        (["2000", "--to-vm", "on", "--datastore", "lead"], 1, "'lead'"),
        (["2000"], 2, "--to FILE or --to-vm NAME"),
    ],
)
def test_a_disk_that_cannot_go_there_is_refused_before_anything_is_written(
    ran: Ran, arguments: list[str], code: int, says: str
) -> None:
    files = ran.files()
    done = ran.restore("disk", ran.backup("off"), *arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert ran.files() == files


# A new VM.


def test_a_new_vm_gets_the_networks_and_the_power_that_were_asked_for(ran: Ran) -> None:
    """By the plain Temporal CLI: every option stands in the workflow's input."""
    request = {
        "backup": ran.backup("on"),
        "name": "on restored",
        "datastore": "nfs-gold",
        "networks": {"VM Network": "dv-prod"},
        "connect": True,
        "power_on": True,
        "host": "esx-2.lab",
        "resource_pool": "Resources",
    }
    done = ran.lab.temporal.cli(
        *("workflow", "start", "--type", "RestoreVm", "--task-queue", "commserve"),
        *("--workflow-id", "restore-1", "--input", json.dumps(request)),
    )
    assert done.returncode == 0, done.stderr
    assert wait_end(ran.lab, "restore-1") == "COMPLETED"
    vm, original = ran.vm("on restored"), ran.vm("on")
    assert (vm.power_state, vm.host) == ("poweredOn", "host-11")
    nic = vm.hardware.nics[0]
    assert (nic.network, nic.connected) == ("dvportgroup-50", True)
    assert nic.mac_address not in {card.mac_address for card in original.hardware.nics}
    assert ran.differs("on", ran.extents(vm)) == []


def test_a_new_vm_keeps_its_addresses_only_when_the_original_is_gone(ran: Ran) -> None:
    arguments = ["vm", ran.backup("kept"), "--datastore", "nfs-gold", "--mac", "keep"]
    files = ran.files()
    refused = ran.restore(*arguments, "--name", "twin")
    assert refused.returncode == 2
    assert "mac: keep is for a VM whose original is gone" in refused.stderr
    assert ran.files() == files
    original = ran.vm("kept")
    ran.lab.hosts.unregister("kept")
    report = ran.restored(*arguments, "--name", "reborn")
    nic = ran.vm("reborn").hardware.nics[0]
    assert nic.mac_address == original.hardware.nics[0].mac_address == report["cards"][0]["mac"]
    assert (nic.connected, report["cards"][0]["network"]) == (False, "VM Network")
    ran.lab.hosts.unregister("reborn")
    started = ran.lab.hosts.register(original.vmx_path, name="kept")
    ran.lab.hosts.wait_task(started.task)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--network", "VM Network=Prod"], 2, "networks: there is no network 'Prod'"),
        (["--network", "Nothing=Isolated"], 2, "networks: no network card of the backup is on 'Nothing'"),
        (["--folder", "prod/none"], 1, "no folder 'prod'"),
        (["--host", "esx-9"], 1, "host 'esx-9'"),
        (["--resource-pool", "Gold"], 1, "no resource pool 'Gold'; it has: 'Resources'"),
        (["--media-agent", "nobody"], 2, "media_agent: the configuration has no 'nobody'"),
        (["--confirm", "off"], 2, "confirm: belongs to in_place only"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_written(
    ran: Ran, options: list[str], code: int, says: str
) -> None:
    files = ran.files()
    arguments = ["--name", "nothing", "--datastore", "nfs-gold", *options]
    done = ran.restore("vm", ran.backup("off"), *arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert ran.files() == files


@pytest.mark.parametrize("privilege", [*RESTORE_PRIVILEGES, "VirtualMachine.Config.AddExistingDisk"])
def test_a_missing_privilege_is_named_before_anything_is_written(ran: Ran, privilege: str) -> None:
    files = ran.files()
    ran.lab.hosts.set_user(BACKUP_USER, [item for item in ALL_PRIVILEGES if item != privilege])
    if privilege.endswith("Disk"):
        arguments = ["--in-place", "--confirm", "off"]
    else:
        arguments = ["--name", "nothing", "--datastore", "nfs-gold", "--power-on"]
    done = ran.restore("vm", ran.backup("off"), *arguments)
    assert (done.returncode, privilege in done.stderr) == (1, True), done.stderr
    assert ran.files() == files


def test_a_vm_that_does_not_power_on_is_restored_and_told(ran: Ran) -> None:
    ran.lab.hosts.add_fault(FaultRule(operation="PowerOnVM", effect="fail", fault="NotSupported"))
    done = ran.restore(
        *("vm", ran.backup("off"), "--name", "asleep", "--datastore", "nfs-gold", "--power-on", "--json")
    )
    report = json.loads(done.stdout)["report"]
    assert (done.returncode, report["status"], report["powered_on"]) == (3, "Partial", False)
    assert "not powered on" in report["reason"]
    assert ran.differs("off", ran.extents(ran.vm("asleep"))) == []


# Cancelled.


async def _cancel_while_writing(
    lab: DataCentre, kind: str, request: dict[str, Any], workflow_id: str
) -> None:
    client = await Client.connect(lab.temporal.address)
    handle = await client.start_workflow(kind, request, id=workflow_id, task_queue="commserve")
    for _ in range(3000):
        progress = await handle.query("progress")
        assert progress["status"] == "Running", progress
        if progress["disk"]:
            break
        await asyncio.sleep(0.01)
    await handle.cancel()


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("RestoreVm", {"name": "half", "datastore": "nfs-gold"}),
        ("RestoreVm", {"in_place": True, "confirm": "off"}),
        ("RestoreDisk", {"disk": "2001", "to_vm": "off"}),
    ],
    ids=["new", "in-place", "disk"],
)
def test_a_cancelled_restore_leaves_nothing_half_made(
    ran: Ran, kind: str, request_: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    files, vm = ran.files(), ran.vm("off")
    workflow_id = f"cancelled-{request.node.callspec.id}"
    asyncio.run(_cancel_while_writing(ran.lab, kind, {"backup": ran.backup("off")} | request_, workflow_id))
    assert wait_end(ran.lab, workflow_id) == "CANCELED"
    assert ran.files() == files
    assert ran.vm("off").hardware == vm.hardware
    assert not [item for item in ran.lab.hosts.state().vms if item.name == "half"]


def test_a_cancel_during_the_switch_comes_too_late_and_the_restore_is_whole(ran: Ran) -> None:
    ran.lab.hosts.add_fault(FaultRule(operation="ReconfigVM", effect="stall", seconds=3.0))

    request = {"backup": ran.backup("off"), "in_place": True, "confirm": "off", "delete_old_disks": True}
    started = ran.lab.temporal.cli(
        *("workflow", "start", "--type", "RestoreVm", "--task-queue", "commserve"),
        *("--workflow-id", "late", "--input", json.dumps(request)),
    )
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 60
    while not any(task.state == "running" for task in ran.lab.hosts.state().tasks):
        assert time.monotonic() < deadline, "the switch has not begun"
        time.sleep(0.05)
    ran.lab.temporal.cli("workflow", "cancel", "--workflow-id", "late")
    assert wait_end(ran.lab, "late") == "COMPLETED"
    assert ran.differs("off", ran.extents(ran.vm("off"))) == []
