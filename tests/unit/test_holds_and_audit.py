"""Legal holds and the audit log: what is written stays, and what others put there neither stops nor fools a reader."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from safehaul.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from safehaul.media import audit, holds
from safehaul.media.audit import Action
from safehaul.media.envelope import Kind
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.manifest import BackupRef
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from tests.unit.media_backup import SECRETS, new_repository

REF = BackupRef("vc.vm", "20261126T110000Z-0123456789abcdef")
OTHER = BackupRef("vc.other", "20261126T110000Z-0123456789abcdef")


@pytest.fixture(params=SECRETS)
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    secret: RepositorySecret | None = request.param
    return new_repository(tmp_path, secret=secret)


def _deleting(repository: Repository) -> LocalStore:
    assert isinstance(repository.store, LocalStore)
    return repository.store


def test_a_hold_says_who_and_why_until_it_is_released(repository: Repository) -> None:
    holds.place_hold(repository, REF, "jo@office", "  case 7,\n keep ")
    assert holds.is_held(repository, REF)
    assert not holds.is_held(repository, OTHER)
    found = holds.read_hold(repository, REF).hold
    assert found is not None
    assert (found.actor, found.reason) == ("jo@office", "case 7, keep")
    with pytest.raises(AlreadyExistsError, match=r"by jo@office since .*: case 7"):
        holds.place_hold(repository, REF, "mallory@office", "mine now")
    holds.release_hold(_deleting(repository), REF)
    with pytest.raises(NotFoundError, match="is not held"):
        holds.read_hold(repository, REF)
    holds.place_hold(repository, REF, "jo@office", "again")


@pytest.mark.parametrize("reason", ["", " \n", "x" * 1001])
def test_a_hold_needs_a_reason(repository: Repository, reason: str) -> None:
    with pytest.raises(InvalidInputError, match="needs a reason"):
        holds.place_hold(repository, REF, "jo@office", reason)


def test_a_damaged_hold_holds_and_one_of_another_name_says_nothing(repository: Repository) -> None:
    holds.place_hold(repository, REF, "jo@office", "case 7")
    store = _deleting(repository)
    store.put_if_absent(holds.hold_name(OTHER), b"nonsense")
    moved = BackupRef("vc.third", "b1")
    store.put_if_absent(holds.hold_name(moved), store.get(holds.hold_name(REF), 10_000))
    store.put_if_absent("holds/not/a/hold", b"")
    assert set(holds.held_backups(repository)) == {REF, OTHER, moved}
    assert list(holds.held_backups(repository, "vc.other")) == [OTHER]
    assert [holds.read_hold(repository, ref).hold for ref in (OTHER, moved)] == [None, None]


def test_the_log_has_every_entry_in_order_and_since_a_time(repository: Repository) -> None:
    before = datetime.now(UTC)
    audit.append(repository, Action.HOLD, "vc.vm/b1", {"reason": "case 7"})
    audit.append(repository, Action.RELEASE, "vc.vm/b1")
    found = [item.entry for item in audit.entries(repository)]
    assert [entry.action for entry in found if entry] == ["hold", "release"]
    assert found[0] is not None
    assert found[0].details == {"reason": "case 7"}
    assert found[0].actor == audit.actor()
    assert "@" in audit.actor()
    assert len(list(audit.entries(repository, before))) == 2
    assert list(audit.entries(repository, before + timedelta(hours=1))) == []


def test_what_somebody_else_puts_into_the_log_is_told_and_hides_nothing(repository: Repository) -> None:
    audit.append(repository, Action.FORGET, "vc.vm/b1")
    store = _deleting(repository)
    (name,) = [info.name for info in store.list("audit/")]
    forged = "audit/20200101T000000.000000Z-0000000000000000"
    store.put_if_absent(forged, b"nonsense")
    store.put_if_absent("audit/aaa", b"")
    # With the repository's keys: an entry's content under another time.
    late = "audit/20300101T000000.000000Z-0000000000000000"
    repository.put(Kind.AUDIT, late, repository.get(Kind.AUDIT, name))
    # The same, of a time at which the store did not have it.
    old = "20200202T000000.000000Z"
    entry = audit.AuditEntry(time=old, actor="jo@office", action="forget", object_name="x")
    back_dated = f"audit/{old}-0000000000000000"
    repository.put(Kind.AUDIT, back_dated, entry.model_dump_json().encode())
    found = {item.name: item for item in audit.entries(repository)}
    assert len(found) == 5
    assert found[back_dated].entry is not None
    assert "the store has it since 20" in found[back_dated].problem
    assert found[name].entry is not None
    assert not found[name].problem
    assert found[forged].entry is None
    assert "damaged" in found[forged].problem
    assert "not named" in found["audit/aaa"].problem
    assert "another time" in found[late].problem
