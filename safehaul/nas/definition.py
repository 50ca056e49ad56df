"""How an access node opens what ESXi hosts mount as NAS datastores, and which definition fits which."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from safehaul.errors import ConfigError, UnsupportedError
from safehaul.messages.exports import ExportDefinition, NfsVersion
from safehaul.messages.inventory import NasVolume

_VERSION_OF_TYPE: dict[str, NfsVersion] = {"NFS": "3", "NFS41": "4.1"}
"""vSphere API, HostFileSystemVolumeFileSystemType: `NFS` is NFSv3, `NFS41` is NFSv4.1."""


def match(
    volume: NasVolume, definitions: Iterable[ExportDefinition], *, writable: bool = False
) -> ExportDefinition:
    """The definition by which this node opens the datastore, with its `version` decided.

    Raises UnsupportedError for a datastore that is not NAS or that demands Kerberos, and ConfigError when no
    definition, or more than one, fits; the message has the TOML to add.
    """
    if not volume.is_nas:
        raise UnsupportedError(
            f"datastore {volume.datastore!r} is of type {volume.type!r}: "
            "the NAS transport reads NFS and NFS41 only"
        )
    if volume.security_type.upper() not in {"", "AUTH_SYS"}:
        raise UnsupportedError(
            f"datastore {volume.datastore!r} demands {volume.security_type}: "
            "the NAS transport speaks AUTH_SYS only; export it to the access nodes with sec=sys as well"
        )
    found = [
        definition
        for definition in definitions
        if definition.writable == writable
        and definition.datacenter in {"", volume.datacenter, volume.datacenter_moref}
        and _same_path(definition.remote_path, volume.remote_path)
        and _same_host(definition.remote_hosts, volume.remote_host)
    ]
    if not found:
        raise ConfigError(_missing(volume, writable=writable))
    if len(found) > 1:
        names = ", ".join(repr(definition.name) for definition in found)
        raise ConfigError(
            f"datastore {volume.datastore!r} ({volume.remote_host}:{volume.remote_path}) "
            f"fits several exports: {names}; leave one of them, or give each its `datacenter`"
        )
    definition = found[0]
    if definition.version == "auto":
        return definition.model_copy(update={"version": _VERSION_OF_TYPE[volume.type]})
    return definition


def _same_host(known: Iterable[str], remote_host: str) -> bool:
    # A v4.1 datastore may have several servers; vCenter joins them with commas.
    wanted = {_host_key(part) for part in remote_host.split(",") if part.strip()}
    return any(_host_key(host) in wanted for host in known)


def _host_key(host: str) -> str:
    text = host.strip().strip("[]").rstrip(".").casefold()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def _same_path(left: str, right: str) -> bool:
    return (left.rstrip("/") or "/") == (right.rstrip("/") or "/")


def _missing(volume: NasVolume, *, writable: bool) -> str:
    kind = "writable export (for restores)" if writable else "export"
    place = f"{volume.remote_host}:{volume.remote_path}"
    lines = [
        f"no {kind} is defined for datastore {volume.datastore!r} at {place}; add:",
        "[[restore_exports]]" if writable else "[[exports]]",
        f'name = "{_name(volume.datastore)}"',
        f'remote_hosts = ["{_toml(volume.remote_host)}"]',
        f'remote_path = "{_toml(volume.remote_path)}"',
    ]
    return "\n".join(lines)


def _name(datastore: str) -> str:
    """A name for the definition that the configuration accepts (`NAME_PATTERN`)."""
    plain = re.sub(r"[^a-z0-9]+", "-", datastore.casefold()).strip("-")
    return plain[:60] or "export"


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped)
