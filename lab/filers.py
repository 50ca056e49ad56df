"""The filers of a data centre, of either kind: one side that is read for backups, one that restores write to.

`rclone` runs without root and serves v3 alone, whatever the hosts mount, each datastore as `/NAME`. `ganesha` needs
root and serves each datastore as the hosts mount it, by their path and in their version of NFS and no other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from lab.esx.spec import DatastoreSpec
from lab.filer import Filer
from lab.ganesha import Ganesha, GaneshaExport, Version

Kind = Literal["rclone", "ganesha"]
Place = dict[str, str | int | bool]
"""What an export definition of safehaul says beside its name and the hosts' words, as TOML values."""
VERSION_OF_TYPE: dict[str, Version] = {"NFS": "3", "NFS41": "4.1"}
RESTORE = "/restore"
"""Before the hosts' path: where ganesha exports a datastore for writing."""


class Filers(Protocol):
    """Started and stopped with the data centre."""

    @property
    def read_port(self) -> int:
        """TCP port of the NFS service that backups read from."""

    def start(self) -> None:
        """Start and check that clients see what the hosts write. Raises LabError."""

    def stop(self) -> None:
        """End every process; a second call does nothing."""

    def served_bytes(self) -> int:
        """Bytes of files that backups have been served since the start."""

    def wait_settled(self) -> None:
        """Return when everything that restores wrote is in the datastores' directories."""

    def place(self, store: DatastoreSpec, *, writable: bool, nfs_port: int) -> Place:
        """How an access node opens the datastore; `nfs_port` may be that of something before the filer."""


def make(
    kind: Kind,
    stores: Sequence[DatastoreSpec],
    datastores: Path,
    state: Path,
    rules: Mapping[str, Mapping[str, Any]],
) -> Filers:
    """Filers of that kind for the stores below `datastores`, which need not exist yet.

    `rules` changes what ganesha exports for backups, by datastore: fields of GaneshaExport.
    """
    if kind == "rclone":
        if rules:
            raise ValueError("rclone has no rules for its exports")
        return RcloneFilers(datastores, state)
    return GaneshaFilers(stores, datastores, state, rules)


class RcloneFilers:
    """Two rclone processes: the one that backups read is coherent at once, the other stores a moment later."""

    def __init__(self, datastores: Path, state: Path) -> None:
        self._reading = Filer(datastores, state=state / "filer")
        self._writing = Filer(datastores, state=state / "restore-filer", writable=True)

    @property
    def read_port(self) -> int:
        """See `Filers`."""
        return self._reading.port

    def start(self) -> None:
        """See `Filers`."""
        self._reading.start()
        self._reading.assert_coherent()
        self._writing.start()

    def stop(self) -> None:
        """See `Filers`."""
        self._reading.stop()
        self._writing.stop()

    def kill(self) -> None:
        """SIGKILL both, as a filer that loses its power."""
        self._reading.kill()
        self._writing.kill()

    def start_again(self) -> None:
        """Start both again where they were; the counter of served bytes begins anew. Raises FilerError."""
        self._reading.start_again()
        self._writing.start_again()

    def served_bytes(self) -> int:
        """See `Filers`."""
        return self._reading.served_bytes()

    def wait_settled(self) -> None:
        """See `Filers`."""
        self._writing.wait_settled()

    def place(self, store: DatastoreSpec, *, writable: bool, nfs_port: int) -> Place:
        """See `Filers`. rclone shows every file as its own user's, and needs no reserved port."""
        port = self._writing.port if writable else nfs_port
        return {
            "address": "127.0.0.1",
            "path": f"/{store.name}",
            "version": "3",
            "nfs_port": port,
            "mount_port": port,
            "reserved_port": False,
            "uid": os.getuid(),
            "gid": os.getgid(),
        }


class GaneshaFilers:
    """One ganesha that exports each datastore twice: read-only as the hosts mount it, and writable for restores."""

    def __init__(
        self,
        stores: Sequence[DatastoreSpec],
        datastores: Path,
        state: Path,
        rules: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._stores = [store for store in stores if store.type in VERSION_OF_TYPE]
        self._datastores = datastores
        exports = [self._export(store, rules.get(store.name, {})) for store in self._stores]
        exports += [
            dataclasses.replace(self._export(store, {}), path=RESTORE + store.remote_path, writable=True)
            for store in self._stores
        ]
        versions = {version for export in exports for version in export.versions}
        self._ganesha = Ganesha(exports, state=state / "ganesha", versions=tuple(sorted(versions)))

    @property
    def read_port(self) -> int:
        """See `Filers`."""
        return self._ganesha.port

    def start(self) -> None:
        """See `Filers`."""
        self._ganesha.start()
        self._ganesha.assert_coherent()

    def stop(self) -> None:
        """See `Filers`."""
        self._ganesha.stop()

    def restart(self) -> None:
        """Stop ganesha and start it again on its ports, as a filer that fails over: what it had open is closed."""
        self._ganesha.change_exports(self._ganesha.exports)

    def served_bytes(self) -> int:
        """See `Filers`."""
        return self._ganesha.served_bytes()

    def wait_settled(self) -> None:
        """See `Filers`: ganesha writes at once."""

    def place(self, store: DatastoreSpec, *, writable: bool, nfs_port: int) -> Place:
        """See `Filers`. Version and path for backups are those of the hosts; workers are no root, so any port."""
        place: Place = {"nfs_port": self._ganesha.port if writable else nfs_port, "reserved_port": False}
        if store.type == "NFS":
            place["mount_port"] = self._ganesha.mount_port
        if writable:
            place["path"] = RESTORE + store.remote_path
        return place

    def _export(self, store: DatastoreSpec, rules: Mapping[str, Any]) -> GaneshaExport:
        export = GaneshaExport(
            self._datastores / store.name, store.remote_path, (VERSION_OF_TYPE[store.type],)
        )
        return dataclasses.replace(export, **rules)
