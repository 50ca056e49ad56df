"""Which sessions are under way: it ends those on which nobody works any more, and clears away what ended long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from safehaul.errors import IntegrityError, StaleLeaseError
from safehaul.media.canonical import parse_object, utc_now
from safehaul.media.envelope import Kind
from safehaul.media.manifest import manifest_name
from safehaul.media.object_store import DeletingStore
from safehaul.media.outcome import OBJECT, Outcome, backup_of_outcome, complete, decide, fence, read_outcome
from safehaul.media.repository import Repository
from safehaul.media.sessions import Session, SessionInfo

_SESSIONS = "sessions/"
FENCE_KEPT_S = 90 * 86400.0
"""A fence stays this long after its session's last sign of life: for a committer that slept all the time."""


class SessionFolder(NamedTuple):
    """What a listing tells of one session."""

    prefix: str
    """With the trailing slash."""
    opened: float | None
    """When it was opened, by the store's clock; None: it is not, or not any more."""
    newest: float
    """When the last of its objects was written."""
    ended: bool
    """It has an outcome."""
    objects: int


def list_sessions(repository: Repository) -> Iterator[SessionFolder]:
    """Yield every folder of `sessions/`, in order."""
    listed = repository.store.list(_SESSIONS)
    for folder, found in groupby(listed, lambda info: info.name.split("/", 2)[1]):
        prefix = f"{_SESSIONS}{folder}/"
        opened, newest, ended, objects = None, 0.0, False, 0
        for info in found:
            objects += 1
            newest = max(newest, info.modified)
            if info.name == f"{prefix}open":
                opened = info.modified
            ended = ended or info.name == f"{prefix}{OBJECT}"
        yield SessionFolder(prefix, opened, newest, ended, objects)


def open_sessions(repository: Repository) -> list[SessionFolder]:
    """Return the sessions that have not ended."""
    return [folder for folder in list_sessions(repository) if folder.opened is not None and not folder.ended]


class Survey(NamedTuple):
    """What a survey found and did."""

    live: list[Session]
    oldest_opened: float | None
    """When the oldest live session was opened; None: there is none."""
    live_prefixes: set[str]
    fenced: int


def end_dead_sessions(
    repository: Repository,
    store: DeletingStore,
    *,
    now: float,
    lease_s: float,
    dry_run: bool,
    heartbeat: Callable[[str], None],
) -> Survey:
    """Fence each session of which nothing was written for `lease_s`, complete commits, and clear what ended long ago.

    With `dry_run` it writes and deletes nothing. Raises IntegrityError when an outcome cannot be read: whether that
    backup is committed cannot be known.
    """
    survey = Survey([], None, set(), 0)
    for folder in list_sessions(repository):
        idle = now - folder.newest >= lease_s
        if folder.ended:
            outcome = read_outcome(repository, folder.prefix)
            if outcome is not None and not dry_run:
                _complete(repository, outcome, folder)
            if idle and not dry_run:
                heartbeat(f"clearing {folder.prefix}")
                _clear(store, folder, fence_kept=now - folder.newest < FENCE_KEPT_S)
        elif folder.opened is not None:
            session = _session_of(repository, folder)
            if not idle:
                survey = _with_live(survey, folder, session)
                continue
            outcome = None if dry_run else _fence(repository, folder, session, lease_s)
            survey = survey._replace(fenced=survey.fenced + (dry_run or bool(outcome and outcome.fenced)))
        elif idle and not dry_run:
            heartbeat(f"clearing {folder.prefix}")
            _clear(store, folder, fence_kept=False)
    return survey


def _with_live(survey: Survey, folder: SessionFolder, session: Session | None) -> Survey:
    opened = folder.opened if folder.opened is not None else folder.newest
    oldest = opened if survey.oldest_opened is None else min(survey.oldest_opened, opened)
    survey.live_prefixes.add(folder.prefix)
    if session is not None:
        survey.live.append(session)
    return survey._replace(oldest_opened=oldest)


def _session_of(repository: Repository, folder: SessionFolder) -> Session | None:
    """The session; None when its object `open` is damaged: nothing of it can be committed."""
    name = f"{folder.prefix}open"
    try:
        return Session(repository, parse_object(SessionInfo, repository.get(Kind.SESSION, name), name))
    except IntegrityError:
        return None


def _fence(repository: Repository, folder: SessionFolder, session: Session | None, lease_s: float) -> Outcome:
    why = f"nothing was written to it for {lease_s / 3600:g} hours"
    if session is not None:
        outcome = fence(session, why)
    else:
        outcome = decide(repository, folder.prefix, Outcome(decided=utc_now(), fenced=why))
    _complete(repository, outcome, folder)
    return outcome


def _complete(repository: Repository, outcome: Outcome, folder: SessionFolder) -> None:
    """Write the manifest of a commit that was interrupted right before it; a cleared session's is there, or was."""
    if (
        folder.opened is None
        or outcome.fenced
        or repository.store.exists(manifest_name(backup_of_outcome(outcome)))
    ):
        return
    # Purged since the outcome was read: there is nothing to complete.
    with suppress(StaleLeaseError):
        complete(repository, folder.prefix, outcome, folder.prefix)


def _clear(store: DeletingStore, folder: SessionFolder, *, fence_kept: bool) -> None:
    """Delete a session's objects; what stops late writers and committers last, and not before long."""
    fence = [f"{folder.prefix}{name}" for name in ("sealed", OBJECT)]
    names = [info.name for info in store.list(folder.prefix)]
    for name in names:
        if name not in fence:
            store.delete(name)
    if not fence_kept:
        for name in fence:
            store.delete(name)
