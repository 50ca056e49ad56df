"""How a person names a backup: by its id, or as the newest one of a VM."""

from __future__ import annotations

import sys

from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from workers.cli.output import Output, plain

LATEST = "latest"
BACKUP_HELP = "VC.GUID/TIME-ID, as `backups list` shows it; or VM/latest: the newest one of a VM."
_IN_CATALOGUE = (
    "see `safehaul backups list`; names are looked up in the catalogue, which `safehaul catalog rebuild` makes "
    "again"
)


def find_backup(output: Output, text: str) -> tuple[str, str]:
    """VC.GUID and backup id of `VC.GUID/TIME-ID`, or of a VM's newest backup: `web-1/latest`, by its name or VC.GUID.

    The newest one is the catalogue's, and only for it the configuration is read; which it is goes to stderr.
    Raises InvalidInputError.
    """
    vm, slash, backup_id = text.rpartition("/")
    if not (vm and slash and backup_id) or ("/" in vm and backup_id != LATEST):
        raise InvalidInputError(
            f"backup {text[:200]!a} is not of the form VC.GUID/TIME-ID or VM/latest; see `safehaul backups list`"
        )
    if backup_id != LATEST:
        return vm, backup_id
    newest = rows_of(output.settings(), vm)[0]
    told = f"{newest.vc_guid}/{newest.backup_id}, {newest.status}, committed {newest.committed}"
    sys.stderr.write(f"{plain(text)} is {told}\n")
    return newest.vc_guid, newest.backup_id


def rows_of(settings: Settings, vm: str) -> list[BackupRow]:
    """A VM's backups by the catalogue, newest first, at least one. Raises InvalidInputError."""
    catalog = Catalog(settings.catalog_url())
    try:
        rows = catalog.list_backups(vm=vm, limit=100_000)
    finally:
        catalog.close()
    guids = sorted({row.vc_guid for row in rows})
    if len(guids) > 1:
        raise InvalidInputError(
            f"several VMs are called {vm[:100]!r}; name one by its VC.GUID: {', '.join(guids)}"
        )
    if not rows:
        raise InvalidInputError(f"there is no backup of a VM {vm[:100]!r}: {_IN_CATALOGUE}")
    return rows
