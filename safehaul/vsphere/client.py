"""A session with one vCenter: lazily opened, shared by all threads of the process, closed at exit."""

from __future__ import annotations

import logging
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pydantic import SecretStr
from pyVmomi import vim

from safehaul.errors import ConfigError, LoginRefusedError, SafehaulError, SessionLostError
from safehaul.messages.base import Message
from safehaul.vsphere.faults import HungUpError
from safehaul.vsphere.rest import RestSession
from safehaul.vsphere.stub import DEFAULT_PATH, Endpoint, Stub, negotiate_version
from safehaul.vsphere.tls import Trust

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_PORT: Final = 443


class About(Message):
    """What a vCenter says of itself."""

    instance_uuid: str
    """First half of every VC.GUID."""
    version: str
    build: str = ""
    api_version: str = ""
    full_name: str = ""


class Session:
    """What a call works with: the service's content, and managed objects by class and moref."""

    def __init__(self, stub: Stub, content: Any) -> None:
        """Wraps a stub that is logged in, and its `ServiceContent`."""
        self._stub = stub
        self.content = content

    def managed(self, kind: Any, moref: str) -> Any:
        """The managed object `kind` (such as `vim.VirtualMachine`) with this moref; no call is made."""
        return kind(moref, self._stub)

    def retire(self) -> None:
        """Closes the connections, those of calls under way when they end."""
        self._stub.retire()


