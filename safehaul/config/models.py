"""The tables of the configuration file. `example.py` shows them all with comments."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from safehaul.config.fields import AbsolutePath, Name, Section, SizeBytes
from safehaul.config.secrets import SecretRef
from safehaul.messages.disks import DiskCriteria, DiskSelection
from safehaul.messages.vm import (
    MAX_HOLD_S,
    MIN_FREE_BYTES,
    NODE_DEAD_AFTER_S,
    PAUSE_HOLD_S,
    REMOVAL_HANDOVER_AFTER_S,
)
from safehaul.patterns import MAX_PATTERN_CHARS
from safehaul.retention import Retention
from safehaul.rules import Rule

_MIB = 2**20
_GIB = 2**30
Glob = Annotated[str, Field(max_length=MAX_PATTERN_CHARS)]
MAX_DISK_FILTERS = 32
"""They travel with each VM through its steps."""
_CATALOG_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")


def _refuse_password_in_url(value: str) -> str:
    """A URL is logged and shown; a password in it would be too."""
    parts = urlsplit(value)
    if parts.password is not None or {"password", "sslpassword"} & dict(parse_qsl(parts.query)).keys():
        msg = "must not hold a password; say where it is in `password`"
        raise ValueError(msg)
    return value


class TlsSettings(Section):
    """TLS to the Temporal server; the system's CAs unless `server_ca_file` says otherwise."""

    enabled: bool = True
    """`false`: no TLS after all, without taking the other keys out."""
    server_ca_file: AbsolutePath | None = None
    """PEM file of the CA certificates that the server's certificate is checked against. Not set: the system's
    CAs."""
    domain: str = Field(default="", max_length=253)
    """Name that the server's certificate must carry, where it differs from the address."""
    client_cert_file: AbsolutePath | None = None
    """PEM file of a client certificate, for a server that asks for one; goes together with `client_key_file`."""
    client_key_file: AbsolutePath | None = None
    """PEM file of that certificate's private key."""

    @model_validator(mode="after")
    def _certificate_with_key(self) -> TlsSettings:
        if (self.client_cert_file is None) != (self.client_key_file is None):
            msg = "client_cert_file and client_key_file go together"
            raise ValueError(msg)
        return self


def _tls_from_bool(value: object) -> object:
    """`tls = true` is TLS with the system's certificate authorities."""
    return {"enabled": value} if isinstance(value, bool) else value


class TemporalSettings(Section):
    """Where the Temporal server is."""

    address: str = Field(default="127.0.0.1:7233", pattern=r"^[^\s/@]+:\d{1,5}$", max_length=300)
    """`host:port` of the server's frontend."""
    namespace: str = Field(default="default", min_length=1, max_length=255)
    """Namespace that the jobs run in. It must exist."""
    tls: Annotated[TlsSettings, BeforeValidator(_tls_from_bool)] = TlsSettings(enabled=False)
    """`true`: TLS, checked against the system's CAs; or a table with keys of its own."""
    api_key: SecretRef | None = None
    """API key, for a server that asks for one; needs TLS."""

    @model_validator(mode="after")
    def _key_needs_tls(self) -> TemporalSettings:
        if self.api_key is not None and not self.tls.enabled:
            msg = "an api_key would travel in clear: set tls = true"
            raise ValueError(msg)
        return self


