"""What a verification is asked, and what it finds: the input and the report of VerifyRepository."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from safehaul.messages.base import Message, Request

DAMAGE_LIMIT = 1000
"""Damaged objects and chunks that a report lists; the rest is only counted."""
TOUCHED_LIMIT = 1000
"""Places in backups that a report lists; the rest is only counted."""
BACKUPS_LIMIT = 1000
"""Damaged backups that a report lists."""
PARTS_LIMIT = 100
"""Disks and files that a report lists of one damaged backup."""
PACKS_LIMIT = 10_000
"""Damaged packs that a report names."""
HISTORY_LIMIT = 100
"""Items of each list in a workflow's result, which may have 2 MB; the report in the repository has them all."""


class VerifyMode(StrEnum):
    """How much of the packs is read. Maps, manifests and lists are always read whole."""

    LIGHT = "light"
    """Footers and trailers."""
    SAMPLE = "sample"
    """Every byte of the packs that were verified longest ago."""
    FULL = "full"
    """Every byte of every pack."""


class VerifyRepositoryRequest(Request):
    """What a person gives to VerifyRepository: `{"media_agent": "vault", "mode": "sample", "sample_percent": 25}`."""

    media_agent: str = Field(min_length=1, max_length=200)
    mode: VerifyMode = VerifyMode.SAMPLE
    sample_percent: float | None = Field(default=None, gt=0, le=100)
    """Of the stored bytes, with mode `sample`; 25 when nothing is said: once a week, everything within four weeks."""
    sample_bytes: int | None = Field(default=None, gt=0)
    """In place of a percentage: stop after about this many bytes."""
    max_age_days: int | None = Field(default=None, gt=0, le=36_500)
    """With mode `sample`: also every pack that was verified longer ago than this."""
    note_damage: bool = True
    """Record damaged packs, so that later backups store their chunks again."""
    going_on: VerifyState | None = None
    """Of the workflow's earlier run, which gives it; nobody types it."""

    @model_validator(mode="after")
    def _one_sample(self) -> VerifyRepositoryRequest:
        given = [
            name
            for name in ("sample_percent", "sample_bytes", "max_age_days")
            if getattr(self, name) is not None
        ]
        if given and self.mode is not VerifyMode.SAMPLE:
            msg = f"{given[0]} goes with mode sample, not {self.mode.value}"
            raise ValueError(msg)
        if self.sample_percent is not None and self.sample_bytes is not None:
            msg = "give sample_percent or sample_bytes, not both"
            raise ValueError(msg)
        return self


class Damage(Message):
    """One object, or one chunk in a pack, that is not what it must be."""

    object_name: str
    chunk_id: str = ""
    problem: str
    advice: str = ""
    """What it means and what to do, where the report's own advice does not say it."""


class Touched(Message):
    """A place in a backup that a damage touches."""

    vc_guid: str
    vm_name: str
    backup_id: str
    part: str
    """`disk LABEL (key N)` or `file NAME`."""
    offset_bytes: int
    length_bytes: int
    chunk_id: str
    lost: bool
    """False: the chunk itself can still be read, but something else in its pack is damaged."""


class LostPart(Message):
    """What a backup has lost of one disk or file."""

    part: str
    bytes_lost: int
    bytes_kept: int = 0
    """In damaged packs, and still readable."""


class DamagedBackup(Message):
    """A backup that a damage touches."""

    vc_guid: str
    backup_id: str
    vm_name: str = ""
    vm_group: str = ""
    bytes_lost: int = 0
    parts: list[LostPart] = Field(default_factory=list)
    problem: str = ""
    """Of its manifest: then nothing of it can be restored."""
    by_chunks: bool = True
    """True: all that it lost are chunks, which a later backup with the same content would heal."""
    newest: bool = False
    """It is its VM's newest backup: what it lost was on the disk when the VM was last backed up."""

    @property
    def whole(self) -> bool:
        """True when every byte can be restored."""
        return not self.bytes_lost and not self.problem


