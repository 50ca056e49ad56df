"""Restores over real parts: in place, a disk into a VM, a new VM with its options, cancelled ones.

Goal: the restored disks equal the frozen point in time byte for byte, and a cancel leaves everything as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.proof import compare_disks, frozen_record
from tests.e2e.restore_site import MIB, Ran, backed_up, begin_writing
from tests.e2e.site import run_job, vm_of, wait_end

pytestmark = pytest.mark.slow


@pytest.fixture(name="ran", scope="module")
def _ran() -> Iterator[Ran]:
    with backed_up() as ran:
        yield ran


def _spoil(path: Path) -> None:
    """What a person restores for: the disk is not what it was."""
    with path.open("r+b") as file:
        file.write(b"\xff" * MIB)


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


def test_a_disk_is_restored_into_a_running_vm_as_one_more_disk(ran: Ran) -> None:
    before = ran.vm("on")
    report = ran.restored("disk", ran.backup("off"), "Hard disk 2", "--to-vm", "on")
    after = ran.vm("on")
    assert (report["kind"], report["status"], report["name"]) == ("disk", "Restored", "on")
    assert [disk.key for disk in after.hardware.disks][:1] == [disk.key for disk in before.hardware.disks]
    added = after.hardware.disks[-1]
    assert (len(after.hardware.disks), added.unit_number) == (2, 1)
    record = frozen_record(ran.lab.hosts, ran.vm("off").moref, vm_of(ran.report, "off")["snapshot_moref"])
    not_this = {2000: "only Hard disk 2 is restored"}
    assert compare_disks(record, {2001: ran.extents(after)[-1]}, not_this) == []
    assert added.uuid not in {disk.uuid for disk in ran.vm("off").hardware.disks}, "a disk of its own"


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
    begin_writing(ran.lab, kind, {"backup": ran.backup("off")} | request_, workflow_id)
    ran.lab.temporal.cli("workflow", "cancel", "--workflow-id", workflow_id)
    assert wait_end(ran.lab, workflow_id) == "CANCELED"
    assert ran.files() == files
    assert ran.vm("off").hardware == vm.hardware
    assert not [item for item in ran.lab.hosts.state().vms if item.name == "half"]
