"""Which backups are kept, and why: the rules of a VM group, as pure functions over what is known of its backups.

The rules are those of restic and borg (grandfather, father, son): the newest backup of each of the newest n hours,
days, ISO weeks, months and years that have one, in UTC. Nothing here reads or deletes anything.

Two clocks. A backup's time is its writer's word, and who has stolen an access node's keys can write backups of any
time: enough of them would push the good ones out. The store's clock (when the backup was committed) is nobody's to
choose. Where the two are further apart than a backup can take, the rules are asked twice, once by each, and what either
keeps is kept. Nor does a repository that was copied, which the store dates anew, lose anything by that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field, model_validator

from safehaul.config.fields import Section

MAX_KEPT = 10_000
COMPLETED, PARTIAL, UNREADABLE = "Completed", "Partial", "Unreadable"
GOOD = frozenset({COMPLETED, PARTIAL})
"""States of a backup that can take another one's place. A VM with a disk that is no NAS disk has Partial ones only."""
APART = timedelta(days=2)
"""Backups take hours. What the store dates further from the backup's own time is dated by both."""
SETTLES_WITHIN = timedelta(days=2)
"""A backup without index may still get it: step 14 is tried for a day."""

_PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda at: f"{at:%Y-%m-%d %H}:00",
    "daily": lambda at: f"{at:%Y-%m-%d}",
    "weekly": lambda at: f"{at:%G-W%V}",
    "monthly": lambda at: f"{at:%Y-%m}",
    "yearly": lambda at: f"{at:%Y}",
}
"""Rule → the period that a time falls in, as it is shown."""


class Retention(Section):
    """How long a VM group's backups are kept; for each VM apart. Without a rule all are kept, for ever."""

    keep_last: int = Field(default=0, ge=0, le=MAX_KEPT)
    """The newest backups, whenever they were made. [Not alone](retention.md#whoever-has-stolen-keys)."""
    hourly: int = Field(default=0, ge=0, le=MAX_KEPT)
    """The newest backup of each of the newest hours that have one."""
    daily: int = Field(default=0, ge=0, le=MAX_KEPT)
    """The same for days (UTC)."""
    weekly: int = Field(default=0, ge=0, le=MAX_KEPT)
    """The same for weeks that begin on Monday."""
    monthly: int = Field(default=0, ge=0, le=MAX_KEPT)
    """The same for months."""
    yearly: int = Field(default=0, ge=0, le=MAX_KEPT)
    """The same for years."""
    min_backups: int = Field(default=1, ge=1, le=MAX_KEPT)
    """At least this many Completed or Partial backups of a VM are kept, whatever the rules say."""

    @model_validator(mode="after")
    def _has_a_rule(self) -> Retention:
        if "min_backups" in self.model_fields_set and not self.rules:
            msg = "min_backups has no effect without a rule: give keep_last, hourly, daily, weekly, monthly or yearly"
            raise ValueError(msg)
        return self

    @property
    def rules(self) -> dict[str, int]:
        """The rules that are set, in the order of the table."""
        return {name: count for name in RULES if (count := getattr(self, name))}

    def __str__(self) -> str:
        """`7 daily, 4 weekly, at least 2`."""
        if not self.rules:
            return "everything"
        words = [f"{count} {'last' if name == 'keep_last' else name}" for name, count in self.rules.items()]
        return ", ".join([*words, f"at least {self.min_backups}"])


RULES = tuple(name for name in Retention.model_fields if name != "min_backups")


class KnownBackup(NamedTuple):
    """What the rules need to know of a committed backup."""

    backup_id: str
    vm_group: str
    status: str
    """As its index says; `Unindexed` without one, `Unreadable` when nobody can tell."""
    taken: datetime | None
    """When the backup began, by its writer, with a time zone. None: nobody can tell."""
    stored: datetime | None = None
    """When it was committed, by the store's clock. None: not known."""


