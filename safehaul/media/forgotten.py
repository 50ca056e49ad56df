"""`forgotten/`: backups that retention has given up, and that can still be brought back.

A forgotten backup is the object `forgotten/VCGUID/BACKUP` and no longer `manifests/VCGUID/BACKUP`. It keeps all of its
chunks until it is purged. Only an identity that may delete can forget; to write such an object takes nothing from
the backup that it names, and only keeps chunks alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.canonical import canonical_json, parse_object, utc_now
from safehaul.media.envelope import Kind
from safehaul.media.manifest import (
    BackupRef,
    Manifest,
    backup_of,
    forgotten_name,
    index_name,
    manifest_name,
    read_manifest,
)
from safehaul.media.names import encode_segment
from safehaul.media.object_store import DeletingStore, store_time
from safehaul.media.outcome import backup_of_outcome, read_outcome
from safehaul.media.repository import Repository
from safehaul.media.sessions import session_prefix
from safehaul.messages.base import Message

PREFIX = "forgotten/"
RECOVERABLE_S = 7 * 86400.0


class Forgotten(Message):
    """The object `forgotten/VCGUID/BACKUP`."""

    version: int = 1
    forgotten: str
    """UTC, ISO 8601 basic format."""
    reason: str
    manifest: Manifest


class ForgottenBackup(NamedTuple):
    """A listed object of `forgotten/`."""

    ref: BackupRef
    forgotten_at: float
    """By the store's clock: seconds since 1970."""


def forget(repository: Repository, store: DeletingStore, ref: BackupRef, reason: str) -> None:
    """Take a backup out of the list; it can be recovered until it is purged. A second time is fine.

    `store` is the repository's own, opened by an identity that may delete. Stopped anywhere, the backup is still in the
    list, or forgotten. Raises NotFoundError when there is no such backup, IntegrityError when its manifest is damaged,
    PermissionRefusedError.
    """
    name = forgotten_name(ref)
    try:
        manifest = read_manifest(repository, ref)
    except NotFoundError:
        if repository.store.exists(name):
            return
        raise
    # One that is there as well is of a recovery, or of an earlier try: its seven days must begin now.
    store.delete(name)
    content = Forgotten(forgotten=utc_now(), reason=reason, manifest=manifest)
    repository.put(Kind.FORGOTTEN, name, canonical_json(content.model_dump()))
    store.delete(manifest_name(ref))


def recover(repository: Repository, store: DeletingStore, ref: BackupRef) -> Manifest:
    """Bring a forgotten backup back; returns its manifest. Raises NotFoundError when it is not there (any more)."""
    content = read_forgotten(repository, ref)
    repository.put_same(Kind.MANIFEST, manifest_name(ref), canonical_json(content.manifest.model_dump()))
    store.delete(forgotten_name(ref))
    return content.manifest


def read_forgotten(repository: Repository, ref: BackupRef) -> Forgotten:
    """Read a forgotten backup. Raises NotFoundError; IntegrityError, also when somebody has put another one there."""
    name = forgotten_name(ref)
    try:
        content = parse_object(Forgotten, repository.get(Kind.FORGOTTEN, name), name)
    except NotFoundError as error:
        raise NotFoundError(
            f"backup {ref.backup_id} of VM {ref.vc_guid} is not among the forgotten ones: it was purged, or never was"
        ) from error
    described = BackupRef(content.manifest.vc_guid, content.manifest.backup_id)
    if described != ref:
        raise IntegrityError(
            f"object {name} describes backup {described.vc_guid}/{described.backup_id}: it is not recovered"
        )
    return content


def list_forgotten(repository: Repository, vc_guid: str | None = None) -> Iterator[ForgottenBackup]:
    """Yield the backups that can be recovered, by VC.GUID and then by time."""
    prefix = PREFIX
    if vc_guid is not None:
        prefix += f"{encode_segment(vc_guid, what='VC.GUID', reversible=True)}/"
    for found in repository.store.list(prefix):
        yield ForgottenBackup(backup_of(found.name, PREFIX), found.modified)


def purge(
    repository: Repository,
    store: DeletingStore,
    older_than_s: float = RECOVERABLE_S,
    heartbeat: Callable[[str], None] = lambda _: None,
) -> list[BackupRef]:
    """Give up for good what was forgotten at least `older_than_s` ago; returns the backups.

    Their chunks are garbage from now on. Raises PermissionRefusedError.
    """
    now = store_time(store)
    purged = []
    for ref, forgotten_at in list_forgotten(repository):
        if now - forgotten_at < older_than_s:
            continue
        heartbeat(f"purging backup {ref.backup_id} of VM {ref.vc_guid}")
        if _forgotten_at(repository, ref) != forgotten_at:
            # Another prune found it recovered, or half forgotten, and has forgotten it anew: it has seven days again.
            continue
        if repository.store.exists(manifest_name(ref)):
            # A recovery was interrupted, or somebody is about to delete the manifest: this is then all that is left.
            continue
        try:
            _clear_session(repository, store, ref)
        except NotFoundError:
            # Another prune has purged it, or somebody has recovered it.
            continue
        store.delete(index_name(ref))
        purged.append(ref)
        store.delete(forgotten_name(ref))
    return purged


def _clear_session(repository: Repository, store: DeletingStore, ref: BackupRef) -> None:
    """Delete what is left of the session that made a backup: its outcome would bring the backup back.

    Raises NotFoundError when the backup is not forgotten any more.
    """
    try:
        prefix = session_prefix(read_forgotten(repository, ref).manifest.session_id)
        outcome = read_outcome(repository, prefix)
    except (IntegrityError, UnsupportedError):
        # Damaged: which session it was cannot be known, and a collection cleared it days ago.
        return
    if outcome is None or outcome.fenced or backup_of_outcome(outcome) != ref:
        # Whoever may write can name any session here; only the one that made the backup is its.
        return
    for info in list(store.list(prefix)):
        store.delete(info.name)


def _forgotten_at(repository: Repository, ref: BackupRef) -> float | None:
    return next(
        (found.forgotten_at for found in list_forgotten(repository, ref.vc_guid) if found.ref == ref), None
    )
