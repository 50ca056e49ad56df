"""Checks the objects of sessions: what of unfinished backups is damaged, and what that touches."""

from __future__ import annotations

from collections.abc import Iterator

from safehaul.media.canonical import parse_object
from safehaul.media.envelope import Kind
from safehaul.media.manifest import manifest_name
from safehaul.media.outcome import OBJECT, Outcome
from safehaul.media.progress import decode_progress
from safehaul.media.repository import Repository
from safehaul.media.seal import backup_ref
from safehaul.media.sessions import FilesRecord, Seal, Session, SessionInfo, Verified
from safehaul.media.verified import FindingsBuilder
from safehaul.media.verify_packs import BROKEN
from safehaul.messages.base import Message

PREFIX = "sessions/"
_ADVICE = "no finished backup needs it; the VM's next job begins a new session, and reads the disks anew"
_OUTCOME_ADVICE = (
    "no collection can run until it is gone: `safehaul repo repair --drop-lost` deletes it; a backup whose manifest is "
    "there does not need it, and the VM's next job makes another one"
)
_FIXED: dict[str, type[Message]] = {
    "open": SessionInfo,
    "sealed": Seal,
    "verified": Verified,
    OBJECT: Outcome,
}


def session_folders(repository: Repository, after: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, its objects) of every session after a folder, in the order of their names."""
    folder = ""
    names: list[str] = []
    for found in repository.store.list(PREFIX):
        own = "/".join(found.name.split("/")[:2])
        if own <= after:
            continue
        if own != folder and names:
            yield folder, names
            names = []
        folder = own
        names.append(found.name)
    if names:
        yield folder, names


def check_session(repository: Repository, folder: str, names: list[str], findings: FindingsBuilder) -> None:
    """Read a session's objects; of one that became a backup only those that name it."""
    broken: dict[str, str] = {}
    info: SessionInfo | None = None
    for name in names:
        kind = _FIXED.get(name.removeprefix(f"{folder}/"))
        if kind is None:
            continue
        try:
            found = parse_object(kind, repository.get(Kind.SESSION, name), name)
        except BROKEN as error:
            _note(repository, name, error, broken)
            continue
        if isinstance(found, SessionInfo):
            info = found
    whose = ""
    if info is not None:
        whose = f" of VM {info.vm_name} ({info.vc_guid})"
        ended = f"{folder}/{OBJECT}" in names
        if not ended and not repository.store.exists(manifest_name(backup_ref(Session(repository, info)))):
            _check_records(repository, folder, names, broken)
    for name, problem in broken.items():
        if name.endswith(f"/{OBJECT}"):
            findings.damage(name, f"{problem}: it says how a backup{whose} ended", _OUTCOME_ADVICE)
        else:
            findings.damage(name, f"{problem}: it belongs to an unfinished backup{whose}", _ADVICE)


def _check_records(repository: Repository, folder: str, names: list[str], broken: dict[str, str]) -> None:
    for name in names:
        part = name.removeprefix(f"{folder}/")
        try:
            if part.startswith("disk-"):
                decode_progress(repository.get(Kind.PROGRESS, name), name)
            elif part.startswith("files/"):
                parse_object(FilesRecord, repository.get(Kind.FILES, name), name)
        except BROKEN as error:
            _note(repository, name, error, broken)


def _note(repository: Repository, name: str, error: Exception, broken: dict[str, str]) -> None:
    """A damage; an object that a collection has taken away meanwhile is none."""
    if repository.store.exists(name):
        broken[name] = str(error)
