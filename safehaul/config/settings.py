"""The whole configuration as one immutable object. `loader.load` makes it; nothing else should."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Protocol, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from safehaul.config.models import (
    AccessNode,
    CatalogSettings,
    MediaAgent,
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
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
    )

    installation_id: UUID
    """Marks our snapshots: only those of the own installation are ever touched. Made once, never changed."""
    temporal: TemporalSettings = TemporalSettings()
    catalog: CatalogSettings
    vcenters: tuple[VCenter, ...] = Field(min_length=1, max_length=64)
    exports: tuple[BackupExport, ...] = Field(default=(), max_length=1000)
    """For backup: mounted read only."""
    restore_exports: tuple[RestoreExport, ...] = Field(default=(), max_length=1000)
    """For restore: writable. Never used to read a backup's source."""
    access_nodes: tuple[AccessNode, ...] = Field(min_length=1, max_length=256)
    media_agents: tuple[MediaAgent, ...] = Field(min_length=1, max_length=256)
    vm_groups: tuple[VmGroup, ...] = Field(default=(), max_length=10_000)

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