class Reason(NamedTuple):
    """Why a backup is kept, or not: a kind that can be counted, and what it says of this backup."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        """`daily 2026-11-25`."""
        return f"{self.kind} {self.detail}".strip()


class Decision(NamedTuple):
    """What becomes of one backup, and why."""

    backup: KnownBackup
    keep: bool
    reasons: tuple[Reason, ...]

    @property
    def why(self) -> str:
        """`daily 2026-11-25, legal hold`."""
        return ", ".join(map(str, self.reasons))

    def __str__(self) -> str:
        """`kept: daily 2026-11-25, legal hold`, or `forgotten: …`."""
        return f"{'kept' if self.keep else 'forgotten'}: {self.why}"


def plan(
    backups: Iterable[KnownBackup],
    groups: dict[str, Retention],
    holds: Collection[str],
    now: datetime,
) -> list[Decision]:
    """Decide on the backups of one VM, newest first.

    `groups` are the rules of the configured VM groups; `holds` are the ids of held backups. The backups of each group
    are judged by themselves. Never forgotten is: what is held; what nobody can read; what belongs to a group that is
    not configured or has no rules; the newest Completed backup; the newest `min_backups` good ones; a backup that is
    not good and is newer than all good ones, or so young that it may still become good.
    """
    series: dict[str, list[KnownBackup]] = {}
    for backup in backups:
        series.setdefault(backup.vm_group, []).append(backup)
    decisions = [
        Decision(backup, keep=bool(why), reasons=tuple(why) or _why_forgotten(backup))
        for group, members in series.items()
        for backup, why in _judge(members, groups.get(group), group, holds, now)
    ]
    return sorted(decisions, key=lambda item: _order((item.backup.taken or now, item.backup)), reverse=True)


def _judge(
    members: Sequence[KnownBackup],
    rules: Retention | None,
    group: str,
    holds: Collection[str],
    now: datetime,
) -> list[tuple[KnownBackup, list[Reason]]]:
    """Each backup of a VM's group with the reasons to keep it."""
    kept: dict[str, list[Reason]] = {backup.backup_id: [] for backup in members}
    judged: list[KnownBackup] = []
    for backup in members:
        why = kept[backup.backup_id]
        if backup.backup_id in holds:
            why.append(Reason("legal hold"))
        if backup.taken is None or backup.status == UNREADABLE:
            why.append(Reason("it cannot be read"))
        elif rules is None:
            why.append(Reason("unknown VM group", group or "(none)"))
        elif not rules.rules:
            why.append(Reason("no rule is configured"))
        else:
            judged.append(backup)
    for backup_id, reason in _kept_by(judged, rules or Retention(), _by_writer, now):
        kept[backup_id].append(reason)
    # What is kept by one clock needs no reason by the other. A recovered backup is held and dated anew by the store: it
    # takes no place there.
    unkept = {backup.backup_id for backup in judged if not kept[backup.backup_id]}
    dated = [
        backup for backup in judged if backup.backup_id not in holds or _by_store(backup) == backup.taken
    ]
    for backup_id, reason in _kept_by(dated, rules or Retention(), _by_store, now):
        if backup_id in unkept:
            kept[backup_id].append(Reason(reason.kind, f"{reason.detail} by the store's clock".strip()))
    return [(backup, kept[backup.backup_id]) for backup in members]


def _by_writer(backup: KnownBackup) -> datetime:
    assert backup.taken is not None, "backups without a time are not judged"
    return backup.taken


def _by_store(backup: KnownBackup) -> datetime:
    """The backup's own time where the store bears it out, else the store's."""
    taken = _by_writer(backup)
    if backup.stored is None or abs(backup.stored - taken) <= APART:
        return taken
    return backup.stored


def _kept_by(
    backups: Sequence[KnownBackup],
    rules: Retention,
    clock: Callable[[KnownBackup], datetime],
    now: datetime,
) -> list[tuple[str, Reason]]:
    """Which of one series are kept, by one clock, with the reason of each."""
    dated = sorted(((clock(backup), backup) for backup in backups), key=_order, reverse=True)
    good = [(at, backup) for at, backup in dated if backup.status in GOOD]
    kept = [
        (backup.backup_id, Reason("last", f"{number} of {rules.keep_last}"))
        for number, (_, backup) in enumerate(good[: rules.keep_last], 1)
    ]
    for rule, period_of in _PERIODS.items():
        periods: set[str] = set()
        for at, backup in good:
            period = period_of(at)
            if period not in periods and len(periods) < getattr(rules, rule):
                periods.add(period)
                kept.append((backup.backup_id, Reason(rule, period)))
    completed = next((backup for _, backup in good if backup.status == COMPLETED), None)
    if completed is not None:
        kept.append((completed.backup_id, Reason("last Completed backup")))
    minimum = Reason("minimum", f"of {rules.min_backups}")
    kept += [(backup.backup_id, minimum) for _, backup in good[: rules.min_backups]]
    for at, backup in dated:
        if backup.status in GOOD:
            continue
        if not good or at >= good[0][0]:
            kept.append((backup.backup_id, Reason(backup.status, "and no good backup is newer")))
        elif now - at < SETTLES_WITHIN:
            young = f"and younger than {SETTLES_WITHIN.days} days"
            kept.append((backup.backup_id, Reason(backup.status, young)))
    return kept


def _order(item: tuple[datetime, KnownBackup]) -> tuple[datetime, str]:
    return item[0], item[1].backup_id


def _why_forgotten(backup: KnownBackup) -> tuple[Reason, ...]:
    if backup.status in GOOD:
        return (Reason("no rule keeps it"),)
    return (Reason(backup.status, "and a good backup is newer"),)


def kinds(decisions: Iterable[Decision]) -> dict[str, int]:
    """How many backups are kept for which kind of reason: `{"daily": 7, "legal hold": 1}`."""
    counted = Counter(
        kind
        for item in decisions
        if item.keep
        for kind in dict.fromkeys(reason.kind for reason in item.reasons)
    )
    return dict(counted.most_common())
