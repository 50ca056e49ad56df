"""Goal: tasks outlive clients and crashes, can be cancelled, and fail exactly as planned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.esx.api import FaultRule, Settings, Task
from lab.esx.client import HostClient, HostFault, HostUnreachableError
from lab.esx.process import HostsProcess
from lab.guests.checker import check_point_in_time
from lab.site import DatastoreSpec, DiskSpec, Site, SnapshotSpec, UserSpec, VmSpec, build

MIB = 1024 * 1024
FAST = Settings(default_duration_s=0.05, record_frozen=True)


def small_site() -> Site:
    return Site(
        datastores=[DatastoreSpec(name="nfs", type="NFS"), DatastoreSpec(name="other", type="NFS41")],
        vms=[
            VmSpec(
                name=name,
                datastore="nfs",
                disks=[DiskSpec(size_bytes=MIB), DiskSpec(size_bytes=MIB)],
                snapshots=[SnapshotSpec(name="user's", writes_after=20)],
                guest_rate=500,
            )
            for name in ("a", "b", "c")
        ],
        users=[UserSpec(name="ada", password="right", privileges=["System.Read"])],
        settings=FAST,
    )


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[HostsProcess]:
    build(small_site(), tmp_path / "lab")
    with HostsProcess(tmp_path / "lab") as process:
        yield process


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostClient]:
    """One process for the tests that do not kill it."""
    state = tmp_path_factory.mktemp("lab") / "lab"
    build(small_site(), state)
    with HostsProcess(state) as process:
        yield process.client


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "client" in request.fixturenames:
        shared: HostClient = request.getfixturevalue("client")
        shared.clear_faults()
        shared.set_settings(FAST)
        for vm in shared.state().vms:
            for snapshot in vm.snapshots:
                if snapshot.name != "user's":
                    shared.wait_task(shared.remove_snapshot(snapshot.moref).task)
            if shared.vm(vm.moref).consolidation_needed:
                shared.wait_task(shared.consolidate(vm.moref).task)


def names(client: HostClient, vm: str) -> list[str]:
    return [snapshot.name for snapshot in client.vm(vm).snapshots]


def deltas(client: HostClient, vm: str) -> list[str]:
    found = client.list_directory(client.vm(vm).directory)
    return [entry.path for entry in found if "-00000" in entry.path]


def failure(client: HostClient, task: str) -> HostFault:
    with pytest.raises(HostFault) as error:
        client.wait_task(task)
    return error.value


def until(client: HostClient, task: str, state: str) -> Task:
    deadline = time.monotonic() + 10
    while (found := client.task(task)).state != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def prove(client: HostClient, vm: str, directory: Path) -> None:
    """Every snapshot of the VM still shows its own point in time, and nothing frozen was written to."""
    for snapshot in client.vm(vm).snapshots:
        images = []
        for disk in snapshot.hardware.disks:
            images.append(directory / f"{snapshot.moref}-{disk.key}.raw")
            client.read_frozen(snapshot.moref, disk.key, str(images[-1]))
        check_point_in_time(images).require(snapshot.frozen_sequence)
    assert client.check_frozen() == []


def test_a_task_runs_through_its_states_and_takes_its_time(client: HostClient) -> None:
    client.set_settings(Settings(durations_s={"CreateSnapshot": 0.5}, default_duration_s=0))
    begin = time.monotonic()
    started = client.create_snapshot("a", "timed", user="ada")
    running = until(client, started.task, "running")
    done = client.wait_task(started.task)
    assert 0.4 < time.monotonic() - begin < 3
    assert (running.cancelable, done.cancelable, done.progress, done.user) == (True, False, 100, "ada")
    assert done.queue_time <= (done.start_time or done.queue_time) <= (done.complete_time or done.queue_time)
    assert done.result == client.vm("a").current_snapshot


def test_a_second_task_on_a_busy_vm_is_refused(client: HostClient) -> None:
    client.set_settings(Settings(default_duration_s=0.4))
    started = client.create_snapshot("a", "first")
    with pytest.raises(HostFault, match="TaskInProgress"):
        client.create_snapshot("a", "second")
    with pytest.raises(HostFault, match="TaskInProgress"):
        client.unregister("a")
    client.wait_task(client.create_snapshot("b", "another VM").task)
    client.wait_task(started.task)
    assert names(client, "a") == ["user's", "first"]


def test_a_cancelled_snapshot_leaves_nothing(client: HostClient) -> None:
    client.set_settings(Settings(default_duration_s=5))
    before = deltas(client, "a")
    started = client.create_snapshot("a", "never")
    until(client, started.task, "running")
    client.cancel_task(started.task)
    assert failure(client, started.task).fault.type == "RequestCanceled"
    assert (names(client, "a"), deltas(client, "a")) == (["user's"], before)
    with pytest.raises(HostFault, match="InvalidState"):
        client.cancel_task(started.task)


def test_a_removal_cannot_be_cancelled_once_the_snapshot_left_the_tree(client: HostClient) -> None:
    snapshot = client.wait_task(client.create_snapshot("a", "s").task).result or ""
    client.add_fault(FaultRule(operation="RemoveSnapshot", effect="stall", phase="middle", seconds=0.5))
    started = client.remove_snapshot(snapshot)
    deadline = time.monotonic() + 10
    while "s" in names(client, "a"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.vm("a").consolidation_needed
    with pytest.raises(HostFault, match="NotSupported"):
        client.cancel_task(started.task)
    client.wait_task(started.task)
    assert not client.vm("a").consolidation_needed


def test_the_nth_start_fails_and_only_that(client: HostClient) -> None:
    client.add_fault(
        FaultRule(operation="CreateSnapshot", effect="fail", nth=2, fault="SnapshotFault", vm="a")
    )
    outcomes: list[str] = []
    for number in range(3):
        task = client.create_snapshot("a", f"s{number}").task
        try:
            outcomes.append(client.wait_task(task).state)
        except HostFault as error:
            outcomes.append(error.fault.type)
    client.wait_task(client.create_snapshot("b", "not concerned").task)
    assert outcomes == ["success", "SnapshotFault", "success"]
    rule = client.state().fault_rules[0]
    assert (rule.seen, rule.fired) == (3, 1)


def test_a_failure_at_the_end_leaves_the_snapshot_behind(client: HostClient) -> None:
    client.add_fault(FaultRule(operation="CreateSnapshot", effect="fail", phase="end"))
    failure(client, client.create_snapshot("a", "orphan").task)
    assert names(client, "a") == ["user's", "orphan"]


def test_a_dropped_connection_still_starts_the_task(client: HostClient) -> None:
    client.add_fault(FaultRule(operation="CreateSnapshot", effect="drop-after-start"))
    started = client.create_snapshot("a", "dropped")
    assert started.drop_connection
    client.wait_task(started.task)
    assert names(client, "a") == ["user's", "dropped"]


def test_a_stall_lasts_and_can_be_cancelled(client: HostClient) -> None:
    client.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=60))
    started = client.create_snapshot("a", "stalled")
    with pytest.raises(TimeoutError, match="running"):
        client.wait_task(started.task, timeout_s=0.3)
    client.cancel_task(started.task)
    assert failure(client, started.task).fault.type == "RequestCanceled"


def test_a_planned_migration_moves_the_vm_within_another_operation(
    client: HostClient, tmp_path: Path
) -> None:
    client.add_fault(
        FaultRule(operation="CreateSnapshot", effect="migrate", phase="middle", datastore="other")
    )
    client.wait_task(client.create_snapshot("c", "moved").task)
    assert client.vm("c").directory == "[other] c/"
    prove(client, "c", tmp_path)


def test_plans_that_make_no_sense_are_refused(client: HostClient) -> None:
    with pytest.raises(HostFault, match="InvalidArgument"):
        client.add_fault(FaultRule(operation="Dance", effect="fail"))
    with pytest.raises(HostFault, match="ManagedObjectNotFound"):
        client.add_fault(FaultRule(operation="RelocateVM", effect="migrate", datastore="nowhere"))


def test_events_tell_what_happened_in_order(client: HostClient) -> None:
    after = client.state().last_event
    snapshot = client.wait_task(client.create_snapshot("b", "s").task).result or ""
    client.wait_task(client.remove_snapshot(snapshot).task)
    answer = client.wait(0)
    found = client.events(after)
    assert [event.type for event in found] == [
        "snapshot-created",
        "task-completed",
        "snapshot-removed",
        "task-completed",
    ]
    assert [event.id for event in found] == list(range(after + 1, answer.last_event + 1))


def test_waiting_ends_with_a_change_or_with_its_time(client: HostClient) -> None:
    time.sleep(0.3)
    version = client.state().version
    begin = time.monotonic()
    assert client.wait(version, timeout_s=0.2).version == version
    assert time.monotonic() - begin >= 0.2
    task = client.create_snapshot("b", "s").task
    assert client.wait(version, timeout_s=10).version > version
    client.wait_task(task)
    changed = client.state(since=version)
    assert [vm.name for vm in changed.vms] == ["b"]
    assert [found.id for found in changed.tasks] == [task]
    assert len(changed.vm_morefs) == 3


def test_users_log_in_with_their_password_and_keep_their_privileges(client: HostClient) -> None:
    assert client.login("ada", "right").privileges == ["System.Read"]
    for user, password in (("ada", "wrong"), ("nobody", "right")):
        with pytest.raises(HostFault, match="InvalidLogin"):
            client.login(user, password)
    client.set_user("ada", ["System.View"])
    assert client.login("ada", "right").privileges == ["System.View"]
    client.set_user("ada", ["System.Read"], "right")
    assert "password" not in client.state().model_dump_json()


def test_a_bad_call_is_an_answer_not_a_crash(client: HostClient) -> None:
    with pytest.raises(HostFault, match="no call"):
        client._call(None, "no_such_call")
    with pytest.raises(HostFault, match="InvalidRequest"):
        client._call(None, "login", user="ada", password="secret", more=1)
    with pytest.raises(HostFault) as error:
        client._call(None, "set_user", name="ada", privileges="not a list", password="hidden-secret")
    assert "hidden-secret" not in str(error.value)
    assert client.state().version


def test_an_absent_host_is_told_apart_from_a_refusal() -> None:
    with pytest.raises(HostUnreachableError, match="did not answer"):
        HostClient("http://127.0.0.1:9").state()


@pytest.mark.parametrize("phase", ["start", "middle", "end"])
@pytest.mark.parametrize("operation", ["CreateSnapshot", "RemoveSnapshot"])
def test_a_task_goes_on_after_a_crash_at_any_phase(
    hosts: HostsProcess, tmp_path: Path, operation: str, phase: str
) -> None:
    client = hosts.client
    snapshot = ""
    if operation == "RemoveSnapshot":
        snapshot = client.wait_task(client.create_snapshot("a", "s").task).result or ""
    client.add_fault(FaultRule.model_validate({"operation": operation, "effect": "crash", "phase": phase}))
    with suppress(HostUnreachableError):  # the crash may come before the answer
        client.remove_snapshot(snapshot) if snapshot else client.create_snapshot("a", "s")
    hosts.wait_dead(10)
    hosts.start()
    client = hosts.client
    for task in client.state().tasks:
        client.wait_task(task.id)
    assert names(client, "a") == (["user's"] if snapshot else ["user's", "s"])
    assert len(deltas(client, "a")) == (4 if snapshot else 8)
    assert not client.vm("a").consolidation_needed
    prove(client, "a", tmp_path)


def test_a_kill_while_the_guests_write_and_disks_merge_loses_nothing(
    hosts: HostsProcess, tmp_path: Path
) -> None:
    client = hosts.client
    client.set_settings(Settings(default_duration_s=0.2, record_frozen=True))
    for _ in range(3):
        for vm in ("a", "b", "c"):
            client.create_snapshot(vm, "s")
        time.sleep(0.15)
        hosts.kill()
        hosts.start()
        client = hosts.client
        for task in client.state().tasks:
            client.wait_task(task.id)
        for vm in ("a", "b", "c"):
            mine = [snapshot for snapshot in client.vm(vm).snapshots if snapshot.name == "s"]
            client.remove_snapshot(mine[-1].moref)
        time.sleep(0.1)
        hosts.kill()
        hosts.start()
        client = hosts.client
        for task in client.state().tasks:
            client.wait_task(task.id)
    for vm in ("a", "b", "c"):
        assert names(client, vm) == ["user's"]
        assert len(deltas(client, vm)) == 4
        client.wait_task(client.create_snapshot(vm, "last").task)
        directory = tmp_path / vm
        directory.mkdir()
        prove(client, vm, directory)
        assert client.vm(vm).guest_generation >= 6
    assert client.state().violations == []


def test_a_stopped_process_leaves_its_tasks_to_the_next(hosts: HostsProcess) -> None:
    client = hosts.client
    client.set_settings(Settings(default_duration_s=1.0))
    task = client.create_snapshot("a", "s").task
    until(client, task, "running")
    hosts.stop()
    hosts.start()
    assert hosts.client.wait_task(task).state == "success"
