"""Goal: tasks and waits of the simulated vCenter behave as a real client needs, also through cuts and restarts."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetWsdlMethod

from lab.esx.api import Fault
from tests.unit.lab_vcenter_double import HostsDouble
from tests.unit.lab_vcenter_front import (
    PC,
    Front,
    in_background,
    object_filter,
    retrieve,
    values,
    view_filter,
    vm_view,
)

VM = vim.VirtualMachine("vm-1000")


@pytest.fixture(scope="module")
def hosts() -> Iterator[HostsDouble]:
    double = HostsDouble(3)
    yield double
    double.close()


@pytest.fixture(scope="module")
def front(hosts: HostsDouble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    running = Front(hosts.url, tmp_path_factory.mktemp("front"))
    yield running
    running.close()


@pytest.fixture
def si(front: Front) -> Any:
    return front.connect()


def vm_of(si: Any, moref: str = "vm-1000") -> Any:
    return vim.VirtualMachine(moref, si._stub)


def snapshot_tree(si: Any) -> Any:
    return values(retrieve(si, object_filter(VM, ["snapshot"]))[0]).get("snapshot")


def own_collector(si: Any, spec: Any) -> Any:
    collector = si.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(spec, False)
    return collector


def test_snapshot_create_find_remove(si: Any) -> None:
    assert snapshot_tree(si) is None
    created = vm_of(si).CreateSnapshotEx_Task("nightly 50%25", "marker", False, None)
    WaitForTask(created, si=si)
    snapshot = created.info.result
    tree = snapshot_tree(si)
    assert tree.currentSnapshot == snapshot
    assert (tree.rootSnapshotList[0].name, tree.rootSnapshotList[0].description) == (
        "nightly 50%25",
        "marker",
    )
    config = values(retrieve(si, object_filter(snapshot, ["config"]))[0])["config"]
    assert [each.key for each in config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)] == [
        2000
    ]
    WaitForTask(vim.vm.Snapshot(snapshot._moId, si._stub).RemoveSnapshot_Task(False, True), si=si)
    assert snapshot_tree(si) is None
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.vm.Snapshot(snapshot._moId, si._stub).RemoveSnapshot_Task(False)


def test_wait_for_updates_tells_the_end_of_a_task(si: Any) -> None:
    task = vm_of(si).CreateSnapshot_Task("a", "", False, False)
    collector = own_collector(si, object_filter(task, ["info.state", "info.result"]))
    version, states = "", []
    while "success" not in states:
        update = collector.WaitForUpdatesEx(version, PC.WaitOptions(maxWaitSeconds=10))
        version = update.version
        changes = [change for each in update.filterSet[0].objectSet for change in each.changeSet]
        states += [each.val for each in changes if each.name == "info.state"]
    # On a busy machine the task may have ended before the first look.
    assert states in (["running", "success"], ["success"])
    assert collector.WaitForUpdatesEx(version, PC.WaitOptions(maxWaitSeconds=0)) is None
    assert collector.CheckForUpdates(version) is None
    collector.DestroyPropertyCollector()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        collector.CheckForUpdates("")


def test_an_update_whose_answer_was_lost_is_told_again(hosts: HostsDouble, si: Any) -> None:
    collector = own_collector(si, object_filter(VM, ["config.annotation"]))
    first = collector.WaitForUpdatesEx("", None)
    hosts.replace_vm("vm-1000", annotation="new text")
    second = collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=5))
    again = collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=5))
    for update in (second, again):
        (change,) = update.filterSet[0].objectSet[0].changeSet
        assert (change.name, change.val) == ("config.annotation", "new text")
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        collector.WaitForUpdatesEx("77", PC.WaitOptions(maxWaitSeconds=1))
    assert collector.WaitForUpdatesEx("", None).filterSet[0].objectSet[0].kind == "enter"


def test_objects_enter_and_leave_in_bounded_portions(hosts: HostsDouble, si: Any) -> None:
    collector = own_collector(si, view_filter(vm_view(si), vim.VirtualMachine, ["name"]))
    first = collector.WaitForUpdatesEx("", PC.WaitOptions(maxObjectUpdates=2))
    assert len(first.filterSet[0].objectSet) == 2
    assert first.truncated
    second = collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxObjectUpdates=2))
    assert len(second.filterSet[0].objectSet) == 1
    with hosts.lock:
        gone = hosts.state.vms.pop()
        hosts.changed()
    third = collector.WaitForUpdatesEx(second.version, PC.WaitOptions(maxWaitSeconds=5))
    (left,) = third.filterSet[0].objectSet
    assert (left.kind, left.obj._moId) == ("leave", gone.moref)


def test_a_long_wait_ends_with_its_session_and_with_cancel(front: Front, si: Any) -> None:
    collector = own_collector(si, object_filter(VM, ["name"]))
    version = collector.WaitForUpdatesEx("", None).version
    thread, outcome = in_background(
        lambda: collector.WaitForUpdatesEx(version, PC.WaitOptions(maxWaitSeconds=30))
    )
    time.sleep(0.2)
    collector.CancelWaitForUpdates()
    thread.join(5)
    assert isinstance(outcome[0], vmodl.fault.RequestCanceled)
    thread, outcome = in_background(lambda: collector.WaitForUpdates(version))
    time.sleep(0.2)
    front.admin.expire_sessions()
    thread.join(5)
    assert isinstance(outcome[0], vim.fault.NotAuthenticated)


def test_a_wait_ends_when_its_client_hangs_up(front: Front, si: Any) -> None:
    collector = own_collector(si, object_filter(VM, ["name"]))
    version = collector.WaitForUpdatesEx("", None).version
    raw = http.client.HTTPSConnection("127.0.0.1", front.port, context=front.context(), timeout=10)
    body = si._stub.SerializeRequest(collector, GetWsdlMethod("urn:vim25", "WaitForUpdates").info, (version,))
    raw.request("POST", "/sdk", body, {"Cookie": si._stub.cookie})
    time.sleep(0.2)
    raw.close()
    deadline = time.monotonic() + 10
    while front.log()[-1]["fault"] != "ClientGone" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (front.log()[-1]["method"], front.log()[-1]["fault"]) == ("WaitForUpdates", "ClientGone")


def test_missing_privilege_names_itself_and_the_object(front: Front) -> None:
    reader = front.connect("reader")
    vm = vm_of(reader)
    calls = {
        "VirtualMachine.State.CreateSnapshot": lambda: vm.CreateSnapshot_Task("x", "", False, False),
        "VirtualMachine.State.RemoveSnapshot": vm.ConsolidateVMDisks_Task,
        "VirtualMachine.Config.ChangeTracking": lambda: vm.ReconfigVM_Task(
            vim.vm.ConfigSpec(changeTrackingEnabled=True)
        ),
        "VirtualMachine.Inventory.Register": lambda: vim.Folder("group-v3", reader._stub).RegisterVM_Task(
            "[nfs-gold] a/a.vmx", None, False, vim.ResourcePool("resgroup-9"), None
        ),
        "Datastore.Browse": lambda: vim.host.DatastoreBrowser(
            "datastoreBrowser-datastore-11", reader._stub
        ).SearchDatastore_Task("[nfs-gold] a"),
    }
    for privilege, call in calls.items():
        with pytest.raises(vim.fault.NoPermission) as refused:
            call()
        assert refused.value.privilegeId == privilege
    assert refused.value.object is not None


def test_faults_of_the_hosts_arrive_with_their_type_and_fields(hosts: HostsDouble, si: Any) -> None:
    hosts.refuse_next = Fault(
        type="InvalidPowerState",
        message="not now",
        fields={"requestedState": "poweredOff", "existingState": "poweredOn"},
    )
    with pytest.raises(vim.fault.InvalidPowerState) as refused:
        vm_of(si).CreateSnapshot_Task("x", "", False, False)
    assert (refused.value.msg, refused.value.existingState) == ("not now", "poweredOn")
    for name in (
        "TaskInProgress",
        "FileLocked",
        "NoDiskSpace",
        "SnapshotFault",
        "ConcurrentAccess",
        "NotSupported",
    ):
        hosts.refuse_next = Fault(type=name, message=name)
        with pytest.raises(vmodl.MethodFault) as each:
            vm_of(si).CreateSnapshot_Task("x", "", False, False)
        assert type(each.value).__name__.endswith(f".{name}")


def test_a_failed_task_carries_its_fault(hosts: HostsDouble, si: Any) -> None:
    task = vm_of(si).CreateSnapshot_Task("x", "", False, False)
    key = task._moId
    hosts.update_task(key, state="error", error=Fault(type="ApplicationQuiesceFault", message="VSS said no"))
    with pytest.raises(vim.fault.ApplicationQuiesceFault, match="VSS said no"):
        WaitForTask(task, si=si)


def test_a_task_can_be_cancelled(hosts: HostsDouble, si: Any) -> None:
    hosts.task_s = 30.0
    task = vm_of(si).CreateSnapshot_Task("x", "", False, False)
    hosts.task_s = 0.05
    task.CancelTask()
    with pytest.raises(vmodl.fault.RequestCanceled):
        WaitForTask(task, si=si)
    assert task.info.cancelled


def test_a_lost_answer_leaves_the_task_running(hosts: HostsDouble, si: Any) -> None:
    before = len(hosts.state.tasks)
    hosts.drop_next = True
    with pytest.raises((http.client.HTTPException, OSError)):
        vm_of(si).CreateSnapshot_Task("unheard", "", False, False)
    assert len(hosts.state.tasks) == before + 1
    newest = values(retrieve(si, object_filter(VM, ["recentTask"]))[0])["recentTask"][-1]
    WaitForTask(vim.Task(newest._moId, si._stub), si=si)


def test_a_task_outlives_the_front(hosts: HostsDouble, tmp_path: Path) -> None:
    front = Front(hosts.url, tmp_path)
    try:
        hosts.task_s = 1.0
        task = vm_of(front.connect()).CreateSnapshot_Task("survivor", "", False, False)
        hosts.task_s = 0.05
        front.kill()
        front.start()
        again = front.connect()
        WaitForTask(vim.Task(task._moId, again._stub), si=again)
        names = [each.name for each in flattened(snapshot_tree(again).rootSnapshotList)]
        assert "survivor" in names
    finally:
        front.close()


def flattened(trees: list[Any]) -> list[Any]:
    return [each for tree in trees for each in [tree, *flattened(tree.childSnapshotList)]]
