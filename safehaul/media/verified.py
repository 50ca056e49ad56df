"""`verified/`: which packs were read whole and found sound, and when; and what each verification found.

    verified/TIME-RUN/NNNNNNNN     findings of a part of a verification, counted from 1
    verified/TIME-RUN/report       its report, when it came to its end

All are put-if-absent. TIME is when the verification began. A pack counts as verified when a findings object says so,
newest first; else since it was stored, because every session's packs are read back before the commit. A repository of
10⁶ packs (64 TB) writes 32 MB of ids for each time that everything was read, in objects of some hundred KiB; what is
older than the newest word on each pack is never read again, and `drop_superseded` deletes it, with each collection.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pydantic import Field

from safehaul.errors import (
    AlreadyExistsError,
    IntegrityError,
    NotFoundError,
    UnreadableError,
    UnsupportedError,
)
from safehaul.media.canonical import canonical_json, parse_object
from safehaul.media.codec import ID_LENGTH
from safehaul.media.envelope import Kind
from safehaul.media.names import encode_segment
from safehaul.media.object_store import DeletingStore
from safehaul.media.pack import SealedPack
from safehaul.media.repository import Repository
from safehaul.messages.base import Message
from safehaul.messages.verify import (
    BACKUPS_LIMIT,
    DAMAGE_LIMIT,
    TOUCHED_LIMIT,
    Damage,
    DamagedBackup,
    Touched,
    VerifyMode,
    VerifyReport,
)

PREFIX = "verified/"
_REPORT = "report"
_CLOCK_SLACK_S = 300


class BadPack(Message):
    """A pack that is not what it must be."""

    pack: str
    size_bytes: int = 0
    problem: str = ""
    """Of the pack as a whole; empty when only chunks in it are damaged."""
    chunks: dict[str, str] = Field(default_factory=dict)
    """Chunk id → why it cannot be read."""
    gone: bool = False
    """No chunk of it can be read."""
    noted: bool = False
    """It was recorded as damaged before this verification."""


class Findings(Message):
    """The object `verified/TIME-RUN/NNNNNNNN`: what a part of a verification found."""

    version: int = 1
    mode: VerifyMode
    recorded: int = 0
    """Seconds since 1970."""
    sound: str = ""
    """Ids of the packs that were read whole and are sound, in hexadecimal, one after the other."""
    packs: int = 0
    chunks: int = 0
    bytes_read: int = 0
    backups: int = 0
    unlisted_packs: int = 0
    collected_packs: int = 0
    bad_packs: list[BadPack] = Field(default_factory=list)
    needed: list[str] = Field(default_factory=list)
    """Damaged packs that hold a chunk of a backup which no sound pack holds."""
    damage: list[Damage] = Field(default_factory=list)
    """Of everything but packs."""
    damage_omitted: int = 0
    touched: list[Touched] = Field(default_factory=list)
    touched_omitted: int = 0
    damaged_backups: list[DamagedBackup] = Field(default_factory=list)
    damaged_backups_omitted: int = 0

    @property
    def empty(self) -> bool:
        """True when there is nothing to record."""
        return self == Findings(mode=self.mode, recorded=self.recorded)


class FindingsBuilder:
    """Gathers findings, within the report's limits."""

    def __init__(self, mode: VerifyMode) -> None:
        self._mode = mode
        self._limits = {"damage": DAMAGE_LIMIT, "touched": TOUCHED_LIMIT, "damaged_backups": BACKUPS_LIMIT}
        self._start()

    def _start(self) -> None:
        self._sound: list[bytes] = []
        self.counts = {"packs": 0, "chunks": 0, "bytes_read": 0, "backups": 0}
        self.counts |= {"unlisted_packs": 0, "collected_packs": 0}
        self._bad: list[BadPack] = []
        self._needed: set[bytes] = set()
        self._lists: dict[str, list[Message]] = {name: [] for name in self._limits}
        self._omitted = dict.fromkeys(self._limits, 0)

    def count(self, **numbers: int) -> None:
        """Add to the counts."""
        for name, number in numbers.items():
            self.counts[name] += number

    def sound(self, pack: SealedPack) -> None:
        """A pack was read whole, and every byte is what it must be."""
        self._sound.append(pack.pack_id)

    def bad(self, pack: BadPack) -> None:
        """A pack is damaged."""
        self._bad.append(pack)

    def needs(self, pack_id: bytes) -> None:
        """A backup relies on a damaged pack."""
        self._needed.add(pack_id)

    def damage(self, object_name: str, problem: str, advice: str = "", chunk_id: bytes = b"") -> None:
        """Something else than a pack is damaged."""
        self._add(
            "damage",
            Damage(object_name=object_name, chunk_id=chunk_id.hex(), problem=problem, advice=advice),
        )

    def touch(self, place: Touched) -> None:
        """A place in a backup is damaged."""
        self._add("touched", place)

    def backup(self, backup: DamagedBackup) -> None:
        """A backup is damaged."""
        self._add("damaged_backups", backup)

    def _add(self, name: str, item: Message) -> None:
        if len(self._lists[name]) < self._limits[name]:
            self._lists[name].append(item)
        else:
            self._omitted[name] += 1

    @property
    def problems(self) -> int:
        """How many damages there are in what was gathered."""
        return len(self._bad) + sum(map(len, self._lists.values())) + sum(self._omitted.values())

    def take(self, recorded: int) -> Findings:
        """Return what was gathered, and begin anew."""
        found: dict[str, object] = {
            "mode": self._mode,
            "recorded": recorded,
            "sound": b"".join(self._sound).hex(),
            "bad_packs": self._bad,
            "needed": sorted(pack.hex() for pack in self._needed),
        }
        omitted = {f"{name}_omitted": number for name, number in self._omitted.items()}
        findings = Findings.model_validate(found | self.counts | self._lists | omitted)
        self._start()
        return findings


