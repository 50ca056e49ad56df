"""Why this node does not get through to an export: nobody answers, the wrong one answers, or it is not let in.

nfs-rs tells failures below NFS by their text alone (0.8.7): an RPC that was denied (RFC 5531 section 9, MSG_DENIED:
AUTH_TOOWEAK of a filer that demands a privileged port or Kerberos), and one that was accepted but has no such
program or version there. The contract tests hold these texts against real filers.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import nfs_rs

from safehaul.errors import (
    ConfigError,
    ConnectionLostError,
    NotFoundError,
    PermissionRefusedError,
    SafehaulError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.paths import safe

_DENIED = "bad status"
_NO_SUCH_PROGRAM = "request rejected"
_NO_PORTMAPPER = "portmapper lookup failed"
_NO_ADDRESS = "lookup address information"
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_MAX_NAMED_EXPORTS = 8


def unreached(error: Exception, place: str, definition: ExportDefinition) -> SafehaulError | None:
    """Our error of a call that never got to NFS, or None when it did. `place` says what was tried, on which export."""
    if definition.mounted_at is not None:
        return None
    if _is_local_refusal(error):
        return PermissionRefusedError(
            f"{place}: this process may not use a port below 1024: run it as root or with CAP_NET_BIND_SERVICE, or "
            f"set reserved_port = false here and let the filer allow unreserved ports (insecure)"
        )
    texts = _texts(error)
    if _DENIED in texts:
        return _denied(place, definition)
    if _NO_SUCH_PROGRAM in texts:
        return other_version(place, definition)
    if isinstance(error, OSError | nfs_rs.NfsRpcError):
        return _nobody(error, texts, place, definition)
    return None


def other_version(place: str, definition: ExportDefinition) -> ConfigError:
    """The filer answers, but not in this version of NFS."""
    return ConfigError(
        f"{place}: what answers at {definition.effective_address}, {_ports(definition)}, does not speak NFS "
        f"version {definition.version}: enable that version on the filer, or correct version or nfs_port in this "
        f"export's definition (without them: the version that the hosts use, port 2049)"
    )


def wrong_security(place: str, definition: ExportDefinition) -> PermissionRefusedError:
    """The export demands a security flavour that is not ours."""
    return PermissionRefusedError(
        f"{place}: the export demands another security flavour, such as Kerberos: allow sec=sys (AUTH_SYS) "
        f"for this node, uid {definition.uid}"
    )


def no_export(definition: ExportDefinition) -> SafehaulError:
    """The export, or the directory where it should be mounted, does not exist."""
    if definition.mounted_at is not None:
        return NotFoundError(
            f"{definition}: this node has no such directory; mount the export there, or leave mounted_at out"
        )
    return NotFoundError(
        f"the filer has no such export: {definition}; check address and path of this export's definition against "
        f"the filer's list of exports{_hidden(definition)}"
    )


def mount_refused(definition: ExportDefinition, offered: Sequence[str] | None) -> PermissionRefusedError:
    """The mount service says no; `offered` is its list of exports for this node, None when it tells none."""
    message = (
        f"mount {definition}: refused: the filer has no such export, or not for this node's address, not over NFS "
        f"version {definition.version}, or not from {definition.source_port}"
    )
    if offered is not None:
        named = ", ".join(safe(path) for path in offered[:_MAX_NAMED_EXPORTS])
        more = ", …" if len(offered) > _MAX_NAMED_EXPORTS else ""
        message += f"; it offers this node {named or 'nothing'}{more}"
    return PermissionRefusedError(f"{message}; correct path, or the export's rule for this node")


def _hidden(definition: ExportDefinition) -> str:
    if definition.version == "3":
        return ""
    return (
        f"; over version 4.1 a filer also hides an export from a client that may not use it: check that its rule "
        f"allows this node's address, NFS version {definition.version} and calls from {definition.source_port}"
    )


def _denied(place: str, definition: ExportDefinition) -> PermissionRefusedError:
    message = f"{place}: the filer rejects uid {definition.uid} by AUTH_SYS from {definition.source_port}: "
    if not definition.reserved_port:
        message += "allow unreserved ports (insecure), or set reserved_port = true and run as root; and "
    return PermissionRefusedError(f"{message}allow sec=sys for this node")


def _nobody(
    error: Exception, texts: str, place: str, definition: ExportDefinition
) -> ConnectionLostError | None:
    address, ports = definition.effective_address, _ports(definition)
    number = getattr(error, "errno", None)
    if _NO_PORTMAPPER in texts:
        return ConnectionLostError(
            f"{place}: the portmapper of {address} (port 111) does not tell where its mount service is: start it, "
            f"let this node reach it, or set mount_port; a filer that serves version 4.1 alone has none"
        )
    if _NO_ADDRESS in texts or isinstance(error, socket.gaierror):
        return ConnectionLostError(
            f"{place}: the name {safe(address)} does not resolve on this node: correct it, the node's DNS, or "
            f"set address"
        )
    if number == errno.ECONNREFUSED:
        return ConnectionLostError(
            f"{place}: nothing listens at {address}, {ports}: check that the filer runs and serves NFS version "
            f"{definition.version}, and its ports (nfs_port, mount_port)"
        )
    if number in _NO_ROUTE:
        return ConnectionLostError(
            f"{place}: there is no route from this node to {address}, {ports}: check the node's network, or set "
            f"address to one of the filer's that this node reaches"
        )
    if isinstance(error, TimeoutError):
        return ConnectionLostError(
            f"{place}: {address}, {ports}, does not answer in time (connect_timeout_s "
            f"{definition.connect_timeout_s:g}, operation_timeout_s {definition.operation_timeout_s:g}): check the "
            f"filer, and firewalls between it and this node"
        )
    return None


def _is_local_refusal(error: Exception) -> bool:
    """A permission error without an NFS status is our own kernel's: it did not give us a reserved port."""
    return isinstance(error, nfs_rs.NfsPermissionError) and error.code_name is None


def _ports(definition: ExportDefinition) -> str:
    text = f"port {definition.nfs_port or 2049}"
    if definition.version != "4.1" and definition.mount_port:
        text += f" (mount service: {definition.mount_port})"
    return text


def _texts(error: BaseException | None) -> str:
    """The messages of an error and of what caused it: nfs-rs wraps what the filer said."""
    found: list[str] = []
    while error is not None and len(found) < 8:
        found.append(str(error))
        error = error.__cause__
    return "\n".join(found)
