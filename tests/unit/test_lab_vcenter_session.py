"""Goal: sessions of the simulated vCenter are as limited and as mortal as real ones, seen by the real client."""

from __future__ import annotations

import gc
import http.client
import ssl
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pyVmomi import vim
from pyVmomi.SoapAdapter import SoapStubAdapter

from lab.vcenter.holding import When
from tests.unit.lab_vcenter_double import HostsDouble
from tests.unit.lab_vcenter_front import PC, Front, in_background, object_filter, values, vm_view


@pytest.fixture(scope="module")
def hosts() -> Iterator[HostsDouble]:
    double = HostsDouble(2)
    yield double
    double.close()


@pytest.fixture(scope="module")
def front(hosts: HostsDouble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    running = Front(hosts.url, tmp_path_factory.mktemp("front"))
    yield running
    running.close()


class PinnedStub(SoapStubAdapter):  # type: ignore[misc]  # pyVmomi ships no types
    def close(self) -> None:
        self.DropConnections()


def pinned(front: Front, thumbprint: str) -> PinnedStub:
    # pyVmomi looks at the thumbprint only after a verification that failed: it must be on.
    return PinnedStub(
        "127.0.0.1",
        front.port,
        version="vim.version.v8_0_3_0",
        sslContext=ssl.create_default_context(),
        thumbprint=thumbprint,
    )


def test_login_and_about(front: Front, hosts: HostsDouble) -> None:
    si = front.smart_connect()
    about = si.RetrieveContent().about
    assert (about.apiType, about.apiVersion) == ("VirtualCenter", "8.0.3.0")
    assert about.instanceUuid == hosts.state.instance_uuid
    current = si.content.sessionManager.currentSession
    assert current.userName == "backup"


def test_certificate_is_kept_and_pinned(front: Front) -> None:
    with closing(pinned(front, front.ready["thumbprint"])) as right:
        assert vim.ServiceInstance("ServiceInstance", right).RetrieveContent().about.name
    with warnings.catch_warnings():
        # pyVmomi leaves the refused socket to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(Exception, match="thumbprint mismatch"):
            vim.ServiceInstance("ServiceInstance", pinned(front, "0" * 64)).RetrieveContent()
        gc.collect()


def test_wrong_password_is_invalid_login_and_is_never_logged(front: Front) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        front.connect(password="wr0ng-secret")
    assert "wr0ng-secret" not in front.log_path.read_text()
    assert front.log()[-1]["fault"] == "InvalidLogin"


def test_only_public_things_without_a_session(front: Front) -> None:
    si = front.anonymous()
    content = si.RetrieveContent()
    assert content.about.apiType == "VirtualCenter"
    assert content.sessionManager.currentSession is None
    with pytest.raises(vim.fault.NotAuthenticated):
        si.CurrentTime()
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = content.rootFolder.childEntity
    with pytest.raises(vim.fault.NotAuthenticated):
        content.viewManager.CreateContainerView(content.rootFolder, [], True)


def test_without_a_session_properties_are_missing_with_the_reason(front: Front) -> None:
    si = front.anonymous()
    collector = si.RetrieveContent().propertyCollector
    vm = vim.VirtualMachine("vm-1000")
    found = collector.RetrievePropertiesEx([object_filter(vm, ["name", "snapshot"])], PC.RetrieveOptions())
    assert values(found.objects[0]) == {}
    missing = {each.path: type(each.fault) for each in found.objects[0].missingSet}
    assert missing == {"name": vim.fault.NotAuthenticated, "snapshot": vim.fault.NotAuthenticated}


def test_expired_session_loses_its_views(front: Front) -> None:
    si = front.connect()
    view = vm_view(si)
    assert len(view.view) == 2
    assert front.admin.expire_sessions() >= 1
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = view.view
    si.content.sessionManager.Login("backup", "right", None)
    with pytest.raises(Exception, match="already been deleted"):
        _ = view.view


def test_logout_ends_the_session(front: Front) -> None:
    si = front.connect()
    si.content.sessionManager.Logout()
    with pytest.raises(vim.fault.NotAuthenticated):
        si.CurrentTime()


def test_idle_time_lock_and_limit(hosts: HostsDouble, tmp_path: Path) -> None:
    front = Front(hosts.url, tmp_path, "--session-idle-s=0.4", "--max-sessions=2", "--lock-after=2")
    try:
        first, _ = front.connect(), front.connect()
        with pytest.raises(http.client.HTTPException, match="503"):
            front.connect()
        time.sleep(0.6)
        with pytest.raises(vim.fault.NotAuthenticated):
            first.CurrentTime()
        for _ in range(2):
            with pytest.raises(vim.fault.InvalidLogin):
                front.connect("reader", "guess")
        with pytest.raises(vim.fault.InvalidLogin):
            front.connect("reader", "right")
    finally:
        front.close()


def test_a_restart_forgets_sessions_and_keeps_the_certificate(hosts: HostsDouble, tmp_path: Path) -> None:
    front = Front(hosts.url, tmp_path)
    try:
        si = front.connect()
        thumbprint = front.ready["thumbprint"]
        front.kill()
        front.start()
        assert front.ready["thumbprint"] == thumbprint
        with pytest.raises(OSError, match=r"EOF|reset"):
            si.CurrentTime()
        with pytest.raises(vim.fault.NotAuthenticated):
            si.CurrentTime()
    finally:
        front.close()


def test_sessions_can_be_listed_and_terminated(front: Front) -> None:
    front.admin.expire_sessions()
    boss, other = front.connect(), front.connect()
    manager = boss.content.sessionManager
    own = manager.currentSession.key
    (victim,) = [each.key for each in manager.sessionList if each.key != own]
    assert manager.SessionIsActive(victim, "backup")
    manager.TerminateSession([victim])
    assert not manager.SessionIsActive(victim, "backup")
    with pytest.raises(vim.fault.NotAuthenticated):
        other.CurrentTime()
    reader = front.connect("reader")
    with pytest.raises(vim.fault.NoPermission) as refused:
        reader.content.sessionManager.TerminateSession([own])
    assert refused.value.privilegeId == "Sessions.TerminateSession"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_call_is_held_until_it_is_released(front: Front, when: When) -> None:
    si = front.connect()
    executed = front.admin.call_counts().get("CurrentTime", 0)
    front.admin.hold("CurrentTime", 2, when)
    si.CurrentTime()
    assert front.admin.call_counts()["CurrentTime"] == executed + 1
    thread, answers = in_background(si.CurrentTime)
    port = front.admin.wait_held()
    assert port is not None
    assert thread.is_alive()
    assert answers == []
    front.admin.release()
    thread.join(10)
    assert len(answers) == 1
    assert si.CurrentTime() >= answers[0]
