"""Goal: one session for the process; wrong credentials once; a lost session never runs a change twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from safehaul.errors import BusyError, ConfigError, ConnectionLostError, LoginRefusedError, SessionLostError
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.inventory import discover
from safehaul.vsphere.snapshots import find_all
from safehaul.vsphere.vms import vm_state
from tests.contract.lab_server import LabServer, lab_server
from tests.contract.vcenter_server import Server, end_other_sessions, sessions, vm_named


def in_threads(count: int, work: Callable[[], Any]) -> list[BaseException]:
    """Runs the same in several threads and returns what they failed with."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return failures


def test_a_server_tells_who_it_is(server: Server) -> None:
    about = server.connect().about()
    assert about.instance_uuid
    assert about.version.split(".")[0].isdigit()
    assert about.api_version


def test_many_threads_share_one_session(server: Server) -> None:
    vcenter = server.connect()
    logins = server.calls()["Login"]
    assert in_threads(8, lambda: discover(vcenter)) == []
    assert server.calls()["Login"] == logins + 1


def test_a_wrong_password_is_tried_once_for_all_threads(server: Server) -> None:
    logins = server.calls()["Login"]
    vcenter = server.connect(password="wrong-Secret-2")
    for ask in (vcenter.about, lambda: discover(vcenter), lambda: vm_state(vcenter, "vm-1")):
        with pytest.raises(LoginRefusedError) as caught:
            ask()
        assert "wrong-Secret-2" not in str(caught.value)
    refused = in_threads(8, vcenter.about)
    assert [type(error) for error in refused] == [LoginRefusedError] * 8
    assert server.calls()["Login"] == logins + 1


def test_a_lost_session_is_opened_again_once_for_many_reads(server: Server) -> None:
    vcenter, administrator = server.connect(), server.administrator()
    whole = discover(vcenter)
    end_other_sessions(administrator)
    logins = server.calls()["Login"]
    seen: list[bool] = []
    assert in_threads(8, lambda: seen.append(discover(vcenter) == whole)) == []
    assert seen == [True] * 8
    assert server.calls()["Login"] == logins + 1


def test_a_change_on_a_lost_session_is_not_run_and_the_next_one_is(server: Server) -> None:
    vcenter, vm = server.connect(), vm_named(server, "off").moref
    discover(vcenter)
    end_other_sessions(server.administrator())

    def change() -> None:
        vcenter.mutate(
            lambda session: session.managed(vim.VirtualMachine, vm).CreateSnapshot_Task(
                name="once", description="x", memory=False, quiesce=False
            )
        )

    with pytest.raises(SessionLostError):
        change()
    assert find_all(vcenter, vm, "once", "x") == []
    change()
    deadline = time.monotonic() + 20
    while not find_all(vcenter, vm, "once", "x"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_close_logs_out(server: Server) -> None:
    administrator, vcenter = server.administrator(), server.connect()
    before = {each.key for each in sessions(administrator)}
    vcenter.about()
    opened = {each.key for each in sessions(administrator)} - before
    assert len(opened) == 1
    vcenter.close()
    assert {each.key for each in sessions(administrator)} & opened == set()
    logouts = server.calls()["Logout"]
    vcenter.close()
    assert server.calls()["Logout"] == logouts


def wait_a_second(vcenter: VCenter) -> None:
    """A call that vCenter answers after a second: nothing changes meanwhile."""

    def wait(session: Any) -> None:
        collector = session.content.propertyCollector.CreatePropertyCollector()
        collector.WaitForUpdatesEx("", type(collector).WaitOptions(maxWaitSeconds=1))

    vcenter.read(wait)


def most_at_once(lab: LabServer, method: str, since: float) -> int:
    """The most calls of a method that the server worked on at one time, from its log."""
    calls = [json.loads(line) for line in lab.call_log.read_text().splitlines()]
    calls = [each for each in calls if each["at"] > since]
    spans = [(each["at"] - each["ms"] / 1000, each["at"]) for each in calls if each["method"] == method]
    edges = sorted([(begun + 0.005, 1) for begun, _ in spans] + [(ended - 0.005, -1) for _, ended in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


@pytest.mark.parametrize(("limit", "threads"), [(1, 3), (3, 6)])
def test_calls_at_once_are_bounded_by_the_configured_limit(lab: LabServer, limit: int, threads: int) -> None:
    vcenter, since = lab.connect(max_concurrent_calls=limit), time.time()
    assert in_threads(threads, lambda: wait_a_second(vcenter)) == []
    assert min(limit, 2) <= most_at_once(lab, "WaitForUpdatesEx", since) <= limit


def test_a_call_that_gets_no_turn_says_so(lab: LabServer) -> None:
    vcenter = lab.connect(max_concurrent_calls=1, timeout_s=1.7)
    vcenter.about()
    failures = in_threads(4, lambda: wait_a_second(vcenter))
    # Others may be cut off by the same time-out on a machine that is slow.
    assert any(isinstance(error, BusyError) and "in use for 1.7 s" in str(error) for error in failures)


def test_a_server_that_is_away_or_has_another_certificate(tmp_path: Path) -> None:
    with lab_server(tmp_path) as server:
        vcenter = server.connect()
        vcenter.about()
        server.kill()
        with pytest.raises(ConnectionLostError):
            vcenter.about()
        server.start()
        assert vcenter.about().instance_uuid
        server.kill()
        server.forget_certificate()
        server.start()
        # The pin holds for every connection of a session, not only for its first.
        with pytest.raises(ConfigError, match="expected is"):
            vcenter.about()
