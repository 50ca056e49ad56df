"""Goal: no password goes to a vCenter whose certificate is not the one that the configuration trusts.

The lab's vCenter shows the certificates; the client is on loopback, for which pyVim would verify nothing by itself.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from lab.esx.client import HostClient
from lab.vcenter.calllog import CallLog
from lab.vcenter.certificate import Certificate, server_context
from lab.vcenter.scope import VCenter as LabVCenter
from lab.vcenter.server import Handler
from lab.vcenter.server import Server as Front
from lab.vcenter.sessions import SessionTable
from safehaul.errors import ConfigError
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.tls import Trust, sha256_thumbprint
from tests.contract.certificates import Authority, self_signed
from tests.contract.lab_server import LabServer
from tests.contract.vcenter_server import PASSWORD, USER, Server


@dataclass
class Shown:
    """A vCenter that shows one certificate, and every request that reached it."""

    port: int
    certificate: Certificate
    requests: list[str] = field(default_factory=list)

    @property
    def thumbprint(self) -> str:
        """As the client writes it."""
        return sha256_thumbprint(ssl.PEM_cert_to_DER_cert(self.certificate.certificate_path.read_text()))


class Show:
    """Starts vCenters that show certificates, and ends them."""

    def __init__(self, hosts_url: str) -> None:
        self._hosts_url = hosts_url
        self._fronts: list[tuple[Front, threading.Thread, LabVCenter]] = []

    def __call__(self, certificate: Certificate, port: int = 0) -> Shown:
        vcenter = LabVCenter(HostClient(self._hosts_url), SessionTable(1800, 100, 5), CallLog(None))
        front = Front(port, server_context(certificate), vcenter, "no token")
        shown = Shown(front.server_address[1], certificate)

        class Recording(Handler):
            raw_requestline: bytes

            def parse_request(self) -> bool:
                shown.requests.append(self.raw_requestline.decode("latin-1"))
                return super().parse_request()

        front.RequestHandlerClass = Recording
        thread = threading.Thread(target=front.serve_forever, args=(0.05,))
        thread.start()
        self._fronts.append((front, thread, vcenter))
        return shown

    def end(self) -> None:
        """Ends them; connections that are open stay so."""
        while self._fronts:
            front, thread, vcenter = self._fronts.pop()
            front.shutdown()
            front.server_close()
            thread.join()
            vcenter.hosts.close()


@pytest.fixture
def show(lab: LabServer) -> Iterator[Show]:
    starting = Show(lab.hosts.url)
    yield starting
    starting.end()


@contextmanager
def client(shown: Shown, host: str = "127.0.0.1", **trust: Any) -> Iterator[VCenter]:
    with VCenter(
        "lab", host=host, port=shown.port, user=USER, password=SecretStr(PASSWORD), timeout_s=20, **trust
    ) as vcenter:
        yield vcenter


def refused(shown: Shown, reason: str, host: str = "127.0.0.1", **trust: Any) -> str:
    """Asserts that the client refuses, says why, and has sent nothing at all."""
    with client(shown, host, **trust) as vcenter, pytest.raises(ConfigError, match=reason) as caught:
        vcenter.about()
    assert shown.requests == []
    # Who is asked to compare thumbprints is told the one that was seen.
    assert shown.thumbprint in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def accepted(shown: Shown, host: str = "127.0.0.1", **trust: Any) -> None:
    with client(shown, host, **trust) as vcenter:
        assert vcenter.about().instance_uuid
    assert any(line.startswith("POST") for line in shown.requests)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "site-ca")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_of_the_configured_ca_is_accepted(show: Show, authority: Authority, host: str) -> None:
    accepted(show(authority.issue("good")), host, ca_file=authority.path)


def test_a_certificate_of_another_ca_is_refused(show: Show, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other-ca")
    refused(show(other.issue("impostor")), "unable to get local issuer", ca_file=authority.path)


def test_a_ca_of_the_same_name_and_another_key_is_refused(
    show: Show, authority: Authority, tmp_path: Path
) -> None:
    impostor = Authority(tmp_path, "site-ca")
    refused(show(impostor.issue("impostor")), "signature failure", ca_file=authority.path)


@pytest.mark.parametrize(("from_day", "reason"), [(-60, "has expired"), (10, "not yet valid")])
def test_a_certificate_out_of_its_time_is_refused(
    show: Show, authority: Authority, from_day: int, reason: str
) -> None:
    refused(show(authority.issue("untimely", from_day=from_day)), reason, ca_file=authority.path)


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "IP address mismatch"), ("localhost", "Hostname mismatch")]
)
def test_a_certificate_of_another_host_is_refused(
    show: Show, authority: Authority, host: str, reason: str
) -> None:
    shown = show(authority.issue("elsewhere", ["vcenter.example.net", "192.0.2.7"]))
    refused(shown, reason, host, ca_file=authority.path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_without_any_trust_a_self_signed_certificate_is_refused_on_loopback_too(
    show: Show, tmp_path: Path, host: str
) -> None:
    message = refused(show(self_signed(tmp_path, "own")), "self-signed", host)
    assert "configure ca_file, or thumbprint_sha256" in message


def test_a_self_signed_certificate_is_refused_beside_a_ca(
    show: Show, authority: Authority, tmp_path: Path
) -> None:
    refused(show(self_signed(tmp_path, "own")), "self-signed", ca_file=authority.path)


@pytest.mark.parametrize("spell", [str.lower, str.upper, lambda plain: plain.replace(":", "")])
def test_the_pinned_certificate_is_accepted_in_any_spelling(
    show: Show, tmp_path: Path, spell: Callable[[str], str]
) -> None:
    shown = show(self_signed(tmp_path, "own"))
    accepted(shown, thumbprint_sha256=spell(shown.thumbprint))


def test_a_pin_is_the_whole_identity_whatever_name_and_time_the_certificate_says(
    show: Show, authority: Authority
) -> None:
    for certificate in (
        authority.issue("elsewhere", ["vcenter.example.net"]),
        authority.issue("old", from_day=-60),
    ):
        shown = show(certificate)
        accepted(shown, thumbprint_sha256=shown.thumbprint)


def test_another_certificate_than_the_pinned_one_is_refused_though_a_ca_signed_it(
    show: Show, authority: Authority
) -> None:
    pinned = show(authority.issue("good")).thumbprint
    message = refused(show(authority.issue("renewed")), "expected is", thumbprint_sha256=pinned)
    assert pinned in message


def test_every_later_connection_is_verified_too(show: Show, authority: Authority, tmp_path: Path) -> None:
    first = show(authority.issue("good"))
    with client(first, ca_file=authority.path) as vcenter:
        assert vcenter.about().instance_uuid
        show.end()
        # Somebody takes over the address in the middle of a session: its cookie must not go there.
        impostor = show(self_signed(tmp_path, "impostor"), first.port)
        vcenter._session._stub.DropConnections()  # type: ignore[union-attr]  # it is logged in
        with pytest.raises(ConfigError, match="self-signed"):
            vcenter.about()
        assert impostor.requests == []


def test_what_cannot_be_read_as_trust_is_refused_before_any_connection(tmp_path: Path) -> None:
    for trust in ({"ca_file": tmp_path / "none.pem"}, {"thumbprint_sha256": "ab" * 20}):
        with pytest.raises(ConfigError):
            VCenter("lab", url="https://127.0.0.1", user=USER, password=SecretStr(PASSWORD), **trust)


def test_verification_is_on_unless_it_is_named_off(show: Show, tmp_path: Path) -> None:
    for trust in (Trust(), Trust(ca_file=self_signed(tmp_path, "ca").certificate_path)):
        context = trust.context()
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    accepted(show(self_signed(tmp_path, "own")), insecure=True)


def test_each_server_is_trusted_by_ca_file_and_by_thumbprint(server: Server) -> None:
    assert server.connect(ca_file=server.ca_file).about().version
    assert server.connect(thumbprint_sha256=server.thumbprint).about().version
    logins = server.calls()["Login"]
    with pytest.raises(ConfigError, match="expected is"):
        server.connect(thumbprint_sha256="ab" * 32).about()
    assert server.calls()["Login"] == logins
