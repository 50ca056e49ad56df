"""Each step of a restore replaced by a successful no-op: the check of the restored VM must miss what the step does."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule
from tests.e2e.replaced import NODE, Replacing, role_of, tiny_site
from tests.e2e.site import data_centre, differences, failure_of, run_job, start_restore, vm_of, wait_end

pytestmark = pytest.mark.slow

DATASTORE = "nfs-gold"
MARKER = "safehaul-restore.json"
ENDS_WITHIN_S = 120.0
QUICK = {"restore_disk"}

# The observable effect of each step (docs/architecture.md), as the check of the restored VM misses it.
RESTORE_STEPS: dict[str, str] = {
    # backup, MediaAgent, vCenter and access nodes stand in the history
    "open_restore": r"the restore failed: VC\.GUID must not be empty",
    # the new VM's directory, with a marker of this restore
    "prepare_restore": r"the restore failed: list 'noop prepare_restore' on .*: no such file or directory",
    # the disk's extent and descriptor, written, read back and compared
    "restore_disk": r"the restore failed: .*noop restore_disk/vm\.vmdk does not exist",
    # the .vmx with a new identity, and the .nvram
    "write_vm_files": r"the restore failed: .*noop write_vm_files/vm\.vmx does not exist",
    # the VM in vCenter's inventory, powered off
    "register_vm": r"the restore failed: \[nfs-gold\] noop register_vm/vm\.vmx is not registered any more",
    # the marker is gone
    "finish_vm": r"safehaul-restore\.json is left behind",
    # nothing of a failed restore
    "discard_restore": r"'vm-flat\.vmdk', .* is left behind",
}


@dataclass(frozen=True)
class BackedUp:
    """A data centre with a backup of VM `one`."""

    lab: DataCentre
    vm: dict[str, Any]
    replacing: Replacing


@pytest.fixture(scope="module")
def backed_up() -> Iterator[BackedUp]:
    with data_centre(tiny_site(), nodes=(NODE,), streams=1) as lab:
        lab.start_workers()
        yield BackedUp(lab, vm_of(run_job(lab, "nightly"), "one"), Replacing(lab))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in sorted(RESTORE_STEPS, key=lambda name: (role_of(name), name))
    ],
)
def test_a_restore_step_that_does_nothing_is_missed(backed_up: BackedUp, name: str) -> None:
    lab = backed_up.lab
    backed_up.replacing.replace(name)
    if name == "discard_restore":
        _refuse_registration(lab)
    copy = f"noop {name}"
    try:
        found = list(_violations(backed_up, copy, _restore(backed_up, copy)))
    finally:
        lab.hosts.clear_faults()
    assert any(re.search(RESTORE_STEPS[name], item) for item in found), found


def test_the_real_steps_pass_the_check(backed_up: BackedUp) -> None:
    backed_up.replacing.restore()
    assert list(_violations(backed_up, "real", _restore(backed_up, "real"))) == []


@pytest.mark.slow
def test_a_real_restore_that_fails_leaves_nothing(backed_up: BackedUp) -> None:
    """The control of `discard_restore`: the same failure, and nothing of it stays."""
    backed_up.replacing.restore()
    _refuse_registration(backed_up.lab)
    try:
        failure = _restore(backed_up, "refused")
    finally:
        backed_up.lab.hosts.clear_faults()
    assert "NotSupported" in failure
    assert list(_violations(backed_up, "refused", failure)) == [f"the restore failed: {failure}"]


def _refuse_registration(lab: DataCentre) -> None:
    """A restore that fails at its last step, with everything written."""
    lab.hosts.add_fault(FaultRule(operation="RegisterVM", effect="fail", fault="NotSupported"))


def _restore(backed_up: BackedUp, name: str) -> str:
    """Restore the backup of `one` as `name`; why it failed, or an empty text."""
    workflow_id = f"restore-{uuid.uuid4().hex[:8]}"
    start_restore(backed_up.lab, workflow_id, backed_up.vm, name)
    ended = wait_end(backed_up.lab, workflow_id, ENDS_WITHIN_S)
    return "" if ended == "COMPLETED" else failure_of(backed_up.lab, workflow_id) or ended


def _violations(backed_up: BackedUp, name: str, failure: str) -> Iterator[str]:
    """What does not hold of a restore as `name`: either a whole VM stands there, or nothing at all."""
    lab = backed_up.lab
    lab.filers.wait_settled()
    home = lab.state / "datastores" / DATASTORE / name
    vms = {vm.name: vm for vm in lab.hosts.state().vms}
    if failure:
        yield f"the restore failed: {failure}"
        if home.exists():
            yield f"{sorted(path.name for path in home.iterdir())} is left behind"
        if name in vms:
            yield f"{name!r} is in vCenter"
        return
    flats = sorted(home.glob("*-flat.vmdk"))
    yield from differences(
        lab,
        backed_up.vm,
        {disk["key"]: flat for disk, flat in zip(backed_up.vm["disks"], flats, strict=False)},
    )
    if (home / MARKER).exists():
        yield f"{MARKER} is left behind"
    if name not in vms:
        yield f"{name!r} is not in vCenter"
        return
    copy, original = vms[name], vms["one"]
    if copy.power_state != "poweredOff":
        yield f"{name!r} is {copy.power_state}"
    if copy.instance_uuid == original.instance_uuid or copy.bios_uuid == original.bios_uuid:
        yield f"{name!r} has the identity of the original"
    if [disk.capacity_bytes for disk in copy.hardware.disks] != [
        disk.capacity_bytes for disk in original.hardware.disks
    ]:
        yield f"{name!r} has {len(copy.hardware.disks)} disks"
