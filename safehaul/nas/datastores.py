"""Datastore paths over open exports: what a disk chain needs to find its descriptors, extents and parents."""

from __future__ import annotations

from collections.abc import Mapping

from safehaul.errors import NotFoundError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.export import FileStat, NasExport, NasFile
from safehaul.nas.mounted import MountedExport
from safehaul.nas.nfs_client import NfsClientExport
from safehaul.nas.paths import DatastorePath, parse_datastore_path, resolve_parent_hint, safe


def open_export(definition: ExportDefinition) -> NasExport:
    """Open an export as its definition says: by its kernel mount if it names one, else by our NFS client."""
    if definition.mounted_at is not None:
        return MountedExport(definition)
    return NfsClientExport(definition)


class DatastoreFiles:
    """Files by datastore path, over the open exports of those datastores. It does not own the exports."""

    def __init__(self, exports: Mapping[str, NasExport], volumes: Mapping[str, str] | None = None) -> None:
        """`exports` by datastore name; `volumes` maps other spellings in `/vmfs/volumes/…` hints to names."""
        self._exports = dict(exports)
        self._volumes = {name: name for name in exports} | dict(volumes or {})

    def open_read(self, path: str) -> NasFile:
        """Open a file for reading. Raises InvalidInputError (bad path), or as `NasExport.open_read`."""
        export, parsed = self.locate(path)
        return export.open_read(parsed.relative)

    def stat(self, path: str) -> FileStat:
        """The file's attributes now. Raises as `open_read`."""
        export, parsed = self.locate(path)
        return export.stat(parsed.relative)

    def sibling(self, path: str, name: str) -> str:
        """The datastore path of the plain file name `name` beside `path`. Raises InvalidInputError."""
        return str(parse_datastore_path(path).sibling(name))

    def parent(self, path: str, hint: str) -> str:
        """The datastore path that a descriptor's parentFileNameHint means. Raises InvalidInputError."""
        return str(resolve_parent_hint(parse_datastore_path(path), hint, self._volumes))

    def locate(self, path: str) -> tuple[NasExport, DatastorePath]:
        """The export that holds the path, and the checked path."""
        parsed = parse_datastore_path(path)
        export = self._exports.get(parsed.datastore)
        if export is None:
            raise NotFoundError(f"{safe(path)}: no export is open for datastore {safe(parsed.datastore)}")
        return export, parsed
