"""The whole configuration as one immutable object. `loader.load` makes it; nothing else should."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Protocol, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from safehaul.config.fields import AbsolutePath
from safehaul.config.media_agent import MediaAgent
from safehaul.config.models import (
    AccessNode,
    CatalogSettings,
    TemporalSettings,
    VCenter,
    VmGroup,
)
from safehaul.errors import InvalidInputError
from safehaul.messages.exports import ExportDefinition

ENV_PREFIX = "SAFEHAUL_"
ENV_DELIMITER = "__"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _make_writable(value: object) -> object:
    """Whatever stands in `restore_exports` is writable; nobody has to say it twice."""
    return {"writable": True, **value} if isinstance(value, dict) else value


def _check_writable(value: ExportDefinition) -> ExportDefinition:
    if not value.writable:
        msg = "an export for restores must be writable; one for backups belongs in [[exports]]"
        raise ValueError(msg)
    return value


def _check_read_only(value: ExportDefinition) -> ExportDefinition:
    if value.writable:
        msg = "an export for backups is read only; a writable one belongs in [[restore_exports]]"
        raise ValueError(msg)
    return value


BackupExport = Annotated[ExportDefinition, AfterValidator(_check_read_only)]
RestoreExport = Annotated[ExportDefinition, BeforeValidator(_make_writable), AfterValidator(_check_writable)]

_N = TypeVar("_N", bound=_Named)


class Settings(BaseSettings):
    """Every table of the configuration.

    `loader.load` has checked what one table alone cannot tell: that every name that one table says exists in
    another, and that no name stands twice.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
    )

    installation_id: UUID
    """Marks the snapshots of this installation; only those are ever removed. Make it once (`uuidgen`), and never
    change it: snapshots that are held at that moment would be taken for somebody else's."""
    cache_dir: AbsolutePath = "/var/lib/safehaul/cache"
    """Directory on a local disk of each machine in which its workers keep their common copy of each repository's
    [dedup index](dedup-index.md), so that a start need not read it anew: about 65 MB for each TB of unique content. May
    be emptied at any time. Where it cannot be used, a worker warns of it and does without."""
    sweep_every: str = Field(default="15m", pattern=r"^([1-9]\d{0,3}[mh])?$")
    """How often snapshots of ours whose owner is gone are looked for and [removed](snapshots.md#the-sweeper), in
    minutes or hours: `15m`, `2h`; by the Temporal Schedule that `safehaul setup` makes. `""`: never by itself."""
    temporal: TemporalSettings = TemporalSettings()
    """The Temporal server that runs the jobs."""
    catalog: CatalogSettings
    """The database from which `backups list` and `job list` answer. CommServe and MediaAgents write it. It can
    always be made again from the repositories (`safehaul catalog rebuild`)."""
    vcenters: tuple[VCenter, ...] = Field(min_length=1, max_length=64)
    """A vCenter server, and how to log in to it. Its certificate is always checked: against the system's CAs,
    unless one of `ca_file` and `thumbprint_sha256` is set ([vcenter-role.md](vcenter-role.md#tls))."""
    exports: tuple[BackupExport, ...] = Field(default=(), max_length=1000)
    """What the hosts mount as a datastore, and what access nodes open for it to read backups: one table for each
    export of a filer ([filers.md](filers.md)). Through these nothing is ever written."""
    restore_exports: tuple[RestoreExport, ...] = Field(default=(), max_length=1000)
    """The same for restores: what access nodes open to write. Never used to read a backup's source. A datastore
    without one cannot be restored to."""
    access_nodes: tuple[AccessNode, ...] = Field(min_length=1, max_length=256)
    """A machine that reads disks from the filers: it runs `safehaul worker access-node NAME`."""
    media_agents: tuple[MediaAgent, ...] = Field(min_length=1, max_length=256)
    """The keeper of a repository: a machine that runs `safehaul worker media-agent NAME`."""
    vm_groups: tuple[VmGroup, ...] = Field(default=(), max_length=10_000)
    """VMs that are backed up together: which ones, by which nodes, to which MediaAgent, and how."""

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `loader` hands over: it merges file and environment itself, to say which one is wrong."""
        return (init_settings,)

    def vcenter(self, name: str) -> VCenter:
        """The vCenter of that name; InvalidInputError lists which exist."""
        return _by_name(self.vcenters, name, "vCenter")

    def access_node(self, name: str) -> AccessNode:
        """The access node of that name; InvalidInputError lists which exist."""
        return _by_name(self.access_nodes, name, "access node")

    def media_agent(self, name: str) -> MediaAgent:
        """The media agent of that name; InvalidInputError lists which exist."""
        return _by_name(self.media_agents, name, "media agent")

    def default_media_agent(self) -> MediaAgent:
        """The only media agent that keeps no second copy of another one's backups; else InvalidInputError."""
        copies = {agent.copy_to for agent in self.media_agents}
        firsts = [agent for agent in self.media_agents if agent.name not in copies]
        if len(firsts) != 1:
            names = ", ".join(agent.name for agent in self.media_agents)
            msg = f"there are several media agents, name one of {names}"
            raise InvalidInputError(msg)
        return firsts[0]

    def vm_group(self, name: str) -> VmGroup:
        """The VM group of that name; InvalidInputError lists which exist."""
        return _by_name(self.vm_groups, name, "VM group")

    def catalog_url(self) -> str:
        """The catalogue's SQLAlchemy URL, with the password in it when there is one: never to be logged.

        Raises:
            ConfigError: the password is not where its reference says.
        """
        if self.catalog.password is None:
            return self.catalog.url
        parts = urlsplit(self.catalog.url)
        user, _, place = parts.netloc.rpartition("@")
        secret = quote(self.catalog.password.resolve().get_secret_value(), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:{secret}@{place}"))

    def access_nodes_of(self, group: VmGroup) -> tuple[AccessNode, ...]:
        """The group's access nodes: those that it names, in its order, or else all."""
        if not group.access_nodes:
            return self.access_nodes
        return tuple(self.access_node(name) for name in group.access_nodes)


def _by_name(items: Iterable[_N], name: str, what: str) -> _N:
    names = []
    for item in items:
        if item.name == name:
            return item
        names.append(item.name)
    msg = f"the configuration has no {what} {name[:100]!r}; it has: {', '.join(names[:50]) or 'none'}"
    raise InvalidInputError(msg)
