"""Backups that were forgotten: brought back, with their row in the catalogue and an entry in the audit log."""

from __future__ import annotations

from activities.records import catalog_backup
from safehaul.catalog.catalog import Catalog
from safehaul.media import audit, forgotten
from safehaul.media.audit import Action
from safehaul.media.manifest import BackupRef, Manifest, read_index
from safehaul.media.object_store import DeletingStore
from safehaul.media.repository import Repository


def bring_back(repository: Repository, store: DeletingStore, ref: BackupRef, why: str) -> Manifest:
    """Recover a forgotten backup.

    Raises NotFoundError for one that was never forgotten, or is back or purged already; IntegrityError for one that is
    damaged, or describes another backup: then somebody else has put it there.
    """
    name = f"{ref.vc_guid}/{ref.backup_id}"
    forgotten.read_forgotten(repository, ref)
    audit.append(repository, Action.RECOVER, name, {"why": why})
    return forgotten.recover(repository, store, ref)


def list_again(repository: Repository, catalog: Catalog, manifest: Manifest, media_agent: str) -> None:
    """Make the catalogue's row of a recovered backup: the same as before. Raises as the catalogue does."""
    index = read_index(repository, BackupRef(manifest.vc_guid, manifest.backup_id))
    catalog_backup(catalog, manifest, index, media_agent)
