"""How an access node opens the NAS volume behind a datastore: one export definition of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NfsVersion = Literal["auto", "3", "4.1"]
"""`auto` takes the version that the ESXi host uses for the datastore (`HostNasVolume.type`)."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names become parts of task queue names, paths and search attributes: no dots, no capitals, no spaces."""

_UID_MAX = 2**32 - 2
"""AUTH_SYS carries 32-bit ids (RFC 5531, appendix A); 2**32 - 1 is 'no id' in practice."""


class ExportDefinition(BaseModel):
    """Maps what a host's `HostNasVolume` says to what an access node opens.

    `remote_hosts` and `remote_path` are what ESXi mounted; `address` and `path` are what the access node uses
    instead where they differ (another network, another view of the same export). A person types this:
    unknown fields are an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=NAME_PATTERN)
    """The definition's name, for messages."""
    remote_hosts: tuple[str, ...] = Field(min_length=1, max_length=16)
    """The filer as the hosts name it: all names and addresses by which any of them mounts this export
    (`HostNasVolume.remoteHost` and `remoteHostNames`)."""
    remote_path: str = Field(min_length=1, max_length=1024)
    """The export as the hosts name it (`HostNasVolume.remotePath`): an absolute path."""
    datacenter: str = Field(default="", max_length=80)
    """Name or moref of the only datacentre whose datastores it is for. Not set: any. Two datacentres may each have a
    storage network in which the same address is another filer."""
    address: str = ""
    """Host name or IP address that access nodes dial. Not set: the first of `remote_hosts`."""
    path: str = ""
    """Absolute path that access nodes mount there. Not set: `remote_path`."""
    version: NfsVersion = "auto"
    """Version of NFS; `"auto"`: the one by which the hosts mount the datastore."""
    nfs_port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port of the filer's NFS service. Not set: 2049."""
    mount_port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port of the filer's mount service, which version 3 needs. Not set: the filer's portmapper is asked (port
    111)."""
    reserved_port: bool = True
    """Call from a port below 1024, as most filers demand of a client that acts as root. The worker then runs as
    root or with `CAP_NET_BIND_SERVICE`."""
    uid: int = Field(default=0, ge=0, le=_UID_MAX)
    """User id by which the filer is called (AUTH_SYS). The disks' files belong to root and nobody else may read
    them."""
    gid: int = Field(default=0, ge=0, le=_UID_MAX)
    """Group id by which the filer is called."""
    mounted_at: str | None = None
    """Absolute directory where the node's kernel has the export mounted; excludes `nfs_port` and `mount_port`. Not
    set: the built-in NFS client opens the export."""
    writable: bool = False
    """True for restores only, and for each of them: the configuration sets it in `restore_exports`."""
    connect_timeout_s: float = Field(default=15.0, gt=0, le=600)
    """How long a connection may take."""
    operation_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """How long one call to the filer may take."""

    @field_validator("version", mode="before")
    @classmethod
    def _version_as_text(cls, value: object) -> object:
        """A TOML `version = 3` or `4.1` is a number; mean the same as the text."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("remote_hosts")
    @classmethod
    def _hosts_are_plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            _check_host(host)
        return value

    @field_validator("address")
    @classmethod
    def _address_is_plain(cls, value: str) -> str:
        if value:
            _check_host(value)
        return value

    @field_validator("remote_path", "path", "mounted_at")
    @classmethod
    def _path_is_absolute(cls, value: str | None) -> str | None:
        """Absolute, without `..` and control characters.

        NFS v4.1 datastores and some filers name an export without a leading slash only in old documents; ESXi
        always reports one.
        """
        if not value:
            return value
        if not value.startswith("/"):
            msg = f"must start with '/', not {value!r}"
            raise ValueError(msg)
        if ".." in value.split("/"):
            msg = "must not contain '..'"
            raise ValueError(msg)
        if any(ord(char) < 0x20 or ord(char) == 0x7F for char in value):
            msg = "must not contain control characters"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _mounted_or_dialled(self) -> ExportDefinition:
        if self.mounted_at and (self.nfs_port or self.mount_port):
            msg = "mounted_at reads through the kernel's mount: leave nfs_port and mount_port out beside it"
            raise ValueError(msg)
        return self

    @property
    def effective_address(self) -> str:
        """The host that the access node dials."""
        return self.address or self.remote_hosts[0]

    @property
    def effective_path(self) -> str:
        """The path that the access node mounts."""
        return self.path or self.remote_path

    @property
    def source_port(self) -> str:
        """The kind of port that the access node calls from, for messages."""
        return "a reserved port" if self.reserved_port else "an unreserved port"

    def __str__(self) -> str:
        """The export for messages: name, place, version, identity, port."""
        if self.mounted_at is not None:
            return f"export {self.name!r} (mounted at {self.mounted_at})"
        return (
            f"export {self.name!r} ({self.effective_address}:{self.effective_path}, NFS version {self.version}, "
            f"as uid {self.uid} from {self.source_port})"
        )


def _check_host(value: str) -> None:
    """Refuse what cannot be a host name or an IP address; the value ends up in an NFS URL."""
    if not value or len(value) > 253 or any(char.isspace() or char in "/?#@\\" for char in value):
        msg = f"{value!r} is not a host name or IP address"
        raise ValueError(msg)
