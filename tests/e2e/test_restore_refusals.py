"""Restores that are refused, fail or are cancelled too late.

Goal: whatever goes wrong leaves the VM, its disks and the datastore as they were, and says what to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from lab.esx.api import FaultRule
from lab.site import BACKUP_USER, RESTORE_PRIVILEGES
from tests.e2e.restore_site import ALL_PRIVILEGES, Ran, backed_up, begin_writing
from tests.e2e.site import wait_end

pytestmark = pytest.mark.slow


@pytest.fixture(name="ran", scope="module")
def _ran() -> Iterator[Ran]:
    with backed_up() as ran:
        yield ran


@pytest.fixture(autouse=True)
def _clean(ran: Ran) -> Iterator[None]:
    yield
    ran.lab.hosts.clear_faults()
    ran.lab.hosts.set_user(BACKUP_USER, ALL_PRIVILEGES)


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
        (["--datastore", "lead"], 1, "'lead'"),
        (["--datastore", "local-vmfs"], 1, "'local-vmfs' is VMFS, not NFS"),
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
    assert "left in" not in done.stderr
    assert ran.files() == files


@pytest.mark.parametrize("privilege", RESTORE_PRIVILEGES)
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


def test_a_restore_goes_on_when_its_killed_node_is_back(ran: Ran) -> None:
    request = {"backup": ran.backup("off"), "in_place": True, "confirm": "off"}
    begin_writing(ran.lab, "RestoreVm", request, "node-killed")
    ran.lab.workers["access-node.node-1"].kill()
    ran.lab.start_worker("access-node", "node-1")
    assert wait_end(ran.lab, "node-killed") == "COMPLETED"
    assert ran.differs("off", ran.extents(ran.vm("off"))) == []
