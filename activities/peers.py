"""What a worker process is connected to: one session for each vCenter, its repositories, exports, catalogue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from activities.repositories import open_repository
from activities.spool import Spool
from safehaul.catalog.catalog import Catalog
from safehaul.config.settings import Settings
from safehaul.errors import SafehaulError
from safehaul.media.repository import Repository
from safehaul.messages.inventory import NasVolume
from safehaul.nas.datastores import open_export
from safehaul.nas.definition import match
from safehaul.nas.export import NasExport
from safehaul.vsphere.client import VCenter

# Shorter than a step's heartbeat time-out: a vCenter that hangs must not look like a dead worker.
VCENTER_TIMEOUT_S = 15.0

PeerT = TypeVar("PeerT")
_log = logging.getLogger(__name__)


class Peers:
    """Opened when first used, shared by the process's steps, closed at its end. Thread-safe."""

    def __init__(self, settings: Settings, *, upgrade_catalog: bool = False) -> None:
        self.settings = settings
        self._upgrade_catalog = upgrade_catalog
        self._lock = threading.Lock()
        self._catalog_lock = threading.Lock()
        self._vcenters: dict[str, VCenter] = {}
        self._repositories: dict[str, Repository] = {}
        self._catalogs: dict[str, Catalog] = {}
        self._spools: dict[str, Spool] = {}

    def vcenter(self, name: str) -> VCenter:
        """The session with the vCenter of that name in the configuration."""
        return self._once(self._vcenters, name, lambda: self._open_vcenter(name))

    def repository(self, media_agent: str) -> Repository:
        """The repository of the MediaAgent of that name."""
        return self._once(
            self._repositories,
            media_agent,
            lambda: open_repository(
                self.settings.media_agent(media_agent), cache_dir=self.settings.cache_dir
            ),
        )

    def load_indexes(self, media_agents: Iterable[str]) -> None:
        """Read the lists of chunks that are new in these MediaAgents' repositories: at a start, before there is work.

        A machine that has none of them yet reads for minutes in a large repository; no VM's snapshot waits for that.
        """
        for name in media_agents:
            try:
                self.repository(name).refresh_index()
            except SafehaulError as error:
                # The steps that need this repository tell it; others may be served.
                _log.warning("the dedup index of MediaAgent %s is not read yet: %s", name, error)

    def catalog(self) -> Catalog:
        """The catalogue. Under a lock of its own: a database that does not answer holds nothing else up."""
        with self._catalog_lock:
            if "" not in self._catalogs:
                self._catalogs[""] = Catalog(self.settings.catalog_url(), upgrade=self._upgrade_catalog)
            return self._catalogs[""]

    def open_export(self, volume: NasVolume, *, writable: bool = False) -> NasExport:
        """A fresh connection to the export behind a NAS volume; the caller closes it."""
        definitions = self.settings.restore_exports if writable else self.settings.exports
        return open_export(match(volume, definitions, writable=writable))

    def spool(self, node: str) -> Spool:
        """The node's spool."""
        return self._once(self._spools, node, lambda: self._open_spool(node))

    def close(self) -> None:
        """Log out everywhere."""
        with self._lock:
            for vcenter in self._vcenters.values():
                vcenter.close()
            self._vcenters.clear()
            for repository in self._repositories.values():
                repository.close()
            self._repositories.clear()
        with self._catalog_lock:
            for catalog in self._catalogs.values():
                catalog.close()
            self._catalogs.clear()

    def _open_vcenter(self, name: str) -> VCenter:
        found = self.settings.vcenter(name)
        return VCenter(
            found.name,
            url=found.url,
            user=found.user,
            password=found.password.resolve(),
            ca_file=Path(found.ca_file) if found.ca_file else None,
            thumbprint_sha256=found.thumbprint_sha256 or None,
            insecure=found.insecure_skip_verify,
            timeout_s=VCENTER_TIMEOUT_S,
            max_concurrent_calls=found.max_concurrent_calls,
        )

    def _open_spool(self, node: str) -> Spool:
        found = self.settings.access_node(node)
        return Spool(Path(found.spool_dir) / node, found.spool_limit_bytes)

    def _once(self, cache: dict[str, PeerT], key: str, make: Callable[[], PeerT]) -> PeerT:
        with self._lock:
            if key not in cache:
                cache[key] = make()
            return cache[key]
