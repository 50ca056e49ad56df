"""Verification: is every committed backup still restorable, and what does a damage touch.

Three stages, each of which can stop at a cursor and go on from it in another process:

    lists    `gc/`, which packs are there, `idx/` (light and full: with every pack's trailer), sessions
    packs    every byte of the packs that are due, those verified longest ago first; and of those noted as damaged
    backups  every index, manifest and map page: does each chunk lie in a sound pack

What was found goes to a sink, part by part: `verified/` of the repository, or a list in memory. Damage is reported,
never raised.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

from safehaul.errors import ConnectionLostError, IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.collection import record_damaged
from safehaul.media.envelope import Kind
from safehaul.media.locations import decode_locations
from safehaul.media.manifest import list_backups, manifest_name
from safehaul.media.pack import SealedPack, pack_name
from safehaul.media.pack_ages import LAST_ID, Due, PackAges
from safehaul.media.repository import Repository
from safehaul.media.repository_config import NAME as CONFIG
from safehaul.media.verified import BadPack, Findings, FindingsBuilder, put_findings, run_name
from safehaul.media.verify_backups import BackupVerifier, BadPlaces
from safehaul.media.verify_beside import check_beside_backups
from safehaul.media.verify_generations import read_noted
from safehaul.media.verify_packs import BROKEN, PackJudge
from safehaul.media.verify_sessions import PREFIX as SESSIONS
from safehaul.media.verify_sessions import check_session, session_folders
from safehaul.media.verify_summary import summarise
from safehaul.messages.verify import (
    PackMark,
    VerifyMode,
    VerifyProgress,
    VerifyReport,
    VerifyRepositoryRequest,
    VerifyStage,
)

DEFAULT_SAMPLE_PERCENT = 25.0
RECORD_EVERY_S = 30.0
"""A verification that is killed reads at most this long again."""
RECORD_PACKS = 2000
RECORD_DAMAGE_AFTER_S = 3.0
RECORD_DAMAGED = 100

_DAY_S = 86_400
_EVERYTHING = 1 << 62
_GC_ADVICE = (
    "no backup can begin or be committed until it is gone: stop PruneRepository, delete the object with an identity "
    "that may delete, then run `safehaul repo verify --full --note-damage`"
)
_VERIFIED_ADVICE = "nothing is lost with it: the packs that it named are read again earlier"
_IDX_ADVICE = "`safehaul repo repair` lists its packs again; with --drop-lost it then deletes the list"


class Verification:
    """One verification, as far as one process does it. For one thread; `close` it."""

    def __init__(
        self,
        repository: Repository,
        mode: VerifyMode,
        started_at: int,
        sink: Callable[[Findings], None],
        beat: Callable[[VerifyProgress], None],
        *,
        note_damage: bool = False,
        known: Iterable[Findings] = (),
    ) -> None:
        """`known`: what earlier processes found. `beat` is called often, and may raise to stop the work."""
        self._repository = repository
        self._mode = mode
        self._started_at = started_at
        self._sink = sink
        self._beat = beat
        self._note_damage = note_damage
        self._judge = PackJudge(repository)
        self._findings = FindingsBuilder(mode)
        self._places = BadPlaces()
        for findings in known:
            for pack in findings.bad_packs:
                self._places.add(pack)
        self.progress = VerifyProgress()
        self._recorded = self.progress
        self._recorded_at = time.monotonic()
        self._to_note: list[bytes] = []
        self._noted = read_noted(repository)
        try:
            repository.refresh_index()
        except (IntegrityError, UnsupportedError):
            # A damaged object of `gc/`: the lists stage names it. The lists of chunks have been loaded before it.
            if not self._noted.broken:
                raise
        self._ages: PackAges | None = None
        self._backups: BackupVerifier | None = None

    def close(self) -> None:
        """Release the table of packs."""
        if self._ages is not None:
            self._ages.close()

    @property
    def ages(self) -> PackAges:
        """The packs, listed when first asked for."""
        if self._ages is None:
            self._ages = PackAges(
                self._repository, self._noted.damaged, self._started_at, int(time.time()), self._doing
            )
        return self._ages

    def run(
        self, progress: VerifyProgress, until: PackMark | None, enough: Callable[[], bool]
    ) -> VerifyProgress:
        """Go on with a stage from its cursor, until it is done or `enough`; all of it is in the sink then."""
        self.progress = self._recorded = progress
        work = {
            VerifyStage.LISTS: self._lists,
            VerifyStage.PACKS: lambda enough: self._packs(until, enough),
            VerifyStage.BACKUPS: self._check_backups,
        }[progress.stage]
        done = work(enough)
        self._must_be_there()
        self._show(stage_done=done, doing="")
        self._record()
        return self.progress

    def _must_be_there(self) -> None:
        """A store that is away (a directory that is not mounted) has lost nothing. Raises ConnectionLostError."""
        if not self._repository.store.exists(CONFIG):
            raise ConnectionLostError(
                f"the repository at {self._repository.store.url} is not there any more: is its directory mounted?"
            )

    def _show(self, **changes: object) -> None:
        self.progress = self.progress.model_copy(update=changes)

    def _doing(self, what: str) -> None:
        """Tell that the work goes on. The cursor that is told is of what is recorded: another process goes on there."""
        told = {"doing": what, "packs": self.progress.packs, "bytes_read": self.progress.bytes_read}
        told |= {"backups": self.progress.backups, "damage": self.progress.damage + self._findings.problems}
        self._beat(self._recorded.model_copy(update=told))

    def _record_if_due(self, packs: int) -> None:
        # Damage soon, so that backups stop to rely on it; but not pack by pack, should a whole store be gone.
        due = RECORD_DAMAGE_AFTER_S if self._to_note else RECORD_EVERY_S
        full = packs >= RECORD_PACKS or len(self._to_note) >= RECORD_DAMAGED
        if full or time.monotonic() - self._recorded_at > due:
            self._record()

    def _record(self) -> None:
        """Hand over what was found, then go on behind it."""
        if self._findings.problems:
            self._must_be_there()
        self._show(damage=self.progress.damage + self._findings.problems)
        self._sink(self._findings.take(max(int(time.time()), self._started_at + 1)))
        if self._note_damage and self._to_note and not self._noted.broken:
            record_damaged(self._repository, self._to_note)
        self._to_note = []
        self._recorded, self._recorded_at = self.progress, time.monotonic()

    # --- lists -------------------------------------------------------------------------------------------------

    def _lists(self, enough: Callable[[], bool]) -> bool:
        if not self.progress.cursor:
            for name, problem in self._noted.broken.items():
                self._findings.damage(name, problem, _GC_ADVICE)
            check_beside_backups(self._repository, self._findings, self._doing)
            for name, problem in self.ages.broken.items():
                self._findings.damage(name, problem, _VERIFIED_ADVICE)
            self._check_presence()
            self._show(cursor="idx/")
        if self.progress.cursor.startswith("idx/"):
            for found in self._repository.store.list("idx/"):
                if found.name <= self.progress.cursor:
                    continue
                self._check_list(found.name)
                self._show(cursor=found.name)
                self._record_if_due(0)
                if enough():
                    return False
            self._show(cursor=SESSIONS)
        for folder, names in session_folders(self._repository, self.progress.cursor):
            self._doing(f"reading {folder}")
            check_session(self._repository, folder, names, self._findings)
            self._show(cursor=folder)
            self._record_if_due(0)
            if enough():
                return False
        return True

    def _check_presence(self) -> None:
        self._findings.count(unlisted_packs=self.ages.unlisted)
        found: list[tuple[SealedPack, BadPack]] = []
        for pack in self.ages.not_there():
            self._doing(f"looking for {pack_name(pack.pack_id)}")
            bad = self._judge.not_there(pack)
            if bad is not None:
                found.append((pack, bad))
        collected = self._judge.collected({pack.pack_id for pack, bad in found if bad.gone})
        for pack, bad in found:
            if pack.pack_id in collected:
                self._collected(bad)
            else:
                self._found(pack, bad)

    def _collected(self, bad: BadPack) -> None:
        """Its chunks are elsewhere, or no backup needs them: a place that is no more, and no damage."""
        self._findings.count(collected_packs=1)
        self._places.add(bad)

    def _check_list(self, name: str) -> None:
        """Read an `idx/` object, and the trailers of its packs where the mode asks for it."""
        self._doing(f"reading {name}")
        try:
            listings = decode_locations(self._repository.get(Kind.LOCATIONS, name), name)
        except BROKEN as error:
            if self._repository.store.exists(name):
                self._findings.damage(name, str(error), _IDX_ADVICE)
            return
        if self._mode is VerifyMode.SAMPLE:
            return
        for listing in listings:
            pack = listing.pack
            if pack.pack_id in self._places:
                continue
            self._doing(f"reading the trailer of {pack_name(pack.pack_id)}")
            try:
                bad = self._judge.by_trailer(listing)
            except NotFoundError:
                bad = self._vanished(pack)
            if self._mode is VerifyMode.LIGHT:
                self._findings.count(packs=1, chunks=len(listing.entries))
                self._show(packs=self.progress.packs + 1)
            if bad is not None:
                self._found(pack, bad)

    def _vanished(self, pack: SealedPack) -> BadPack | None:
        """A pack that was there when the packs were listed: None when a collection has taken it away."""
        bad = self._judge.not_there(pack)
        if bad is not None and bad.gone and self._judge.collected({pack.pack_id}):
            self._collected(bad)
            return None
        return bad

    def _found(self, pack: SealedPack, bad: BadPack) -> None:
        noted = pack.pack_id in self._noted.damaged
        self._findings.bad(bad.model_copy(update={"noted": noted}))
        self._places.add(bad)
        if not noted:
            self._to_note.append(pack.pack_id)

    # --- packs -------------------------------------------------------------------------------------------------

    def plan(self, request: VerifyRepositoryRequest) -> Due:
        """Which packs are to be read whole."""
        if request.mode is VerifyMode.LIGHT:
            return self.ages.oldest(0, 0)
        if request.mode is VerifyMode.FULL:
            due = self.ages.oldest(_EVERYTHING, _EVERYTHING)
            return due._replace(until=PackMark(verified_at=self._started_at, pack=LAST_ID.hex()))
        _, stored = self.ages.totals()
        target = request.sample_bytes
        if target is None:
            target = -(-int(stored * (request.sample_percent or DEFAULT_SAMPLE_PERCENT)) // 100)
        days = request.max_age_days
        return self.ages.oldest(target, self._started_at - days * _DAY_S if days else 0)

    def _packs(self, until: PackMark | None, enough: Callable[[], bool]) -> bool:
        after = PackMark.model_validate_json(self.progress.cursor) if self.progress.cursor else None
        if after is None:
            for pack in self.ages.noted():
                self._read(pack)
            self._show(cursor=PackMark(verified_at=-1, pack="").model_dump_json())
            after = PackMark(verified_at=-1, pack="")
        since = 0
        for mark, pack in self.ages.due(until, after) if until is not None else ():
            self._read(pack)
            self._show(cursor=mark.model_dump_json())
            since += 1
            recorded = self._recorded_at
            self._record_if_due(since)
            since = since if recorded == self._recorded_at else 0
            if enough():
                return False
        return True

    def _read(self, pack: SealedPack) -> None:
        if pack.pack_id in self._places:
            return
        self._doing(f"reading {pack_name(pack.pack_id)}")
        try:
            bad, chunks = self._judge.by_bytes(pack)
        except NotFoundError:
            bad, chunks = self._vanished(pack), 0
            if bad is None:
                return
        self._findings.count(packs=1, chunks=chunks, bytes_read=pack.size_bytes)
        self._show(packs=self.progress.packs + 1, bytes_read=self.progress.bytes_read + pack.size_bytes)
        if bad is None:
            self._findings.sound(pack)
        else:
            self._found(pack, bad)

    # --- backups -----------------------------------------------------------------------------------------------

    def _check_backups(self, enough: Callable[[], bool]) -> bool:
        if self._backups is None:
            self._backups = BackupVerifier(self._repository, self._places, self._doing)
        refs = iter(list_backups(self._repository))
        ref = next(refs, None)
        while ref is not None:
            following = next(refs, None)
            name = manifest_name(ref)
            if name > self.progress.cursor:
                self._doing(f"checking backup {ref.backup_id} of VM {ref.vc_guid}")
                newest = following is None or following.vc_guid != ref.vc_guid
                self._backups.check(ref, self._findings, newest=newest)
                self._show(cursor=name, backups=self.progress.backups + 1)
                self._record_if_due(0)
                if enough() and following is not None:
                    return False
            ref = following
        return True


def verify(
    repository: Repository,
    *,
    full: bool = False,
    sample_percent: float | None = None,
    note_damage: bool = False,
    heartbeat: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Verify the repository in this process.

    Without `full` or `sample_percent` it is light. With `note_damage` the damaged packs are recorded in `gc/`, so that
    later backups do not rely on them and store their chunks again, which heals older backups too; and what was read
    is recorded in `verified/`. `heartbeat` is called often; it may raise to stop.
    """
    mode = VerifyMode.FULL if full else VerifyMode.SAMPLE if sample_percent is not None else VerifyMode.LIGHT
    request = VerifyRepositoryRequest(media_agent="-", mode=mode, sample_percent=sample_percent)
    started_at = int(time.time())
    name = run_name(started_at, secrets.token_hex(8))
    parts: list[Findings] = []

    def sink(findings: Findings) -> None:
        parts.append(findings)
        if note_damage:
            put_findings(repository, name, findings)

    work = Verification(
        repository, mode, started_at, sink, lambda at: heartbeat(at.doing), note_damage=note_damage
    )
    try:
        due = work.plan(request)
        totals = work.ages.totals()
        for stage in VerifyStage:
            work.run(work.progress.model_copy(update=next_stage(stage)), due.until, lambda: False)
    finally:
        work.close()
    return summarise(mode, parts, run=name if note_damage else "", totals=totals, oldest_left=due.oldest_left)


def next_stage(stage: VerifyStage) -> dict[str, object]:
    """What changes of the progress when a stage begins."""
    return {"stage": stage, "cursor": "", "stage_done": False, "doing": ""}