class CatalogSettings(Section):
    """The catalogue's database. It can always be made again from the repositories."""

    url: str = Field(max_length=2048)
    """SQLAlchemy URL: `sqlite:////var/lib/safehaul/catalog.db`, or `postgresql://user@host/name` (needs the extra
    `postgresql` of the package; [more](catalogue.md#postgresql)). An SQLite file needs one machine for CommServe and
    MediaAgents."""
    password: SecretRef | None = None
    """Password of the URL's user; never in the URL."""

    @model_validator(mode="after")
    def _password_of_a_user(self) -> CatalogSettings:
        if self.password is not None and not urlsplit(self.url).username:
            msg = "a password needs the user in the url: postgresql://user@host/database"
            raise ValueError(msg)
        return self

    @field_validator("url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        scheme = urlsplit(value).scheme
        if scheme not in _CATALOG_SCHEMES:
            msg = f"must start with one of {', '.join(f'{name}:' for name in _CATALOG_SCHEMES)}"
            raise ValueError(msg)
        if scheme == "sqlite" and not value.startswith("sqlite:////"):
            msg = "the path of an SQLite catalogue must be absolute: sqlite:////var/lib/safehaul/catalog.db"
            raise ValueError(msg)
        return _refuse_password_in_url(value)


class VCenter(Section):
    """A vCenter server, how to log in, and how its certificate is checked (by default: the system's CAs)."""

    name: Name
    """What VM groups call it."""
    url: str = Field(max_length=2048)
    """`https://host[:port][/sdk]`."""
    user: str = Field(min_length=1, max_length=256)
    """The account, such as `backup@vsphere.local`; it needs the [role](vcenter-role.md)."""
    password: SecretRef
    """Where its password is."""
    ca_file: AbsolutePath | None = None
    """PEM file of the CA certificates that the server's certificate is checked against."""
    thumbprint_sha256: str = ""
    """SHA-256 thumbprint of the one certificate that is accepted, whatever name and time it says: 64 hexadecimal
    digits, with or without colons."""
    insecure_skip_verify: bool = False
    """`true`: any certificate is accepted, from anybody. For a laboratory; each start logs a warning."""
    max_concurrent_calls: int = Field(default=8, ge=1, le=64)
    """Calls to it at once from each worker process; more wait their turn."""

    @field_validator("url")
    @classmethod
    def _https_host(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
            msg = "must look like https://vcenter.example.net/sdk"
            raise ValueError(msg)
        if parts.username is not None:
            msg = "must not hold a user or password; they have keys of their own"
            raise ValueError(msg)
        _ = parts.port  # raises ValueError when it is not a port number
        return value

    @field_validator("thumbprint_sha256")
    @classmethod
    def _plain_hex(cls, value: str) -> str:
        plain = value.replace(":", "").lower()
        if value and not re.fullmatch(r"[0-9a-f]{64}", plain):
            msg = "must be the certificate's SHA-256: 64 hexadecimal digits, with or without colons"
            raise ValueError(msg)
        return plain

    @model_validator(mode="after")
    def _one_kind_of_trust(self) -> VCenter:
        if sum((self.ca_file is not None, bool(self.thumbprint_sha256), self.insecure_skip_verify)) > 1:
            msg = "ca_file, thumbprint_sha256 and insecure_skip_verify exclude each other: keep one"
            raise ValueError(msg)
        return self

    @property
    def host(self) -> str:
        """Host name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port, 443 unless the URL says otherwise."""
        return urlsplit(self.url).port or 443

    @property
    def path(self) -> str:
        """Path of the SOAP endpoint, `/sdk` unless the URL says otherwise."""
        path = urlsplit(self.url).path
        return "/sdk" if path in {"", "/"} else path


class AccessNode(Section):
    """A machine that reads disks from the filers."""

    name: Name
    """As in `safehaul worker access-node NAME`."""
    streams: int | None = Field(default=None, ge=1, le=256)
    """Disks that it reads at once, and VMs of one job that it has in work at once. Not set: as many as it has
    cores."""
    spool_dir: AbsolutePath = "/var/lib/safehaul/spool"
    """Directory of its own for the VMs' small files (configuration, NVRAM, logs) between download and repository;
    the worker's user must be able to make and write it."""
    spool_limit_bytes: SizeBytes = Field(default=2 * _GIB, ge=_MIB)
    """The most that the small files of all VMs in work may take in `spool_dir`; a VM that would pass it waits."""


class DiskFilter(Section):
    """What a disk must be like. Every key that is given must fit; globs take `*` `?` `[abc]` `[!abc]`."""

    label: Glob = ""
    """The disk's label, such as `Hard disk 2`."""
    controller_key: int | None = Field(default=None, ge=0)
    """Device key of its controller: 1000 is the first SCSI controller."""
    unit_number: int | None = Field(default=None, ge=0, le=255)
    """Its unit there: with `controller_key = 1000`, 2 is SCSI (0:2)."""
    datastore: Glob = ""
    """Name of the datastore that holds the disk's base."""
    file: Glob = ""
    """Path of the base's descriptor in that datastore: `web-1/web-1_2.vmdk`; `*` takes slashes too."""
    min_size_bytes: SizeBytes | None = None
    """The least capacity."""
    max_size_bytes: SizeBytes | None = None
    """The largest capacity."""
    ignore_case: bool = False
    """`true`: upper and lower case are the same."""

    @model_validator(mode="after")
    def _says_something(self) -> DiskFilter:
        if self.criteria() == DiskCriteria(ignore_case=self.ignore_case):
            msg = "needs one key at least: label, controller_key, unit_number, datastore, file, or a size"
            raise ValueError(msg)
        low, high = self.min_size_bytes, self.max_size_bytes
        if low is not None and high is not None and low > high:
            msg = "min_size_bytes is above max_size_bytes: no disk could fit"
            raise ValueError(msg)
        return self

    def criteria(self) -> DiskCriteria:
        """The filter as the steps are told."""
        return DiskCriteria(**self.model_dump())


class VmGroup(Section):
    """VMs that are backed up together: which ones, by which nodes, to which media agent, and how."""

    name: Name
    """As in `safehaul job start NAME`."""
    vcenter: Name
    """Name of the `[[vcenters]]` that has the VMs."""
    media_agent: Name
    """Name of the `[[media_agents]]` that keeps the backups."""
    access_nodes: tuple[Name, ...] = Field(default=(), max_length=256)
    """Names of the `[[access_nodes]]` that may read. Not set: all."""
    rules: tuple[Rule, ...] = Field(min_length=1, max_length=1000)
    """A VM is selected when any of these matches …"""
    exclude: tuple[Rule, ...] = Field(default=(), max_length=1000)
    """… and none of these does."""
    disks: tuple[DiskFilter, ...] = Field(default=(), max_length=MAX_DISK_FILTERS)
    """Of a selected VM, only disks that any of these fits (not set: all) …"""
    exclude_disks: tuple[DiskFilter, ...] = Field(default=(), max_length=MAX_DISK_FILTERS)
    """… and none of these. A disk that is left out is named in the report and does not make the VM Partial."""
    allow_empty: bool = False
    """`false`: a job whose rules select no VM fails. `true`: it is Completed, with nothing done."""
    streams: int | None = Field(default=None, ge=1, le=10_000)
    """The most VMs of a job in work at once, over all its nodes. Not set: as many as the nodes have streams."""
    distribution: Literal["dynamic", "static"] = "dynamic"
    """`"dynamic"`: one queue, and a node with a free stream gets the next VM. `"static"`: all VMs are divided among
    the nodes before the first one starts; only what a lost node had goes to others."""
    order: Literal["name", "size", "listed"] = "size"
    """`"size"`: largest first; `"name"`: by name; `"listed"`: as the rules list them."""
    quiesce: bool = False
    """`true`: VMware Tools bring the guest's file systems to rest for the snapshot. `false`: crash-consistent."""
    quiesce_fallback: bool = False
    """With `quiesce`. `true`: a VM that refuses gets a crash-consistent snapshot, and its report says so. `false`:
    it fails."""
    snapshot_debt: Literal["refuse", "warn"] = "refuse"
    """A VM whose disks needed consolidation before the job touched it: `"refuse"` fails it, `"warn"` backs it up
    and says so."""
    pending_snapshot: Literal["refuse", "proceed"] = "refuse"
    """A VM whose last backup's snapshot is still being removed: `"refuse"` fails it, `"proceed"` backs it up and
    says so."""
    min_free_bytes: SizeBytes = MIN_FREE_BYTES
    """With less free space on any datastore of the VM no snapshot is made; and one that is held is given up."""
    max_hold_s: float = Field(default=MAX_HOLD_S, gt=0, le=7 * 86400)
    """The longest that a snapshot is held; then it is removed, and the VM fails."""
    pause_hold_s: float = Field(default=PAUSE_HOLD_S, ge=0, le=86400)
    """The longest that a VM holds its snapshot while it is paused; then it is removed, and the VM begins anew when it
    is resumed. Never beyond `max_hold_s`. At most a day: a session on which nothing is written for two is ended."""
    removal_handover_after_s: float = Field(default=REMOVAL_HANDOVER_AFTER_S, ge=10, le=86400)
    """A snapshot's removal that takes longer goes on beside the job, without limit; the VM's stream is free
    again."""
    node_dead_after_s: float = Field(default=NODE_DEAD_AFTER_S, ge=20, le=3600)
    """An access node that gives no sign of life for so long is taken for dead: its VMs go on on another one, under the
    same snapshot."""
    retention: Retention = Retention()
    """How long its backups are kept. Not set: for ever."""

    @property
    def disk_selection(self) -> DiskSelection:
        """The disk filters as the steps are told."""
        return DiskSelection(
            include=[each.criteria() for each in self.disks],
            exclude=[each.criteria() for each in self.exclude_disks],
        )

    @model_validator(mode="after")
    def _fallback_of_what(self) -> VmGroup:
        if self.quiesce_fallback and not self.quiesce:
            msg = "quiesce_fallback has no effect without quiesce = true"
            raise ValueError(msg)
        return self
