"""Legal holds: backups that no retention rule may forget, until somebody who may delete releases them.

`holds/VCGUID/BACKUP` is one object, put-if-absent: who held the backup, when and why. Whoever may write may hold; only
the identity that deletes can release. An object that is there holds, also when it is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from safehaul.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from safehaul.media.canonical import canonical_json, parse_object, utc_now
from safehaul.media.envelope import Kind
from safehaul.media.manifest import BackupRef, manifest_name
from safehaul.media.names import decode_segment, encode_segment
from safehaul.media.object_store import DeletingStore
from safehaul.media.repository import Repository
from safehaul.messages.base import Message

PREFIX = "holds/"
MAX_REASON_CHARS = 1000


class Hold(Message):
    """The object `holds/VCGUID/BACKUP`."""

    version: int = 1
    vc_guid: str
    backup_id: str
    placed: str
    """UTC, ISO 8601 basic format."""
    actor: str
    """`user@host`, by its own word."""
    reason: str


class Held(NamedTuple):
    """A backup that is held, and what its hold says; None when the hold's object is damaged: it holds all the same."""

    ref: BackupRef
    hold: Hold | None


def hold_name(ref: BackupRef) -> str:
    """Return the object name of a backup's hold."""
    return PREFIX + manifest_name(ref).partition("/")[2]


def place_hold(repository: Repository, ref: BackupRef, actor: str, reason: str) -> Hold:
    """Hold a backup. Whether it exists is the caller's to look.

    Raises InvalidInputError without a reason, AlreadyExistsError when it is held already, naming by whom.
    """
    reason = " ".join(reason.split())
    if not reason or len(reason) > MAX_REASON_CHARS:
        raise InvalidInputError(f"a hold needs a reason of at most {MAX_REASON_CHARS} characters")
    hold = Hold(vc_guid=ref.vc_guid, backup_id=ref.backup_id, placed=utc_now(), actor=actor, reason=reason)
    try:
        repository.put(Kind.HOLD, hold_name(ref), canonical_json(hold.model_dump()))
    except AlreadyExistsError:
        found = read_hold(repository, ref).hold
        by = (
            f"by {found.actor} since {found.placed}: {found.reason}" if found else "by a hold that is damaged"
        )
        raise AlreadyExistsError(
            f"backup {ref.backup_id} of VM {ref.vc_guid} is held already, {by}; release it first to change that"
        ) from None
    return hold


def read_hold(repository: Repository, ref: BackupRef) -> Held:
    """What holds a backup. Raises NotFoundError when nothing does."""
    name = hold_name(ref)
    try:
        hold = parse_object(Hold, repository.get(Kind.HOLD, name), name)
    except NotFoundError:
        raise NotFoundError(f"backup {ref.backup_id} of VM {ref.vc_guid} is not held") from None
    except (IntegrityError, UnsupportedError):  # whatever it is, somebody wants the backup kept
        return Held(ref, None)
    return Held(ref, hold if (hold.vc_guid, hold.backup_id) == ref else None)


def is_held(repository: Repository, ref: BackupRef) -> bool:
    """Whether a backup is held now."""
    return repository.store.exists(hold_name(ref))


def held_backups(repository: Repository, vc_guid: str | None = None) -> Iterator[BackupRef]:
    """Yield the held backups, of one VM or of all. Reads no hold."""
    prefix = PREFIX
    if vc_guid is not None:
        prefix += f"{encode_segment(vc_guid, what='VC.GUID', reversible=True)}/"
    for found in repository.store.list(prefix):
        folder, _, backup_id = found.name.removeprefix(PREFIX).partition("/")
        # What is not named like a hold holds nothing, and must not stop those that do.
        if folder and backup_id and "/" not in backup_id:
            yield BackupRef(decode_segment(folder), decode_segment(backup_id))


def release_hold(store: DeletingStore, ref: BackupRef) -> None:
    """Take a hold away. Raises PermissionRefusedError for an identity that may not delete."""
    store.delete(hold_name(ref))
