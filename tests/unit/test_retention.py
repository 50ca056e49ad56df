"""The rules of retention by examples: what a person who knows restic or borg expects, and the words of each reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from safehaul.retention import Decision, KnownBackup, Retention, kinds, plan

NOW = datetime(2026, 11, 26, 11, tzinfo=UTC)


def _backup(at: datetime, status: str = "Completed") -> KnownBackup:
    return KnownBackup(f"{at:%Y%m%dT%H%M%SZ}", "nightly", status, at)


def _nightly(days: int, status: str = "Completed") -> list[KnownBackup]:
    """One backup at 22:00 of each of the last days."""
    return [_backup(NOW.replace(hour=22) - timedelta(days=day), status) for day in range(1, days + 1)]


def _plan(backups: list[KnownBackup], holds: tuple[str, ...] = (), **rules: int) -> dict[str, Decision]:
    decisions = plan(backups, {"nightly": Retention(**rules)}, holds, NOW)
    return {item.backup.backup_id: item for item in decisions}


def _kept(decisions: dict[str, Decision]) -> list[str]:
    return sorted(name[:8] for name, item in decisions.items() if item.keep)


def test_days_weeks_and_months_as_restic_counts_them() -> None:
    found = _plan(_nightly(400), daily=3, weekly=3, monthly=3)
    assert _kept(found) == [
        "20260930",  # the newest of September
        "20261031",
        "20261115",  # the newest of the week that ended on Sunday the 15th
        "20261122",
        "20261123",
        "20261124",
        "20261125",
    ]
    assert str(found["20261125T220000Z"]).startswith(
        "kept: daily 2026-11-25, weekly 2026-W48, monthly 2026-11"
    )
    assert str(found["20261110T220000Z"]) == "forgotten: no rule keeps it"


def test_periods_without_a_backup_take_no_slot() -> None:
    old = [_backup(NOW - timedelta(days=days)) for days in (200, 300, 900)]
    assert len(_kept(_plan(old, daily=3))) == 3
    assert _kept(_plan(old, yearly=1)) == [f"{NOW - timedelta(days=200):%Y%m%d}"]


def test_the_weeks_are_those_of_iso_8601() -> None:
    """Goal: Sunday the 3rd of January 2027 is of the last week of 2026."""
    late = [_backup(datetime(2027, 1, day, 12, tzinfo=UTC)) for day in (3, 4)]
    words = [str(item) for item in plan(late, {"nightly": Retention(weekly=2)}, (), NOW)]
    assert "weekly 2027-W01" in words[0]
    assert "weekly 2026-W53" in words[1]


def test_hours_and_the_last_ones() -> None:
    hourly = [_backup(NOW - timedelta(minutes=20 * number)) for number in range(12)]
    found = _plan(hourly, hourly=2, keep_last=2)
    assert [str(item) for item in list(found.values())[:4]] == [
        "kept: last 1 of 2, hourly 2026-11-26 11:00, last Completed backup, minimum of 1",
        "kept: last 2 of 2, hourly 2026-11-26 10:00",
        "forgotten: no rule keeps it",
        "forgotten: no rule keeps it",
    ]


def test_partial_backups_fill_slots_and_the_last_completed_one_stays() -> None:
    backups = [_backup(NOW - timedelta(days=30)), *_nightly(10, "Partial")]
    found = _plan(backups, daily=3)
    assert _kept(found) == ["20261027", "20261123", "20261124", "20261125"]
    assert str(found["20261027T110000Z"]) == "kept: last Completed backup"


def test_failed_ones_take_no_slot_and_go_when_a_good_one_is_newer() -> None:
    failed = [_backup(NOW - timedelta(days=days, hours=1), "Failed") for days in (3, 4, 5)]
    unindexed = _backup(NOW - timedelta(hours=1), "Unindexed")
    good = [_backup(NOW - timedelta(days=days)) for days in (4, 6, 7, 8)]
    found = _plan([*failed, unindexed, *good], daily=2)
    assert _kept(found) == ["20261120", "20261122", "20261123", "20261126"]
    assert "no good backup is newer" in str(found[unindexed.backup_id])
    assert str(found[failed[1].backup_id]) == "forgotten: Failed and a good backup is newer"
    late = [_backup(NOW - timedelta(hours=20), "Unindexed"), _backup(NOW - timedelta(hours=2))]
    assert "younger than 2 days" in str(_plan(late, daily=2)[late[0].backup_id])


def test_a_minimum_and_holds_keep_what_no_rule_does() -> None:
    backups = _nightly(10)
    held = backups[8].backup_id
    found = _plan(backups, holds=(held,), daily=1, min_backups=3)
    assert _kept(found) == ["20261117", "20261123", "20261124", "20261125"]
    assert str(found[held]) == "kept: legal hold"
    assert "minimum of 3" in str(found[backups[2].backup_id])
    assert kinds(list(found.values())) == {
        "minimum": 3,
        "daily": 1,
        "last Completed backup": 1,
        "legal hold": 1,
    }


def test_groups_are_judged_apart_and_unknown_ones_stay() -> None:
    backups = [*_nightly(5), *(item._replace(vm_group="gone") for item in _nightly(9))]
    found = plan(backups, {"nightly": Retention(daily=2)}, (), NOW)
    assert len([item for item in found if item.keep and item.backup.vm_group == "nightly"]) == 2
    gone = [item for item in found if item.backup.vm_group == "gone"]
    assert {str(item) for item in gone} == {"kept: unknown VM group gone"}


def test_a_repository_that_was_copied_loses_nothing_by_its_new_dates() -> None:
    """Goal: the store dates all backups of today; the rules go by their own times, and keep those."""
    copied = [item._replace(stored=NOW) for item in _nightly(60)]
    assert set(_kept(_plan(_nightly(60), daily=7, weekly=4))) <= set(_kept(_plan(copied, daily=7, weekly=4)))


def test_backups_that_are_dated_back_push_out_none() -> None:
    """Goal: who forges a later backup of each day takes no day from the true one."""
    true = [item._replace(stored=item.taken) for item in _nightly(30)]
    forged = [
        item._replace(backup_id=f"{item.backup_id}-x", taken=item.taken + timedelta(hours=1), stored=NOW)
        for item in true
        if item.taken is not None
    ]
    found = _plan([*true, *forged], daily=7)
    kept = {name for name, item in found.items() if item.keep}
    assert {item.backup_id for item in true[2:6]} <= kept
    assert "by the store's clock" in str(found[true[3].backup_id])


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"min_backups": 3}, "min_backups has no effect without a rule"),
        ({"daily": 0, "min_backups": 3}, "min_backups has no effect"),
        ({"daily": -1}, "greater than or equal to 0"),
        ({"daily": 10_001}, "less than or equal to 10000"),
        ({"daily": 1, "min_backups": 0}, "greater than or equal to 1"),
        ({"dayly": 7}, "Extra inputs"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, int], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Retention.model_validate(rules)


def test_rules_are_told_in_words() -> None:
    assert str(Retention(keep_last=2, daily=7)) == "2 last, 7 daily, at least 1"
    assert str(Retention()) == "everything"
