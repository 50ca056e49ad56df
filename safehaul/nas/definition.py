"""How an access node opens what ESXi hosts mount as NAS datastores, and which definition fits which."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from safehaul.errors import ConfigError, UnsupportedError
from safehaul.messages.inventory import NasVolume

NfsVersion = Literal["3", "4.1"]

_VERSION_OF_TYPE: dict[str, NfsVersion] = {"NFS": "3", "NFS41": "4.1"}
"""vSphere API, HostFileSystemVolumeFileSystemType: `NFS` is NFSv3, `NFS41` is NFSv4.1."""


class ExportDefinition(BaseModel):
    """One NAS export of the configuration: what hosts call it, and how this access node opens it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    remote_hosts: list[str] = Field(min_length=1)
    """Every name or address by which ESXi hosts know the filer (`HostNasVolume.remoteHost`)."""
    remote_path: str
    """The exported path as ESXi hosts know it (`HostNasVolume.remotePath`)."""
    address: str = Field(default="", pattern=r"^[A-Za-z0-9.:_-]*$")
    """Name or address that this node uses; empty: the first of `remote_hosts`."""
    path: str = ""
    """Exported path that this node mounts; empty: `remote_path`."""
    version: Literal["auto", "3", "4.1"] = "auto"
    """`auto`: the version that the ESXi hosts use for the datastore (vmware-facts 3)."""
    nfs_port: int | None = Field(default=None, ge=1, le=65535)
    """None: 2049."""
    mount_port: int | None = Field(default=None, ge=1, le=65535)
    """NFSv3 MOUNT service; None: ask the filer's portmapper."""
    reserved_port: bool = True
    """Connect from a port below 1024: most exports demand it; needs root or CAP_NET_BIND_SERVICE."""
    uid: int = Field(default=0, ge=0, le=0xFFFFFFFF)
    gid: int = Field(default=0, ge=0, le=0xFFFFFFFF)
    mounted_at: str | None = None
    """Where the export is already mounted on this node (kernel NFS); None: the NFS client in this process."""
    writable: bool = False
    """True: for restores only; backups never use a writable definition."""
    connect_timeout_s: float = Field(default=15.0, gt=0, le=600)
    operation_timeout_s: float = Field(default=60.0, gt=0, le=3600)

    @field_validator("remote_path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError("must be an absolute path such as /vol/vmware1")
        return value

    @field_validator("path")
    @classmethod
    def _absolute_or_empty(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError("must be an absolute path such as /vol/vmware1")
        return value

    @field_validator("mounted_at")
    @classmethod
    def _mounted_absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("must be an absolute path such as /mnt/vmware1")
        return value

    @property
    def effective_address(self) -> str:
        """Where this node connects."""
        return self.address or self.remote_hosts[0]

    @property
    def effective_path(self) -> str:
        """The exported path that this node mounts."""
        return self.path or self.remote_path

    def __str__(self) -> str:
        """The export for messages: name, place, version, identity, port."""
        if self.mounted_at is not None:
            return f"export {self.name!r} (mounted at {self.mounted_at})"
        version = f"NFS version {self.version}"
        port = "a reserved port" if self.reserved_port else "an unreserved port"
        return (
            f"export {self.name!r} ({self.effective_address}:{self.effective_path}, {version}, "
            f"as uid {self.uid} from {port})"
        )


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
        and _same_path(definition.remote_path, volume.remote_path)
        and _same_host(definition.remote_hosts, volume.remote_host)
    ]
    if not found:
        raise ConfigError(_missing(volume, writable=writable))
    if len(found) > 1:
        names = ", ".join(repr(definition.name) for definition in found)
        raise ConfigError(
            f"datastore {volume.datastore!r} ({volume.remote_host}:{volume.remote_path}) "
            f"fits several exports: {names}; leave one of them"
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
        "[[exports]]",
        f'name = "{_toml(volume.datastore)}{"-restore" if writable else ""}"',
        f'remote_hosts = ["{_toml(volume.remote_host)}"]',
        f'remote_path = "{_toml(volume.remote_path)}"',
    ]
    if writable:
        lines.append("writable = true")
    return "\n".join(lines)


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped)
