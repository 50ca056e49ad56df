"""What an unfinished backup has stored is of use to the next one, if it is sound; or it is given up, for good."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safehaul.errors import StaleLeaseError
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.outcome import read_outcome
from safehaul.media.seal import commit, verify_session
from safehaul.media.unfinished import Left, give_up, list_unfinished
from safehaul.media.writer import DiskWriter
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    SECRETS,
    back_up,
    contents,
    flip,
    new_repository,
    new_session,
    pack_paths,
    reopen,
    restore,
    write_disk,
)

IMAGE = random.Random(3).randbytes(40 * CHUNK)


def _nothing(_progress: str) -> None:
    return


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("kept", [True, False])
def test_the_next_backup_stores_nothing_that_an_unfinished_one_has_stored(
    tmp_path: Path, secret: RepositorySecret | None, *, kept: bool
) -> None:
    """And without the list it stores all of it again: that is what the list is for."""
    session = new_session(new_repository(tmp_path, secret=secret), "cancelled")
    write_disk(session, IMAGE)
    if kept:
        left = list_unfinished(session, _nothing)
        assert left.packs == left.listed > 1
        assert list_unfinished(session, _nothing) == left, "a second run changes nothing"
    before = len(pack_paths(session.repository))
    repository = reopen(tmp_path)
    second = new_session(repository, "next", "20260102T000000Z")
    write_disk(second, IMAGE)
    assert (len(pack_paths(repository)) == before) is kept
    verify_session(second)
    assert restore(repository, commit(second, contents(IMAGE))) == IMAGE


def test_what_is_kept_goes_on_in_its_own_session_too(tmp_path: Path) -> None:
    """A node that was cut off goes on: the list has not ended its session."""
    session = new_session(new_repository(tmp_path), "goes on")
    half = IMAGE[: 20 * CHUNK]
    with DiskWriter(session, DISK, len(IMAGE)) as writer:
        writer.write(half, 0)
    list_unfinished(session, _nothing)
    write_disk(session, IMAGE)
    verify_session(session)
    assert restore(session.repository, commit(session, contents(IMAGE))) == IMAGE


def test_a_pack_that_does_not_read_back_is_not_listed(tmp_path: Path) -> None:
    """A later backup relies on what it finds, and reads back only what it has written itself."""
    session = new_session(new_repository(tmp_path), "cancelled")
    write_disk(session, IMAGE)
    damaged, lost = pack_paths(session.repository)[:2]
    flip(damaged, 200)
    lost.unlink()
    left = list_unfinished(session, _nothing)
    assert left.listed == left.packs - 2
    repository = reopen(tmp_path)
    assert restore(repository, back_up(repository, "next", IMAGE, "20260102T000000Z")) == IMAGE


def test_who_is_stopped_has_listed_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safehaul.media.unfinished._PACKS_AT_ONCE", 2)
    session = new_session(new_repository(tmp_path), "cancelled")
    write_disk(session, IMAGE)

    def stop(progress: str) -> None:
        if progress.startswith("reading back pack 6"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list_unfinished(session, stop)
    assert list((tmp_path / "repository" / "idx").iterdir())
    left = list_unfinished(session, _nothing)
    assert left.listed == left.packs


def test_what_is_given_up_can_neither_go_on_nor_be_committed(tmp_path: Path) -> None:
    session = new_session(new_repository(tmp_path), "cancelled")
    write_disk(session, IMAGE)
    assert give_up(session, "nobody wants it") == give_up(session, "once more") == Left(0, 0)
    outcome = read_outcome(session.repository, session.prefix)
    assert outcome is not None
    assert outcome.fenced == "nobody wants it"
    with pytest.raises(StaleLeaseError):
        DiskWriter(session, DISK, len(IMAGE))
    verify_session(session)
    with pytest.raises(StaleLeaseError):
        commit(session, contents(IMAGE))
    assert list_unfinished(session, _nothing) == Left(0, 0)


def test_a_backup_that_was_committed_is_never_given_up(tmp_path: Path) -> None:
    repository = new_repository(tmp_path)
    ref = back_up(repository, "whole", IMAGE)
    session = new_session(repository, "whole")
    give_up(session, "a message that came late")
    assert list_unfinished(session, _nothing) == Left(0, 0)
    assert restore(repository, ref) == IMAGE
