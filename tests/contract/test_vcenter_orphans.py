"""Goal: an orphan's removal is proved without anybody's record; a phantom delta is told from a living one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.esx.api import FaultRule
from safehaul.errors import BusyError
from safehaul.messages import certificate
from safehaul.vsphere import tasks
from safehaul.vsphere.all_snapshots import _named_by_others, all_snapshots, look_at_orphan, phantom_deltas
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import create
from tests.contract.lab_server import LabServer
from tests.contract.snapshot_calls import NAME, OURS, before, remove_all, removed


@pytest.fixture(scope="module")
def vcenter(lab: LabServer) -> VCenter:
    return lab.connect()


@pytest.fixture
def vm(lab: LabServer, vcenter: VCenter) -> Iterator[str]:
    lab.hosts.clear_faults()
    moref = lab.vm("plain").moref
    yield moref
    lab.hosts.clear_faults()
    tasks.wait_out_snapshot_tasks(vcenter, moref)
    remove_all(vcenter, moref)
    if lab.hosts.vm(moref).consolidation_needed:
        lab.hosts.wait_task(lab.hosts.consolidate(moref).task)
    assert lab.hosts.check_frozen() == []


def test_a_vm_that_cannot_be_read_has_no_empty_tree(lab: LabServer, vcenter: VCenter) -> None:
    found = {vm.name: vm for vm in all_snapshots(vcenter)}
    assert "inaccessible" in found["lost"].unreadable
    assert found["twin a"].vc_guid == found["twin b"].vc_guid


@pytest.mark.parametrize("locked", [False, True])
def test_an_orphan_is_removed_and_certified_between_other_peoples_snapshots(
    lab: LabServer, vcenter: VCenter, vm: str, *, locked: bool
) -> None:
    """Nobody has recorded the VM before: the look at it tells which files are the orphan's."""
    at_first = before(vcenter, vm)
    below = create(vcenter, vm, "by hand", "Ada")
    ours = create(vcenter, vm, NAME, OURS)
    above = create(vcenter, vm, "later", "Bob")
    node, state = look_at_orphan(vcenter, vm, "", (NAME, OURS), tasks.no_heartbeat)
    assert node is not None
    assert state is not None
    assert (node.moref, [each.moref for each in state.snapshots]) == (
        ours.moref,
        [below.moref, above.moref],
    )
    if locked:
        for operation in ("RemoveSnapshot", "ConsolidateVMDisks"):
            lab.hosts.add_fault(FaultRule(operation=operation, effect="locked"))
    record = remove(
        vcenter, vm, name=NAME, description=OURS, snapshot_moref=ours.moref, before=state, timeout_s=30
    )
    made = certificate.issue(
        record, vc_guid="vc.vm", vm_name="plain", moref=ours.moref, created_at=node.created
    )
    assert [each.moref for each in made.tree_after] == [below.moref, above.moref]
    assert any(path.endswith("-delta.vmdk") for path in made.snapshot_files)
    now = {each.path for each in before(vcenter, vm).listed}
    assert not now & set(made.snapshot_files)
    assert set(made.files_of_others) <= now
    remove_all(vcenter, vm)
    assert {each.path for each in before(vcenter, vm).listed} == {each.path for each in at_first.listed}


def test_an_orphan_whose_disks_stay_locked_is_never_called_gone(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    ours = create(vcenter, vm, NAME, OURS)
    _, state = look_at_orphan(vcenter, vm, "", (NAME, OURS), tasks.no_heartbeat)
    for operation in ("RemoveSnapshot", "ConsolidateVMDisks"):
        lab.hosts.add_fault(FaultRule(operation=operation, effect="locked", nth=None, times=100))
    with pytest.raises(BusyError, match="not gone yet"):
        removed(vcenter, vm, state, ours.moref, timeout_s=2)
    lab.hosts.clear_faults()
    assert removed(vcenter, vm, state, ours.moref).already_gone


def test_an_orphan_that_went_by_itself_is_told_so(vcenter: VCenter, vm: str) -> None:
    create(vcenter, vm, NAME, "somebody else's")
    assert look_at_orphan(vcenter, vm, "", (NAME, OURS), tasks.no_heartbeat) == (None, None)


def test_a_vm_in_the_middle_of_a_snapshot_task_is_for_the_next_sweep(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    create(vcenter, vm, NAME, OURS)
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=2.0))
    lab.hosts.create_snapshot(vm, "by hand", "Ada")
    with pytest.raises(BusyError, match="in the middle of a snapshot task"):
        look_at_orphan(vcenter, vm, "", (NAME, OURS), tasks.no_heartbeat)


def test_a_phantom_delta_is_found_and_a_snapshots_is_not(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    create(vcenter, vm, "by hand", "Ada")
    assert phantom_deltas(vcenter, vm) == []
    directory = lab.hosts.vm(vm).directory
    (home,) = [path.parent for path in lab.datastores.rglob("plain.vmx") if path.parent.name in directory]
    left = [home / "plain-000077.vmdk", home / "plain-000077-delta.vmdk"]
    try:
        for path in left:
            path.write_bytes(b"left")
        found = phantom_deltas(vcenter, vm)
    finally:
        for path in left:
            path.unlink()
    assert [path.rpartition("/")[2] for path in found] == sorted(path.name for path in left)


def test_a_redo_log_of_another_vm_in_the_same_directory_is_no_phantom(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    """Its own `layoutEx` names it."""
    others = before(vcenter, lab.vm("off").moref)
    create(vcenter, lab.vm("off").moref, "by hand", "Ada")
    try:
        held = before(vcenter, lab.vm("off").moref)
        new = {each.path for each in held.listed} - {each.path for each in others.listed}
        assert any(path.endswith("-delta.vmdk") for path in new)
        named = _named_by_others(vcenter, held.datastore_morefs, tasks.no_heartbeat)
        assert {path for path in new if path.endswith("-delta.vmdk")} <= named
    finally:
        remove_all(vcenter, lab.vm("off").moref)
