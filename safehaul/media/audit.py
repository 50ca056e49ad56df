"""The audit log: what was read out of the repository, taken from it, or changed in who may open it.

`audit/TIME-RANDOM` is one entry. Entries are put-if-absent and nothing of safehaul ever deletes one. An entry of
something that destroys is written before it is done: it says that it was begun, and nothing goes without one. Whoever
may write may add entries, under any name and of any content, and cannot take one away.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import Field

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.media.canonical import canonical_json, parse_object
from safehaul.media.envelope import Kind
from safehaul.media.object_store import ObjectInfo
from safehaul.media.repository import Repository
from safehaul.messages.base import Message

PREFIX = "audit/"
_TIME = "%Y%m%dT%H%M%S.%fZ"
APART = timedelta(hours=1)
"""Between an entry's time and the store's: clocks differ by less. What was copied to another store is dated anew."""
_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[0-9a-f]{16}")


class Action(StrEnum):
    """What is recorded."""

    RESTORE = "restore"
    READ = "read"
    """`disk cat`, and a disk restored to a file."""
    FORGET = "forget"
    PURGE = "purge"
    RECOVER = "recover"
    HOLD = "hold"
    RELEASE = "release"
    KEY_ADD = "key add"
    KEY_REMOVE = "key remove"
    KEY_ROTATE = "key rotate"
    PRUNE = "prune"
    REPAIR = "repair"


class AuditEntry(Message):
    """The object `audit/TIME-RANDOM`."""

    version: int = 1
    time: str
    """UTC, ISO 8601 basic format with microseconds; the same as in its name."""
    actor: str
    """`user@host` of the process that did it, by its own word."""
    action: str
    object_name: str
    """What it was done to: `VC.GUID/TIME-ID` of a backup, `keys/ID`, …"""
    details: dict[str, Any] = Field(default_factory=dict)


class Logged(NamedTuple):
    """One object of the log, and what is wrong with it. `entry` is None when it cannot be read."""

    name: str
    entry: AuditEntry | None
    problem: str = ""


def append(
    repository: Repository, action: Action, object_name: str, details: Mapping[str, Any] | None = None
) -> AuditEntry:
    """Write an entry, durably. `details` must hold no secret and be small. Raises as the store does."""
    entry = AuditEntry(
        time=datetime.now(UTC).strftime(_TIME),
        actor=actor(),
        action=action.value,
        object_name=object_name,
        details=dict(details or {}),
    )
    name = f"{PREFIX}{entry.time}-{secrets.token_hex(8)}"
    repository.put(Kind.AUDIT, name, canonical_json(entry.model_dump()))
    return entry


def entries(repository: Repository, since: datetime | None = None) -> Iterator[Logged]:
    """Yield the log in the order of the names' times. Nothing that somebody put there stops the rest."""
    first = since.astimezone(UTC).strftime(_TIME) if since is not None else ""
    for info in repository.store.list(PREFIX):
        named = _NAME.fullmatch(info.name.removeprefix(PREFIX))
        if named is None:
            yield Logged(info.name, None, "it is not named as an entry is")
        elif named[1] >= first:
            yield _read(repository, info, named[1])


def _read(repository: Repository, info: ObjectInfo, time: str) -> Logged:
    name = info.name
    try:
        entry = parse_object(AuditEntry, repository.get(Kind.AUDIT, name), name)
    except (IntegrityError, UnsupportedError) as error:
        return Logged(name, None, str(error))
    stored = datetime.fromtimestamp(info.modified, UTC)
    try:
        said = datetime.strptime(entry.time, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return Logged(name, entry, "its time is none")
    if entry.time != time:
        return Logged(name, entry, f"its name says another time: {time}")
    problem = "" if abs(stored - said) < APART else f"the store has it since {stored:%Y%m%dT%H%M%SZ}"
    return Logged(name, entry, problem)


def actor() -> str:
    """Who runs this process: `user@host`, by the system's word and not the environment's."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f"uid-{uid}"
    return f"{user}@{socket.gethostname()}"
