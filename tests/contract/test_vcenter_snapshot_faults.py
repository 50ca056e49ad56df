"""Goal: in any trouble that the lab can make there is one snapshot of ours, then none, others untouched."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from lab.esx.api import FaultRule
from safehaul.errors import BusyError, NotFoundError, PermissionRefusedError, TransientError
from safehaul.messages import certificate
from safehaul.messages.inventory import VmState
from safehaul.vsphere import tasks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import create, find_all, tree
from tests.contract.lab_server import LabServer
from tests.contract.snapshot_calls import NAME, OURS, before, removed


@pytest.fixture(scope="module")
def vcenter(lab: LabServer) -> VCenter:
    return lab.connect()


@pytest.fixture
def vm(lab: LabServer, vcenter: VCenter) -> Iterator[str]:
    """A VM without snapshots; whatever a test leaves is taken away by its own means."""
    lab.hosts.clear_faults()
    moref = lab.vm("plain").moref
    yield moref
    lab.hosts.clear_faults()
    tasks.wait_out_snapshot_tasks(vcenter, moref)
    for node in tree(vcenter, moref):
        lab.hosts.wait_task(lab.hosts.remove_snapshot(node.moref).task)
    if lab.hosts.vm(moref).consolidation_needed:
        lab.hosts.wait_task(lab.hosts.consolidate(moref).task)
    assert lab.hosts.check_frozen() == []


def test_a_lost_answer_of_creation_still_gives_one_snapshot(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="drop-after-start"))
    taken = create(vcenter, vm, NAME, OURS)
    assert [each.moref for each in find_all(vcenter, vm, NAME, OURS)] == [taken.moref]


def test_a_creation_given_up_is_found_by_the_next_try(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=1.5))

    class GivenUpError(Exception):
        pass

    def give_up(_progress: int | None) -> None:
        raise GivenUpError

    with pytest.raises(GivenUpError):
        create(vcenter, vm, NAME, OURS, heartbeat=give_up)
    assert tasks.running_snapshot_tasks(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    assert taken.adopted
    assert len(tree(vcenter, vm)) == 1


def test_a_removal_without_moref_waits_out_a_creation_under_way(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    state = before(vcenter, vm)
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=1.5))
    lab.hosts.create_snapshot(vm, NAME, OURS)
    record = removed(vcenter, vm, state)
    assert len(record.morefs) == 1
    assert tree(vcenter, vm) == []


def test_a_lost_answer_of_removal_still_removes(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    lab.hosts.add_fault(FaultRule(operation="RemoveSnapshot", effect="drop-after-start"))
    record = removed(vcenter, vm, state, taken.moref)
    assert record.tree_after == []


@pytest.mark.parametrize("effect", ["locked", "no-space"])
def test_a_removal_that_fails_half_way_is_consolidated(
    lab: LabServer, vcenter: VCenter, vm: str, effect: str
) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    time.sleep(0.1)  # the guest writes into the redo log
    lab.hosts.add_fault(FaultRule.model_validate({"operation": "RemoveSnapshot", "effect": effect}))
    lab.hosts.add_fault(FaultRule.model_validate({"operation": "ConsolidateVMDisks", "effect": effect}))
    record = removed(vcenter, vm, state, taken.moref)
    assert record.consolidations >= 2
    assert not record.consolidation_needed_after
    assert {each.path for each in before(vcenter, vm).listed} == {each.path for each in state.listed}


def test_a_lock_that_stays_is_never_reported_as_removed(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    for operation in ("RemoveSnapshot", "ConsolidateVMDisks"):
        lab.hosts.add_fault(FaultRule(operation=operation, effect="locked", nth=None, times=100))
    with pytest.raises(BusyError, match="not gone yet"):
        removed(vcenter, vm, state, taken.moref, timeout_s=2)
    lab.hosts.clear_faults()
    # The next try finds the snapshot out of the tree, and pays the debt that is ours.
    record = removed(vcenter, vm, state, taken.moref)
    assert record.already_gone
    assert record.consolidations == 1


def test_debt_of_somebody_else_is_not_consolidated(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    foreign = create(vcenter, vm, "by hand", "Ada")
    lab.hosts.add_fault(FaultRule(operation="RemoveSnapshot", effect="locked"))
    with pytest.raises(TransientError):
        tasks.wait(vcenter, lab.hosts.remove_snapshot(foreign.moref).task)
    state = before(vcenter, vm)
    assert state.consolidation_needed
    ours = create(vcenter, vm, NAME, OURS)
    consolidations = lab.admin.call_counts().get("ConsolidateVMDisks_Task", 0)
    record = removed(vcenter, vm, state, ours.moref)
    assert record.tree_after == []
    assert record.consolidation_needed_before
    assert record.consolidations == 0
    assert lab.admin.call_counts().get("ConsolidateVMDisks_Task", 0) == consolidations


@pytest.mark.parametrize("effect", ["", "locked"])
def test_a_users_snapshot_taken_while_ours_is_held_keeps_every_file(
    lab: LabServer, vcenter: VCenter, vm: str, effect: str
) -> None:
    """Also when our removal fails half way and its disks are consolidated below the user's snapshot."""
    state = before(vcenter, vm)
    ours = create(vcenter, vm, NAME, OURS)
    held = {each.path for each in before(vcenter, vm).listed}
    theirs = create(vcenter, vm, "by hand", "Ada")
    their_files = {each.path for each in before(vcenter, vm).listed} - held
    assert any(path.endswith("-delta.vmdk") for path in their_files)
    if effect:
        for operation in ("RemoveSnapshot", "ConsolidateVMDisks"):
            lab.hosts.add_fault(FaultRule.model_validate({"operation": operation, "effect": effect}))
    record = removed(vcenter, vm, state, ours.moref)
    assert bool(record.consolidations) == bool(effect)
    assert [each.moref for each in record.tree_after] == [theirs.moref]
    now = {each.path for each in before(vcenter, vm).listed}
    assert their_files <= now
    assert their_files <= set(record.appeared)
    assert not their_files & {*record.snapshot_files, *record.files_left}
    assert now == {each.path for each in state.listed} | their_files, "nothing of ours is left"
    made = certificate.issue(
        record, vc_guid="vc.vm", vm_name="plain", moref=ours.moref, created_at=ours.created
    )
    assert set(made.files_of_others) >= their_files