def run_name(started_at: int, run_id: str) -> str:
    """Return the folder of a verification, without slashes."""
    time = datetime.fromtimestamp(started_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    return encode_segment(f"{time}-{run_id}", what="run id")


def put_findings(repository: Repository, run: str, findings: Findings) -> None:
    """Record findings under the next free number of a verification. Nothing to record writes nothing."""
    if findings.empty:
        return
    prefix = f"{PREFIX}{run}/"
    number = sum(1 for found in repository.store.list(prefix) if not found.name.endswith(_REPORT)) + 1
    body = canonical_json(findings.model_dump(mode="json", exclude_defaults=True) | {"version": 1})
    while True:
        try:
            repository.put(Kind.VERIFIED, f"{prefix}{number:08d}", body)
        except AlreadyExistsError:
            # Another try of this verification recorded its findings meanwhile: both count.
            number += 1
        else:
            return


def read_findings(repository: Repository, run: str) -> Iterator[Findings]:
    """Yield what a verification has recorded, in order. Raises IntegrityError."""
    for found in repository.store.list(f"{PREFIX}{run}/"):
        if not found.name.endswith(f"/{_REPORT}"):
            yield _read(repository, found.name)


def _read(repository: Repository, name: str) -> Findings:
    findings = parse_object(Findings, repository.get(Kind.VERIFIED, name), name)
    if len(findings.sound) % (2 * ID_LENGTH):
        raise IntegrityError(f"object {name} is damaged: it names no whole number of packs")
    return findings


def put_report(repository: Repository, run: str, report: VerifyReport) -> None:
    """Record a verification's report; the first one stays."""
    try:
        repository.put(
            Kind.VERIFIED, f"{PREFIX}{run}/{_REPORT}", canonical_json(report.model_dump(mode="json"))
        )
    except AlreadyExistsError:
        # Another try of the same step came first, with the same findings before it.
        return


def latest_report(repository: Repository) -> VerifyReport | None:
    """Return the report of the newest verification that came to its end, or None. Raises IntegrityError."""
    names = [found.name for found in repository.store.list(PREFIX) if found.name.endswith(f"/{_REPORT}")]
    if not names:
        return None
    return parse_object(VerifyReport, repository.get(Kind.VERIFIED, names[-1]), names[-1])


def verifications(
    repository: Repository, now: int, on_damage: Callable[[str, str], None] = lambda _name, _problem: None
) -> Iterator[tuple[str, int, list[bytes]]]:
    """Yield (object, when, ids of packs that were sound), newest verification first.

    What claims to come from the future is passed over: a clock that was once wrong must not hide packs for ever. So is
    what is damaged, after `on_damage` was told: its packs count as not verified, and are due earlier.
    """
    for name in _newest_first(repository):
        try:
            findings = _read(repository, name)
        except (NotFoundError, UnsupportedError):
            # Superseded, and taken away since the listing; or a newer program's.
            continue
        except (IntegrityError, UnreadableError) as error:
            on_damage(name, str(error))
            continue
        if findings.sound and findings.recorded <= now + _CLOCK_SLACK_S:
            yield name, findings.recorded, _split(findings.sound)


def _newest_first(repository: Repository) -> list[str]:
    names = [found.name for found in repository.store.list(PREFIX) if not found.name.endswith(f"/{_REPORT}")]
    return names[::-1]


def _split(sound: str) -> list[bytes]:
    ids = bytes.fromhex(sound)
    return [ids[at : at + ID_LENGTH] for at in range(0, len(ids), ID_LENGTH)]


def drop_superseded(
    repository: Repository,
    store: DeletingStore,
    now: int,
    heartbeat: Callable[[str], None] = lambda _: None,
) -> int:
    """Delete the findings that no later verification will read; returns how many. Reports stay.

    Each pack in them is gone, or was verified since; or they are damaged. `store` is the repository's own, opened by an
    identity that may delete. Stopped anywhere, a pack is due earlier at worst. Raises PermissionRefusedError.
    """
    table = sqlite3.connect("", isolation_level=None)
    with contextlib.closing(table):
        table.execute("PRAGMA journal_mode = OFF")
        table.execute("CREATE TABLE unknown (id BLOB PRIMARY KEY) WITHOUT ROWID")
        packs = ((pack.pack_id,) for pack in repository.index.packs())
        table.executemany("INSERT OR IGNORE INTO unknown VALUES (?)", packs)
        superseded: list[str] = []
        for name, _, ids in verifications(repository, now, lambda name, _: superseded.append(name)):
            heartbeat(f"reading {name}")
            found = table.executemany("DELETE FROM unknown WHERE id = ?", ((pack,) for pack in ids))
            if not found.rowcount:
                superseded.append(name)
    for name in superseded:
        heartbeat(f"deleting {name}")
        store.delete(name)
    return len(superseded)
