"""Goal: asked any number of times, in any trouble, there is one snapshot of ours, then none, others untouched."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator

import pytest

from lab.esx.api import FaultRule
from safehaul.errors import (
    BusyError,
    InvalidInputError,
    NotFoundError,
    PermanentError,
    PermissionRefusedError,
    TransientError,
)
from safehaul.messages.inventory import SnapshotNode, VmState
from safehaul.messages.snapshots import RemovalRecord
from safehaul.vsphere import snapshots, tasks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.marker import marker
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import create, find, find_all, tree
from safehaul.vsphere.vms import snapshot_disks, vm_state
from tests.contract.vcenter_server import SERVERS, LabServer, Server, lab_server

NAME = "safehaul-nightly-1"
OURS = marker("site", "namespace", "backup-vm/1", "run-1", "vc.vm")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with SERVERS[request.param](tmp_path_factory.mktemp("any")) as running:
        yield running


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


def before(vcenter: VCenter, vm: str) -> VmState:
    return vm_state(vcenter, vm, list_directories=True)


def removed(
    vcenter: VCenter, vm: str, state: VmState, snapshot: str = "", timeout_s: float = 30
) -> RemovalRecord:
    return remove(
        vcenter, vm, name=NAME, description=OURS, snapshot_moref=snapshot, before=state, timeout_s=timeout_s
    )


def test_create_twice_gives_one_and_remove_twice_gives_none(server: Server) -> None:
    session, vm = server.connect(), server.vm(server.plain_vm()).moref
    state = vm_state(session, vm)
    first = create(session, vm, NAME, OURS)
    again = create(session, vm, NAME, OURS)
    assert again.moref == first.moref
    assert (first.adopted, again.adopted) == (False, True)
    found = find(session, vm, NAME, OURS)
    assert found is not None
    assert found.moref == first.moref
    assert snapshot_disks(session, first.moref)
    record = removed(session, vm, state, first.moref)
    assert record.morefs == [first.moref]
    assert [each.moref for each in record.tree_before] == [first.moref]
    assert find_all(session, vm, NAME, OURS) == record.tree_after == []
    assert removed(session, vm, state, first.moref).already_gone


def test_the_frozen_disk_is_the_base_and_nothing_is_left(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    held = before(vcenter, vm)
    assert snapshot_disks(vcenter, taken.moref)[0].path == state.disks[0].path
    assert held.disks[0].parent_paths == [state.disks[0].path]
    assert len(held.listed) > len(state.listed)
    record = removed(vcenter, vm, state, taken.moref)
    assert record.files_checked
    assert not record.consolidation_needed_after
    after = before(vcenter, vm)
    assert {each.path for each in after.listed} == {each.path for each in state.listed}
    assert after.disks[0].path == state.disks[0].path


def test_foreign_snapshots_above_and_below_stay(lab: LabServer, vcenter: VCenter, vm: str) -> None:
    below = create(vcenter, vm, "by hand", "Ada")
    state = before(vcenter, vm)
    ours = create(vcenter, vm, NAME, OURS)
    above = create(vcenter, vm, "by hand", "Bob")
    record = removed(vcenter, vm, state, ours.moref)
    assert [each.moref for each in record.tree_after] == [below.moref, above.moref]
    assert record.appeared, "the later snapshot's files appeared and belong to it"
    assert snapshot_disks(vcenter, above.moref)


def test_a_recorded_moref_that_is_not_ours_is_left_alone(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    foreign = create(vcenter, vm, NAME, "somebody else's description")
    with pytest.raises(PermanentError, match="not ours"):
        removed(vcenter, vm, state, foreign.moref)
    assert [each.moref for each in tree(vcenter, vm)] == [foreign.moref]
    # Without a moref nothing has exactly our name and marker.
    assert removed(vcenter, vm, state).already_gone
    assert [each.moref for each in tree(vcenter, vm)] == [foreign.moref]


@pytest.mark.parametrize(("name", "description"), [("", OURS), (NAME, "")])
def test_an_empty_name_or_marker_removes_nothing(
    vcenter: VCenter, vm: str, name: str, description: str
) -> None:
    with pytest.raises(PermanentError):
        remove(vcenter, vm, name=name, description=description)
    with pytest.raises(InvalidInputError):
        create(vcenter, vm, name, description)


def test_a_snapshot_of_ours_is_adopted_whatever_the_clocks_say(
    vcenter: VCenter, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vCenter whose clock is an hour behind Temporal's: the second try of a workflow finds what the first made."""
    first = create(vcenter, vm, NAME, OURS)

    def tree_of_a_slow_clock(session: VCenter, moref: str) -> list[SnapshotNode]:
        behind = (dt.datetime.fromisoformat(first.created) - dt.timedelta(hours=1)).isoformat()
        return [each.model_copy(update={"created": behind}) for each in tree(session, moref)]

    monkeypatch.setattr(snapshots, "tree", tree_of_a_slow_clock)
    assert create(vcenter, vm, NAME, OURS).adopted
    assert [each.moref for each in find_all(vcenter, vm, NAME, OURS)] == [first.moref]


def test_another_runs_snapshot_is_not_adopted(vcenter: VCenter, vm: str) -> None:
    """Last night's leaked one: the same workflow id, another first run."""
    state = before(vcenter, vm)
    old = create(vcenter, vm, "safehaul run-0", marker("site", "namespace", "backup-vm/1", "run-0", "vc.vm"))
    new = create(vcenter, vm, NAME, OURS)
    assert (new.adopted, new.moref != old.moref) == (False, True)
    assert removed(vcenter, vm, state, new.moref).morefs == [new.moref]
    assert [each.moref for each in tree(vcenter, vm)] == [old.moref]


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


def test_a_renamed_snapshot_of_ours_is_left_alone_and_never_called_gone(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    renamed = create(vcenter, vm, "do not touch", OURS)
    for recorded in ("", renamed.moref):
        with pytest.raises(PermanentError, match="do not touch"):
            removed(vcenter, vm, state, recorded)
    assert [each.moref for each in tree(vcenter, vm)] == [renamed.moref]


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


def test_a_missing_privilege_is_named(lab: LabServer, vm: str) -> None:
    reader = lab.connect(user="reader")
    with pytest.raises(PermissionRefusedError, match=r"VirtualMachine\.State\.CreateSnapshot"):
        create(reader, vm, NAME, OURS)


def test_templates_and_unknown_vms_are_refused(lab: LabServer, vcenter: VCenter) -> None:
    with pytest.raises(PermanentError):
        create(vcenter, lab.vm("golden").moref, NAME, OURS)
    with pytest.raises(NotFoundError):
        create(vcenter, "vm-999999", NAME, OURS)
    with pytest.raises(NotFoundError):
        remove(vcenter, "vm-999999", name=NAME, description=OURS)


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
