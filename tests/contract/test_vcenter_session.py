"""Goal: one verified session for the process; wrong credentials once; a lost session never runs a change twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from pyVmomi import vim

from safehaul.errors import ConfigError, ConnectionLostError, LoginRefusedError, SessionLostError
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.inventory import discover
from safehaul.vsphere.snapshots import find_all
from tests.contract.vcenter_server import PASSWORD, USER, LabServer, lab_server


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab")) as server:
        yield server


def test_the_right_thumbprint_is_trusted_in_any_spelling(lab: LabServer) -> None:
    spelled = ":".join(lab.thumbprint[i : i + 2] for i in range(0, 64, 2)).upper()
    assert lab.connect(thumbprint_sha256=spelled).about().instance_uuid


def test_a_wrong_thumbprint_names_both_and_sends_no_login(lab: LabServer) -> None:
    logins = lab.admin.call_counts().get("Login", 0)
    with pytest.raises(ConfigError) as caught:
        lab.connect(thumbprint_sha256="ab" * 32).about()
    assert "ab" * 32 in str(caught.value)
    assert lab.thumbprint[:2].upper() + ":" in str(caught.value)
    assert lab.admin.call_counts().get("Login", 0) == logins


def test_a_ca_file_is_trusted_with_the_host_name(lab: LabServer) -> None:
    assert lab.connect(ca_file=lab.ca_file).about().version


def test_without_any_trust_the_loopback_name_is_refused_too(lab: LabServer) -> None:
    for host in ("127.0.0.1", "localhost"):
        url = lab.url.replace("127.0.0.1", host)
        vcenter = VCenter("lab", url=url, user=USER, password=SecretStr(PASSWORD))
        with pytest.raises(ConfigError, match="thumbprint is") as caught:
            vcenter.about()
        assert lab.thumbprint[:2].upper() + ":" in str(caught.value)


def test_insecure_works_when_named(lab: LabServer) -> None:
    assert lab.connect(insecure=True).about().api_version


def test_a_wrong_password_is_tried_once_for_all_threads(lab: LabServer) -> None:
    logins = lab.admin.call_counts().get("Login", 0)
    vcenter = lab.connect(password="wrong-Secret-2")
    for _ in range(3):
        with pytest.raises(LoginRefusedError) as caught:
            vcenter.about()
        assert "wrong-Secret-2" not in str(caught.value)
    assert lab.admin.call_counts()["Login"] == logins + 1


def test_a_lost_session_is_opened_again_once_for_many_reads(lab: LabServer) -> None:
    vcenter = lab.connect()
    discover(vcenter)
    lab.admin.expire_sessions()
    logins = lab.admin.call_counts()["Login"]
    failures: list[BaseException] = []

    def read() -> None:
        try:
            discover(vcenter)
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert lab.admin.call_counts()["Login"] == logins + 1


def test_a_change_on_a_lost_session_is_not_run_and_the_next_one_is(lab: LabServer) -> None:
    vcenter = lab.connect()
    vm = lab.vm("off")
    discover(vcenter)
    lab.admin.expire_sessions()

    def change() -> None:
        vcenter.mutate(
            lambda session: session.managed(vim.VirtualMachine, vm.moref).CreateSnapshot_Task(
                name="once", description="x", memory=False, quiesce=False
            )
        )

    with pytest.raises(SessionLostError):
        change()
    assert find_all(vcenter, vm.moref, "once", "x") == []
    change()


def test_close_logs_out(lab: LabServer) -> None:
    vcenter = lab.connect()
    vcenter.about()
    before = lab.admin.session_count()
    vcenter.close()
    assert lab.admin.session_count() == before - 1
    vcenter.close()


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
