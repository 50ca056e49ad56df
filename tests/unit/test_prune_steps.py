"""Goal: a prune forgets what the rules say and nothing else, can be cut off anywhere, and leaves a record of all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities import upkeep_prune
from activities.peers import Peers
from activities.upkeep_prune import UpkeepPrune
from safehaul.media import audit, forgotten, holds
from safehaul.media.manifest import BackupRef, forgotten_name, index_name, list_backups, manifest_name
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from safehaul.messages.prune import Collected, ForgetPage, PruneStep, Purged
from tests.unit.media_backup import restore
from tests.unit.retained_site import add_backup, committed, listed, make_site, set_age

STEP = PruneStep(media_agent="vault")
LOOK = PruneStep(media_agent="vault", dry_run=True)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    _, opened = make_site(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def repository(peers: Peers) -> Repository:
    return peers.repository("vault")


def _run(method: Any, arg: Any, environment: ActivityEnvironment | None = None) -> Any:
    return (environment or ActivityEnvironment()).run(method, arg)


def _forget(peers: Peers, arg: PruneStep = STEP) -> ForgetPage:
    page: ForgetPage = _run(UpkeepPrune(peers).forget_backups, arg)
    return page


def _purge(peers: Peers, arg: PruneStep = STEP) -> Purged:
    purged: Purged = _run(UpkeepPrune(peers).purge_forgotten, arg)
    return purged


def _log(repository: Repository) -> list[tuple[str, str]]:
    return [(item.entry.action, item.entry.object_name) for item in audit.entries(repository) if item.entry]


def test_what_no_rule_keeps_is_forgotten_and_recorded(peers: Peers, repository: Repository) -> None:
    refs = [add_backup(peers, days) for days in range(6)]
    page = _forget(peers)
    assert (page.vms, page.backups, page.forgotten, page.ended) == (1, 6, 3, True)
    kept = sorted(ref.backup_id for ref in refs[:3])
    assert committed(repository) == kept
    assert listed(peers) == kept
    (vm,) = page.told
    assert vm.vm_name == "name of vc.vm"
    assert {item.backup_id for item in vm.forgotten} == {ref.backup_id for ref in refs[3:]}
    assert {item.reason for item in vm.forgotten} == {"no rule keeps it"}
    assert vm.kept_for == {"daily": 3, "last Completed backup": 1, "minimum": 1}
    entry = next(item.entry for item in audit.entries(repository))
    assert entry is not None
    assert set(entry.details["backups"]) == {ref.backup_id for ref in refs[3:]}
    assert restore(repository, refs[0]) == b"x" * 5000
    assert _forget(peers).forgotten == 0


def test_a_look_changes_nothing_and_says_the_same(peers: Peers, repository: Repository) -> None:
    for days in range(6):
        add_backup(peers, days)
    before = [info.name for info in repository.store.list("")]
    looked = _forget(peers, LOOK)
    assert [info.name for info in repository.store.list("")] == before
    _purge(peers, LOOK)
    _run(UpkeepPrune(peers).collect_garbage, LOOK)
    assert [info.name for info in repository.store.list("")] == before
    assert _forget(peers).told == looked.told


def test_holds_damage_and_strange_names_are_left_and_told(peers: Peers, repository: Repository) -> None:
    refs = [add_backup(peers, days) for days in range(7)]
    holds.place_hold(repository, refs[5], "jo@office", "case 7")
    assert isinstance(repository.store, LocalStore)
    (repository.store.root / manifest_name(refs[4])).write_bytes(b"nonsense")
    repository.store.put_if_absent(f"manifests/vc.vm/{refs[4].backup_id}x/strange", b"")
    page = _forget(peers)
    assert page.forgotten == 2
    assert page.held == 1
    assert {refs[4].backup_id, refs[5].backup_id} < {ref.backup_id for ref in list_known(repository)}
    assert f"backup vc.vm/{refs[4].backup_id} was kept, because it cannot be read" in page.problems[0]


def list_known(repository: Repository) -> list[BackupRef]:
    """Like `list_backups`, but for strange names."""
    names = [info.name.split("/") for info in repository.store.list("manifests/")]
    return [BackupRef(parts[1], parts[2]) for parts in names if len(parts) == 3]


def test_a_hold_that_comes_after_the_plan_is_seen(
    peers: Peers, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [add_backup(peers, days) for days in range(5)]
    real = audit.append

    def hold_meanwhile(*args: Any, **more: Any) -> Any:
        holds.place_hold(repository, refs[4], "jo@office", "just in time")
        monkeypatch.setattr(audit, "append", real)
        return real(*args, **more)

    monkeypatch.setattr(audit, "append", hold_meanwhile)
    page = _forget(peers)
    assert page.forgotten == 1
    assert "somebody holds it now" in page.problems[0]
    assert refs[4] in list_backups(repository)


def test_a_cancel_stops_between_two_backups_and_the_next_run_goes_on(
    peers: Peers, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in range(6):
        add_backup(peers, days)
    environment = ActivityEnvironment()
    monkeypatch.setattr(upkeep_prune, "BEAT_EVERY_S", 0.0)
    real = forgotten.forget

    def forget_one(*args: Any) -> None:
        real(*args)
        environment.cancel()

    monkeypatch.setattr(forgotten, "forget", forget_one)
    with pytest.raises(CancelledError):
        _run(UpkeepPrune(peers).forget_backups, STEP, environment)
    assert len(committed(repository)) == 5
    monkeypatch.setattr(forgotten, "forget", real)
    assert _forget(peers).forgotten == 2
    assert len(listed(peers)) == 4, "the run that was cut off left a row"
    _purge(peers)
    assert listed(peers) == committed(repository)


def test_pieces_and_tries_go_on_where_the_last_one_was(
    peers: Peers, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vm in ("vc.a", "vc.b", "vc.c"):
        for days in range(5):
            add_backup(peers, days, vc_guid=vm)
    monkeypatch.setattr(upkeep_prune, "PIECE_S", 0.0)
    first = _forget(peers)
    assert (first.after, first.vms, first.ended) == ("vc.a", 1, False)
    second = _forget(peers, PruneStep(media_agent="vault", after=first.after))
    assert (second.after, second.vms) == ("vc.b", 1)
    monkeypatch.setattr(upkeep_prune, "PIECE_S", 300.0)
    again = ActivityEnvironment()
    again.info = again.default_info().__class__(
        **{**vars(again.info), "heartbeat_details": [second.model_dump()]}
    )
    third = _run(UpkeepPrune(peers).forget_backups, STEP, again)
    assert (third.vms, third.ended) == (2, True), "what the try before has told is kept"
    assert [vm.vc_guid for vm in third.told] == ["vc.b", "vc.c"]
    assert len(committed(repository)) == 9


def test_what_was_forgotten_long_ago_is_purged_and_what_is_held_comes_back(
    peers: Peers, repository: Repository
) -> None:
    refs = [add_backup(peers, days) for days in range(6)]
    _forget(peers)
    old, held, young = refs[3], refs[4], refs[5]
    for ref in (old, held):
        set_age(repository, forgotten_name(ref), timedelta(days=7, minutes=1))
    holds.place_hold(repository, held, "jo@office", "case 7")
    found = _purge(peers)
    assert (found.purged, found.recovered, found.waiting, found.problems) == (1, 1, 1, [])
    assert held in list_backups(repository)
    assert held.backup_id in listed(peers)
    assert [item.ref for item in forgotten.list_forgotten(repository)] == [young]
    assert not repository.store.exists(index_name(old))
    assert ("purge", "vault") in _log(repository)
    assert ("recover", f"vc.vm/{held.backup_id}") in _log(repository)
    assert _forget(peers).forgotten == 0, "what is held is not forgotten again"


def test_the_collection_reports_its_numbers(peers: Peers, repository: Repository) -> None:
    for days in range(3):
        add_backup(peers, days)
    found: Collected = _run(UpkeepPrune(peers).collect_garbage, STEP)
    assert found.numbers["backups"] == 3
    assert found.freed_bytes == 0
    assert ("prune", "vault") in _log(repository)


def test_an_unknown_media_agent_is_named(peers: Peers) -> None:
    with pytest.raises(ApplicationError, match="no media agent 'cellar'; it has: vault"):
        _forget(peers, PruneStep(media_agent="cellar"))