class VerifyReport(Message):
    """What a verification found."""

    mode: VerifyMode = VerifyMode.LIGHT
    run: str = ""
    """Folder in `verified/`; empty when nothing was recorded."""
    backups: int = 0
    packs: int = 0
    """Whose trailer or bytes were read."""
    chunks: int = 0
    bytes_read: int = 0
    """Of packs that were read whole."""
    packs_total: int = 0
    bytes_total: int = 0
    """Of all packs that backups may rely on."""
    unlisted_packs: int = 0
    """Packs that no `idx/` object lists: of backups under way, or left by interrupted ones."""
    collected_packs: int = 0
    """Packs that vanished meanwhile because a collection deleted them: no damage."""
    oldest_verified: str = ""
    """Of the packs that were not read now, when the one that was verified longest ago was (UTC, ISO 8601)."""
    damage: list[Damage] = Field(default_factory=list)
    damage_omitted: int = 0
    damaged_packs: list[str] = Field(default_factory=list)
    leftovers: list[str] = Field(default_factory=list)
    """Damaged packs that were noted before and that no backup relies on any more: a collection removes them."""
    touched: list[Touched] = Field(default_factory=list)
    touched_omitted: int = 0
    damaged_backups: list[DamagedBackup] = Field(default_factory=list)
    damaged_backups_omitted: int = 0

    def for_history(self) -> VerifyReport:
        """The report as a workflow's result: what is left out of its lists stands in `verified/`."""
        cut: dict[str, object] = {
            name: getattr(self, name)[:HISTORY_LIMIT]
            for name in ("damage", "touched", "damaged_backups", "damaged_packs", "leftovers")
        }
        for name in ("damage", "touched", "damaged_backups"):
            left = max(0, len(getattr(self, name)) - HISTORY_LIMIT)
            cut[f"{name}_omitted"] = getattr(self, f"{name}_omitted") + left
        return self.model_copy(update=cut)

    @property
    def full(self) -> bool:
        """True when every byte of every pack was read."""
        return self.mode is VerifyMode.FULL

    @property
    def sound(self) -> bool:
        """True when nothing is damaged, but for what was noted before and no backup relies on any more."""
        return not self.damage and not self.damage_omitted and not self.damaged_backups


class PackMark(Message):
    """A place in the order in which packs are verified: those verified longest ago first."""

    verified_at: int
    """Seconds since 1970."""
    pack: str
    """Its id in hexadecimal."""


class VerifyRun(Message):
    """One verification under way, as its steps pass it on."""

    media_agent: str
    mode: VerifyMode
    name: str
    """Folder in `verified/`."""
    started_at: int
    note_damage: bool = True
    until: PackMark | None = None
    """The last pack that is to be read whole; None: none is."""
    packs_due: int = 0
    bytes_due: int = 0
    packs_total: int = 0
    bytes_total: int = 0
    oldest_left: int = 0
    """When the one that was verified longest ago, of those that are not due, was; 0: there are none."""


class BeginVerifyInput(Message):
    """Input of `begin_verification`."""

    request: VerifyRepositoryRequest
    run_id: str
    """Of the workflow's first run: a second try begins the same verification."""
    started_at: int


class VerifyStage(StrEnum):
    """The parts of a verification, in their order."""

    LISTS = "lists"
    """`gc/`, sessions, and what `idx/` lists; with it the trailers."""
    PACKS = "packs"
    """Bytes of packs."""
    BACKUPS = "backups"
    """Indexes, manifests and maps: is every chunk in a sound pack."""


class VerifyProgress(Message):
    """How far a verification has come: a step's result, its heartbeat, and the answer of the query `progress`."""

    stage: VerifyStage = VerifyStage.LISTS
    cursor: str = ""
    """Where the stage goes on; what comes before it is recorded."""
    stage_done: bool = False
    packs: int = 0
    bytes_read: int = 0
    backups: int = 0
    damage: int = 0
    """Findings up to now."""
    doing: str = ""


class VerifyPartInput(Message):
    """Input of `verify_part`."""

    run: VerifyRun
    progress: VerifyProgress


class VerifyState(Message):
    """What VerifyRepository hands to its next run, beside the request."""

    run: VerifyRun
    progress: VerifyProgress
    started_at: int
    reading_since: int = 0
    """When the packs' bytes began to be read; 0: not yet."""


VerifyRepositoryRequest.model_rebuild()
