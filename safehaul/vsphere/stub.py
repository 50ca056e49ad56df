"""The SOAP stub under every call: verified connections, time-outs, bounded concurrency, translated errors."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from safehaul.errors import BusyError, ConnectionLostError, SafehaulError, UnsupportedError
from safehaul.vsphere.faults import describe, translate
from safehaul.vsphere.tls import Trust, connection_class

DEFAULT_PATH: Final = "/sdk"
# vimServiceVersions.xml has a few kilobytes; whatever is longer is not one.
_MAX_VERSIONS_BYTES: Final = 1 << 20
# Shorter than the keep-alive of vCenter's proxy, so that a mutating call rarely meets a dead connection.
_IDLE_CONNECTION_S: Final = 15


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a vCenter's SOAP service is."""

    name: str
    """The vCenter's name in our configuration, for messages."""
    host: str
    """Name or address, an IPv6 address without brackets."""
    port: int
    path: str = DEFAULT_PATH

    def __str__(self) -> str:
        """`vCenter lab at 127.0.0.1:8989`."""
        return f"vCenter {self.name} at {self.host}:{self.port}"


class Stub(SoapStubAdapter):  # type: ignore[misc]  # pyVmomi has no types: its classes are Any
    """pyVmomi's stub with our connections. Every call of every managed object goes through `InvokeMethod`."""

    def __init__(
        self,
        endpoint: Endpoint,
        trust: Trust,
        *,
        version: str,
        timeout_s: float,
        max_concurrent_calls: int,
    ) -> None:
        """Makes a stub; no connection is opened.

        Args:
            endpoint: where.
            trust: how its certificate is verified.
            version: pyVmomi's name of the API version to speak.
            timeout_s: for connecting, and for each wait for bytes.
            max_concurrent_calls: calls at the same time; more wait their turn for at most `timeout_s`.
        """
        super().__init__(
            host=endpoint.host,
            port=endpoint.port,
            path=endpoint.path,
            version=version,
            poolSize=max_concurrent_calls,
            sslContext=trust.context(),
            httpConnectionTimeout=timeout_s,
            connectionPoolTimeout=_IDLE_CONNECTION_S,
        )
        self.scheme = connection_class(trust, str(endpoint))
        self._vcenter_name = endpoint.name
        self._turn = threading.BoundedSemaphore(max_concurrent_calls)
        self._timeout_s = timeout_s

    def retire(self) -> None:
        """Closes the idle connections now, and each one that is still in use when its call ends."""
        self.poolSize = 0
        self.DropConnections()

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: N802, N803
        """Calls a method (the name and shape are pyVmomi's). Raises errors of safehaul only."""
        what = f"{info.wsdlName} on {describe(mo)} (vCenter {self._vcenter_name})"
        if not self._turn.acquire(timeout=self._timeout_s):
            raise BusyError(f"{what}: all connections to this vCenter were in use for {self._timeout_s:g} s")
        try:
            return super().InvokeMethod(mo, info, args, outerStub)
        except SafehaulError:
            raise
        except Exception as error:
            raise translate(error, what) from error
        finally:
            self._turn.release()

    def InvokeAccessor(self, mo: Any, info: Any) -> Any:  # noqa: N802 - pyVmomi's name
        """What `managed_object.property` would call: refused, since it makes a round trip for each property, and
        breaks on an unset or unknown value (vmware-facts 17). It is a defect of the caller.
        """
        raise TypeError(
            f"{info.name} of {describe(mo)} is read as an attribute: ask safehaul.vsphere.properties for it"
        )


def negotiate_version(endpoint: Endpoint, trust: Trust, timeout_s: float) -> str:
    """The newest API version that pyVmomi and the server both speak.

    Raises:
        ConnectionLostError: no answer, or an answer that is not vCenter's.
        ConfigError: the certificate is not trusted.
        UnsupportedError: no version in common.
    """
    what = f"asking {endpoint} for its API versions"
    connection = connection_class(trust, str(endpoint))(
        endpoint.host, endpoint.port, timeout=timeout_s, context=trust.context()
    )
    try:
        connection.request("GET", f"{endpoint.path}/vimServiceVersions.xml")
        response = connection.getresponse()
        body = response.read(_MAX_VERSIONS_BYTES)
    except SafehaulError:
        raise
    except Exception as error:
        raise translate(error, what) from error
    finally:
        connection.close()
    if response.status != 200:
        raise ConnectionLostError(f"{what}: HTTP status {response.status}: is it a vCenter, and is it up?")
    offered = _offered_versions(body, what)
    for version in GetServiceVersions("vim25"):
        if versionIdMap[version] in offered:
            return str(version)
    raise UnsupportedError(f"{what}: it offers {sorted(offered)[:20]}, none of which this client speaks")


def _offered_versions(body: bytes, what: str) -> set[str]:
    """Versions of namespace `urn:vim25` (VMware vSphere Web Services SDK Programming Guide, API versions)."""
    try:
        # expat, which also parses every other answer of vCenter; it bounds entity expansion itself.
        root = ET.fromstring(body)  # noqa: S314
    except ET.ParseError as error:
        raise ConnectionLostError(f"{what}: the answer is not vimServiceVersions.xml: {error}") from error
    return {
        (element.text or "").strip()
        for namespace in root.iter("namespace")
        if (namespace.findtext("name") or "").strip() == "urn:vim25"
        for element in namespace.iter("version")
    }