def test_old_debt_and_a_users_snapshot_taken_during_ours_are_both_left_alone(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    """The debt is somebody's failed removal from before; we report it, and never consolidate."""
    foreign = create(vcenter, vm, "before us", "Ada")
    lab.hosts.add_fault(FaultRule(operation="RemoveSnapshot", effect="locked"))
    with pytest.raises(TransientError):
        tasks.wait(vcenter, lab.hosts.remove_snapshot(foreign.moref).task)
    state = before(vcenter, vm)
    assert state.consolidation_needed
    ours = create(vcenter, vm, NAME, OURS)
    theirs = create(vcenter, vm, "during ours", "Bob")
    their_files = {each.path for each in before(vcenter, vm).files if each.path not in _known(state)}
    asked = lab.admin.call_counts().get("ConsolidateVMDisks_Task", 0)
    record = removed(vcenter, vm, state, ours.moref)
    assert lab.admin.call_counts().get("ConsolidateVMDisks_Task", 0) == asked
    assert (record.consolidation_needed_before, record.consolidations) == (True, 0)
    assert [each.moref for each in record.tree_after] == [theirs.moref]
    assert record.files_left == []
    now = before(vcenter, vm)
    assert {each.path for each in now.files if each.path in their_files} <= {each.path for each in now.listed}
    made = certificate.issue(
        record, vc_guid="vc.vm", vm_name="plain", moref=ours.moref, created_at=ours.created
    )
    assert made.consolidation_needed_before


def _known(state: VmState) -> set[str]:
    return {each.path for each in (*state.listed, *state.files)}


def test_a_missing_privilege_is_named(lab: LabServer, vm: str) -> None:
    reader = lab.connect(user="reader")
    with pytest.raises(PermissionRefusedError, match=r"VirtualMachine\.State\.CreateSnapshot"):
        create(reader, vm, NAME, OURS)


def test_a_vm_that_vcenter_cannot_read_proves_no_removal(lab: LabServer, vcenter: VCenter) -> None:
    lost = next(each.moref for each in lab.hosts.state().vms if each.name == "lost")
    with pytest.raises(BusyError, match="inaccessible"):
        remove(vcenter, lost, name=NAME, description=OURS, timeout_s=2)


def test_tasks_are_heard_cancelled_and_timed_out(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=30))
    task = lab.hosts.create_snapshot(vm, "slow", "x").task
    beats: list[int | None] = []
    with pytest.raises(BusyError, match="after 1 s"):
        tasks.wait(vcenter, task, beats.append, timeout_s=1)
    assert len(beats) >= 2
    assert tasks.running_snapshot_tasks(vcenter, vm) == [task]
    # Only an account with Global.CancelTask may cancel what another one started.
    owner = lab.connect(user="root@vsphere.local")
    with pytest.raises(PermissionRefusedError, match=r"Global\.CancelTask"):
        tasks.cancel(vcenter, task)
    tasks.cancel(owner, task)
    with pytest.raises(TransientError):
        tasks.wait(vcenter, task)
    tasks.cancel(owner, task)
    assert tasks.running_snapshot_tasks(vcenter, vm) == []
    with pytest.raises(NotFoundError):
        tasks.wait(vcenter, "task-999999")


def test_a_wait_survives_a_restart_of_vcenter(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=3))
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.append(create(vcenter, vm, NAME, OURS))
        except Exception as error:  # noqa: BLE001 - told to the test's thread
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 10
    while not tasks.running_snapshot_tasks(vcenter, vm):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lab.kill()
    time.sleep(0.5)
    lab.start()
    thread.join(timeout=60)
    assert [getattr(each, "name", each) for each in outcome] == [NAME]
    assert len(tree(vcenter, vm)) == 1


def test_a_creation_that_is_called_off_in_time_asks_vcenter_for_nothing(
    lab: LabServer, vcenter: VCenter, vm: str
) -> None:
    """Called off while it waited for somebody's task: the check stands after the waiting, right before the call."""
    calls = lab.admin.call_counts().get("CreateSnapshot_Task", 0)
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=1.0))
    lab.hosts.create_snapshot(vm, "by hand", "Ada")

    def called_off() -> None:
        raise BusyError("called off")

    with pytest.raises(BusyError, match="called off"):
        create(vcenter, vm, NAME, OURS, before_asking=called_off)
    assert [each.name for each in tree(vcenter, vm)] == ["by hand"]
    assert lab.admin.call_counts().get("CreateSnapshot_Task", 0) == calls