class VCenter:
    """One vCenter: one session for the whole process, safe to use from many threads.

    `read` and `mutate` are the only two ways in: they differ in what happens when the session is gone. Wrong
    credentials are tried once; from then on every call fails at once, so that we never lock the account.
    """

    def __init__(
        self,
        name: str,
        *,
        user: str,
        password: SecretStr,
        url: str = "",
        host: str = "",
        port: int = DEFAULT_PORT,
        path: str = DEFAULT_PATH,
        ca_file: Path | None = None,
        thumbprint_sha256: str | None = None,
        insecure: bool = False,
        timeout_s: float = 60.0,
        max_concurrent_calls: int = 8,
    ) -> None:
        """Opens nothing yet.

        Args:
            name: its name in our configuration.
            user: such as `backup@vsphere.local`.
            password: never logged or shown.
            url: `https://host[:port][/sdk]`, instead of the next three.
            host: name or address.
            port: TCP port.
            path: of the SOAP service.
            ca_file: PEM file of the CA that signed vCenter's certificate; the host name is checked too.
            thumbprint_sha256: the certificate itself, 64 hexadecimal digits, colons allowed.
            insecure: accept any certificate; logged as a warning.
            timeout_s: for connecting, and for each wait for an answer.
            max_concurrent_calls: calls in flight at the same time; more wait their turn for at most `timeout_s`.

        Raises:
            ConfigError: the address, thumbprint or CA file is wrong.
        """
        self.name = name
        if bool(url) == bool(host):
            raise ConfigError(f"vCenter {name}: give either its url or its host")
        self._endpoint = _parse_url(name, url) if url else Endpoint(name, host, port, path)
        self._user = user
        self._password = password
        self._trust = Trust(ca_file, thumbprint_sha256 or "", insecure)
        self._trust.context()  # a bad CA file shows now and not in the night
        self._timeout_s = timeout_s
        self._max_concurrent_calls = max_concurrent_calls
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._generation = 0
        self._refused: str | None = None
        self._rest = RestSession(self._endpoint, self._trust, user, password, timeout_s)
        if insecure:
            log.warning("vCenter %s: certificate verification is off (insecure = true)", name)

    def __repr__(self) -> str:
        return f"VCenter({self.name!r}, {self._endpoint.host}:{self._endpoint.port})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, call: Callable[[Session], T]) -> T:
        """Runs a call that changes nothing; once more, from its start, when the session was gone.

        Args:
            call: may make several calls of vCenter; what it returns is returned.

        Raises:
            SafehaulError: whatever vCenter or the network answers, translated.
        """
        session, generation = self._logged_in()
        try:
            return call(session)
        except SessionLostError:
            session = self._log_in_again(generation)
        except HungUpError:
            log.debug("vCenter %s hung up on a read: trying once more", self.name)
        return call(session)

    def mutate(self, call: Callable[[Session], T]) -> T:
        """Runs a call that changes something: exactly once.

        Raises:
            SessionLostError: the session was gone (it is back): look for the effect before asking again.
            ConnectionLostError: the answer was lost: look for the effect before asking again.
            SafehaulError: whatever else vCenter answers, translated.
        """
        session, generation = self._logged_in()
        try:
            return call(session)
        except SessionLostError:
            self._log_in_again(generation)
            raise

    def about(self) -> About:
        """Identity and version of this vCenter, asked anew each time.

        Raises:
            ConfigError: it has no instance UUID: it is a single ESXi host, not a vCenter.
        """
        about = self.read(
            lambda session: session.managed(vim.ServiceInstance, "ServiceInstance").RetrieveContent().about
        )
        if not about.instanceUuid:
            raise ConfigError(
                f"vCenter {self.name} has no instance UUID: give the address of a vCenter, not a host's"
            )
        return About(
            instance_uuid=about.instanceUuid,
            version=about.version,
            build=about.build or "",
            api_version=about.apiVersion or "",
            full_name=about.fullName or "",
        )

    def rest(self) -> RestSession:
        """The REST endpoint of the same vCenter, with a session of its own that the first call opens.

        Raises:
            LoginRefusedError: the credentials have been refused already: they are not tried there too.
        """
        if self._refused is not None:
            raise LoginRefusedError(self._refused)
        return self._rest

    def close(self) -> None:
        """Logs out and closes the connections; later calls log in again. Never raises."""
        with self._lock:
            session, self._session = self._session, None
        self._rest.close()
        if session is None:
            return
        try:
            session.content.sessionManager.Logout()
        except SafehaulError as error:
            # The session idles out by itself; a process that ends must end.
            log.info("vCenter %s: logout failed: %s", self.name, error)
        session.retire()

    def _logged_in(self) -> tuple[Session, int]:
        with self._lock:
            if self._session is None:
                self._session = self._open()
                self._generation += 1
            return self._session, self._generation

    def _log_in_again(self, lost_generation: int) -> Session:
        """One thread logs in for all that lost the same session."""
        with self._lock:
            if self._session is None or self._generation == lost_generation:
                log.info("vCenter %s: session lost, logging in again", self.name)
                stale, self._session = self._session, None
                if stale is not None:
                    stale.retire()
                # A new stub: late answers to the old session would overwrite the new one's cookie.
                self._session = self._open()
                self._generation += 1
            return self._session

    def _open(self) -> Session:
        if self._refused is not None:
            raise LoginRefusedError(self._refused)
        version = negotiate_version(self._endpoint, self._trust, self._timeout_s)
        stub = Stub(
            self._endpoint,
            self._trust,
            version=version,
            timeout_s=self._timeout_s,
            max_concurrent_calls=self._max_concurrent_calls,
        )
        try:
            content: Any = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
            content.sessionManager.Login(self._user, self._password.get_secret_value(), None)
        except LoginRefusedError as error:
            self._refused = f"vCenter {self.name} refused user {self._user!r}: {error}"
            stub.retire()
            raise LoginRefusedError(self._refused) from error
        except BaseException:
            stub.retire()
            raise
        return Session(stub, content)


def _parse_url(name: str, url: str) -> Endpoint:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"vCenter {name}: address {url!r}: {error}") from error
    if parts.scheme != "https" or not host or parts.query or parts.fragment:
        raise ConfigError(f"vCenter {name}: address {url!r} is not of the form https://host[:port][/sdk]")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"vCenter {name}: the address must not hold a user or password: they have keys of their own"
        )
    return Endpoint(name, host, port, parts.path.rstrip("/") or DEFAULT_PATH)
