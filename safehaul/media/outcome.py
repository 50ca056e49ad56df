"""`sessions/ID/outcome`: how a session ended. The first object of that name decides, and nothing changes it.

A committer writes the whole manifest into it; a collection that finds nothing written for long writes that the session
is fenced. So of a late committer and a collection exactly one wins, by the store's put-if-absent, and whoever finds a
commit whose manifest is missing completes it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from pydantic import Field

from safehaul.errors import AlreadyExistsError, IntegrityError, NotFoundError, StaleLeaseError
from safehaul.media.canonical import canonical_json, parse_object, utc_now
from safehaul.media.envelope import Kind
from safehaul.media.manifest import BackupRef, Manifest, forgotten_name, manifest_name, read_manifest
from safehaul.media.repository import Repository
from safehaul.media.sessions import Session
from safehaul.messages.base import Message

OBJECT = "outcome"
"""Last segment of the object's name."""


class Outcome(Message):
    """The object `sessions/ID/outcome`."""

    version: int = 1
    decided: str
    """UTC, ISO 8601 basic format."""
    fenced: str = ""
    """Why nothing can be committed any more; empty: committed."""
    manifest: dict[str, Any] = Field(default_factory=dict)
    """What is committed."""


def read_outcome(repository: Repository, prefix: str) -> Outcome | None:
    """Return how the session with the folder `prefix` ended, or None while it has not. Raises IntegrityError."""
    name = f"{prefix}{OBJECT}"
    try:
        return parse_object(Outcome, repository.get(Kind.SESSION, name), name)
    except NotFoundError:
        return None


def decide(repository: Repository, prefix: str, outcome: Outcome) -> Outcome:
    """Write an outcome; returns the one that counts, which may be another's. Raises IntegrityError."""
    name = f"{prefix}{OBJECT}"
    try:
        repository.put(Kind.SESSION, name, canonical_json(outcome.model_dump()))
    except AlreadyExistsError:
        return parse_object(Outcome, repository.get(Kind.SESSION, name), name)
    return outcome


def backup_of_outcome(outcome: Outcome) -> BackupRef:
    """Return the backup that a committed session became."""
    return BackupRef(outcome.manifest["vc_guid"], outcome.manifest["backup_id"])


def complete(repository: Repository, prefix: str, outcome: Outcome, session_id: str) -> BackupRef:
    """Write the manifest of a committed session, if it is not there yet; returns the backup. `prefix`: its folder.

    One that was forgotten meanwhile stays so. Raises StaleLeaseError when the session was fenced, and when its backup
    was purged since; IntegrityError when the backup's name belongs to another session.
    """
    if outcome.fenced:
        raise StaleLeaseError(
            f"session {session_id} was ended without a backup: {outcome.fenced}; start a new backup"
        )
    ref = backup_of_outcome(outcome)
    if repository.store.exists(forgotten_name(ref)):
        return ref
    if repository.store.exists(manifest_name(ref)):
        return _same_session(repository, outcome, ref)
    if repository.store.exists(forgotten_name(ref)):
        # Moved between the two looks.
        return ref
    if read_outcome(repository, prefix) is None:
        # A purge takes the outcome away first: the backup was there, and its chunks may be deleted.
        raise StaleLeaseError(f"the backup of session {session_id} was forgotten, and purged, meanwhile")
    try:
        repository.put(Kind.MANIFEST, manifest_name(ref), canonical_json(outcome.manifest))
    except AlreadyExistsError:
        # Another committer or a collection was first; of the same session it is the same manifest.
        return _same_session(repository, outcome, ref)
    return ref


def _same_session(repository: Repository, outcome: Outcome, ref: BackupRef) -> BackupRef:
    if read_manifest(repository, ref).session_id != outcome.manifest["session_id"]:
        raise IntegrityError(f"backup {ref.backup_id} of VM {ref.vc_guid} belongs to another session")
    return ref


def decide_commit(session: Session, manifest: Manifest) -> BackupRef:
    """Commit a manifest, or what another committer of this session has committed. Raises as `complete`."""
    outcome = Outcome(decided=utc_now(), manifest=manifest.model_dump())
    counts = decide(session.repository, session.prefix, outcome)
    if counts is outcome and not session.repository.store.exists(f"{session.prefix}open"):
        # Purged with all its session while this process stood still: the outcome that counted was taken away.
        raise StaleLeaseError(
            f"the backup of session {session.info.session_id} was forgotten, and purged, while this process stood still"
        )
    return complete(session.repository, session.prefix, counts, session.info.session_id)


def fence(session: Session, why: str) -> Outcome:
    """End a session that nobody works on any more, unless it is committed; returns what counts.

    Its writers stop at their next record, and a committer that comes too late is refused.
    """
    # A session with a damaged record cannot be sealed; without an outcome it can still not be committed.
    with contextlib.suppress(IntegrityError):
        session.seal()
    return decide(session.repository, session.prefix, Outcome(decided=utc_now(), fenced=why))
