"""Goal: whatever a VM's backups are like, the rules keep what they must, and forget nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from safehaul.retention import GOOD, RULES, SETTLES_WITHIN, Decision, KnownBackup, Retention, kinds, plan

NOW = datetime(2026, 11, 26, 11, tzinfo=UTC)
STATES = ["Completed", "Partial", "Failed", "Unindexed", "Unreadable"]


@st.composite
def _backups(
    draw: st.DrawFn, *, groups: tuple[str, ...] = ("nightly", "weekly", "gone", "")
) -> list[KnownBackup]:
    """Backups of a few groups within three years, close together and far apart, some dated otherwise by the store."""
    found = []
    for number in range(draw(st.integers(0, 40))):
        minutes = draw(st.integers(0, 60 * 24 * 5) | st.integers(0, 60 * 24 * 1100))
        taken = NOW - timedelta(minutes=minutes) if draw(st.integers(0, 20)) else None
        apart = draw(st.sampled_from([None, 0, 30, 60 * 24 * 40, -60 * 24 * 400]))
        stored = taken + timedelta(minutes=apart) if taken is not None and apart is not None else None
        status, group = draw(st.sampled_from(STATES)), draw(st.sampled_from(groups))
        found.append(KnownBackup(f"b{number:03}", group, status, taken, stored))
    return found


_COUNTS = st.integers(0, 6)
_RULES = st.builds(
    Retention,
    keep_last=_COUNTS,
    hourly=_COUNTS,
    daily=st.integers(1, 6),
    weekly=_COUNTS,
    monthly=_COUNTS,
    yearly=_COUNTS,
    min_backups=st.integers(1, 4),
)
_HOLDS = st.sets(st.integers(0, 39).map(lambda number: f"b{number:03}"), max_size=5)


def _kept(decisions: list[Decision]) -> set[str]:
    return {item.backup.backup_id for item in decisions if item.keep}


@given(_backups(), _RULES, _HOLDS)
def test_what_must_never_be_forgotten_is_kept(
    backups: list[KnownBackup], rules: Retention, holds: set[str]
) -> None:
    decisions = plan(backups, {"nightly": rules, "weekly": Retention()}, holds, NOW)
    assert sorted(item.backup for item in decisions) == sorted(backups)
    kept = _kept(decisions)
    for backup in backups:
        mine = [other for other in backups if other.vm_group == backup.vm_group and other.taken is not None]
        good = [other for other in mine if other.status in GOOD]
        if backup.backup_id in holds or backup.vm_group != "nightly" or backup.taken is None:
            assert backup.backup_id in kept
        if backup.status == "Unreadable":
            assert backup.backup_id in kept
        assert len([item for item in good if item.backup_id in kept]) >= min(rules.min_backups, len(good))
        completed = [item for item in mine if item.status == "Completed"]
        if completed:
            newest = max(completed, key=lambda item: (item.taken, item.backup_id))
            assert newest.backup_id in kept
        if backup.taken is not None and NOW - backup.taken < SETTLES_WITHIN and backup.status not in GOOD:
            assert backup.backup_id in kept
    assert all(item.reasons for item in decisions)


@given(_backups(), _RULES, _HOLDS)
def test_planning_again_on_what_was_kept_forgets_nothing(
    backups: list[KnownBackup], rules: Retention, holds: set[str]
) -> None:
    groups = {"nightly": rules, "weekly": rules}
    kept = _kept(plan(backups, groups, holds, NOW))
    again = plan([backup for backup in backups if backup.backup_id in kept], groups, holds, NOW)
    assert _kept(again) == kept


@given(
    _backups(),
    _RULES,
    st.fixed_dictionaries(dict.fromkeys((*RULES, "min_backups"), st.integers(0, 3))),
    _HOLDS,
)
def test_more_rules_never_keep_less(
    backups: list[KnownBackup], rules: Retention, more: dict[str, int], holds: set[str]
) -> None:
    wider = Retention(**{name: getattr(rules, name) + count for name, count in more.items()})
    less = _kept(plan(backups, {"nightly": rules}, holds, NOW))
    assert less <= _kept(plan(backups, {"nightly": wider}, holds, NOW))
    assert less <= _kept(plan(backups, {"nightly": rules}, holds | {"b001"}, NOW))


@given(_backups(groups=("nightly",)), _backups(groups=("nightly",)), _RULES)
def test_backups_of_invented_times_push_out_none_that_the_store_dates_otherwise(
    good: list[KnownBackup], invented: list[KnownBackup], rules: Retention
) -> None:
    """Goal: who writes backups today, of whatever time, takes no slot of a day, week, … that has gone by."""
    rules = rules.model_copy(update={"keep_last": 0, "min_backups": 1})
    honest = [
        item._replace(stored=item.taken) for item in good if item.taken is not None and item.taken < NOW
    ]
    forged = [
        item._replace(backup_id=f"x{item.backup_id}", stored=NOW, status="Completed")
        for item in invented
        if item.taken is not None
    ]
    honest = [item for item in honest if item.taken is not None and NOW - item.taken > timedelta(days=3)]
    forged = [item for item in forged if item.taken is not None and abs(NOW - item.taken) > timedelta(days=2)]
    together = {item.backup: item for item in plan([*honest, *forged], {"nightly": rules}, (), NOW)}
    # One forged backup may be the newest of the current hour, day, week, month and year, and so take one slot of each.
    narrower = {rule: max(0, getattr(rules, rule) - 1) for rule in RULES}
    expected = plan(honest, {"nightly": Retention(**narrower)}, (), NOW) if any(narrower.values()) else []
    current = {f"{NOW:%G-W%V}", f"{NOW:%Y-%m}", f"{NOW:%Y}"}
    for decision in expected:
        reasons = [item for item in decision.reasons if item.kind in RULES and item.detail not in current]
        if reasons:
            assert together[decision.backup].keep, (decision, reasons)


@given(_backups(), _HOLDS)
def test_without_rules_everything_is_kept(backups: list[KnownBackup], holds: set[str]) -> None:
    for groups in ({}, {"nightly": Retention()}):
        assert all(item.keep for item in plan(backups, groups, holds, NOW))


@given(_backups(), _RULES)
def test_the_kinds_count_each_kept_backup_at_least_once(backups: list[KnownBackup], rules: Retention) -> None:
    decisions = plan(backups, {"nightly": rules}, (), NOW)
    counted = kinds(decisions)
    assert sum(counted.values()) >= len(_kept(decisions))
    assert all(count <= len(backups) for count in counted.values())
