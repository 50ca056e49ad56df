"""Goal: a repository's lists may be merged, deleted and shared at any time; every committed backup stays readable."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehaul.media.envelope import Kind
from safehaul.media.locations import decode_locations, encode_locations
from safehaul.media.object_store import ObjectInfo
from safehaul.media.repository import Repository
from safehaul.media.repository_config import decode_config
from safehaul.media.store_local import LocalStore
from tests.unit.media_backup import KEY_FILE, SECRETS, back_up, new_repository, reopen, restore

IMAGE = random.Random(3).randbytes(200_000)
OTHER = random.Random(4).randbytes(100_000)


@pytest.fixture(params=SECRETS)
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    made = new_repository(tmp_path, secret=request.param)
    yield made
    made.close()


def _store(repository: Repository) -> LocalStore:
    assert isinstance(repository.store, LocalStore)
    return repository.store


def merge(repository: Repository) -> None:
    """Make one list of all, and delete the old ones, as a collection does."""
    names = [found.name for found in repository.store.list("idx/")]
    bodies = [decode_locations(repository.get(Kind.LOCATIONS, name), name) for name in names]
    body = encode_locations([listing for listings in bodies for listing in listings])
    repository.put_same(Kind.LOCATIONS, f"idx/{repository.content_name(body)}", body)
    for name in names:
        (_store(repository).root / name).unlink()


def kept(tmp_path: Path, folder: Path) -> Repository:
    store = LocalStore(tmp_path / "repository")
    secret = KEY_FILE if decode_config(store.get("config", 10_000)).encrypted else None
    return Repository.open(store, index_folder=folder, secret=secret)


def test_backups_go_on_from_merged_lists(repository: Repository, tmp_path: Path) -> None:
    first = back_up(repository, "run-1", IMAGE)
    second = back_up(repository, "run-2", OTHER, opened="20260102T000000Z")
    merge(repository)
    third = back_up(repository, "run-3", IMAGE + OTHER, opened="20260103T000000Z")
    merge(repository)
    packs = len(list(repository.store.list("packs/")))
    for opened in (repository, reopen(tmp_path)):
        assert restore(opened, first) == IMAGE
        assert restore(opened, second) == OTHER
        assert restore(opened, third) == IMAGE + OTHER
        back_up(opened, f"run-{id(opened)}", IMAGE, opened="20260104T000000Z")
    # The disk's end alone is another chunk than in the middle of a longer one; nothing else is stored twice.
    assert len(list(repository.store.list("packs/"))) == packs


def test_two_workers_share_a_kept_index(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = back_up(repository, "run-1", IMAGE)
    back_up(repository, "run-0", OTHER, opened="20260102T000000Z")
    one, other = kept(tmp_path, folder), kept(tmp_path, folder)
    one.refresh_index()
    count = one.index.chunk_count()
    assert other.index.chunk_count() == count > 0
    merge(repository)
    other.refresh_index()
    assert one.index.chunk_count() == count
    second = back_up(one, "run-2", IMAGE, opened="20260102T000000Z")
    assert restore(other, first) == restore(other, second) == IMAGE
    assert len(list(folder.glob("*.index"))) == 1
    one.close()
    other.close()
    third = kept(tmp_path, folder)
    assert third.index.chunk_count() == count
    third.close()


def test_a_list_that_is_merged_while_it_is_read_is_found_in_its_successor(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    late = reopen(tmp_path)
    listings = 0

    def list_then_merge(store: LocalStore, prefix: str = "") -> Iterator[ObjectInfo]:
        nonlocal listings
        found = list(real(store, prefix))
        if prefix == "idx/":
            listings += 1
            if listings == 1:
                monkeypatch.setattr(LocalStore, "list", real)
                back_up(repository, "run-2", OTHER, opened="20260102T000000Z")
                merge(repository)
                monkeypatch.setattr(LocalStore, "list", list_then_merge)
        yield from found

    real = LocalStore.list
    monkeypatch.setattr(LocalStore, "list", list_then_merge)
    late.refresh_index()
    assert listings == 2
    assert restore(late, ref) == IMAGE
    chunk = late.index.packs()[0]
    assert late.is_usable(chunk)
    late.close()


def test_lists_are_not_looked_for_at_each_disk_where_that_takes_long(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, listings = 1000.0, 0

    def slow(store: LocalStore, prefix: str = "") -> Iterator[ObjectInfo]:
        nonlocal clock, listings
        if prefix == "idx/":
            clock += 10.0
            listings += 1
        yield from real(store, prefix)

    real = LocalStore.list
    monkeypatch.setattr(LocalStore, "list", slow)
    monkeypatch.setattr("safehaul.media.repository.time.monotonic", lambda: clock)
    repository.refresh_index(lately=True)
    for _ in range(3):
        clock += 60
        repository.refresh_index(lately=True)
    assert listings == 1
    clock += 30
    repository.refresh_index(lately=True)
    assert listings == 2
    repository.refresh_index()
    assert listings == 3


def test_a_folder_that_cannot_be_used_is_warned_of_and_done_without(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        opened = kept(tmp_path, tmp_path / "file")
    assert "no chunk index is kept" in caplog.text
    assert "cache_dir" in caplog.text
    opened.refresh_index()
    assert restore(opened, ref) == IMAGE
    opened.close()


def test_a_kept_index_of_a_repository_that_was_made_again_is_not_believed(tmp_path: Path) -> None:
    """Another repository at the same place has another id; the same one, rolled back, has lost lists."""
    repository = new_repository(tmp_path)
    back_up(repository, "run-1", IMAGE)
    opened = kept(tmp_path, tmp_path / "cache")
    opened.refresh_index()
    chunk_id = opened.index._reader.execute("SELECT id FROM chunk").fetchone()[0]
    assert opened.usable(chunk_id) is not None
    for found in list(repository.store.list("idx/")):
        (_store(repository).root / found.name).unlink()
    opened.refresh_index()
    assert opened.usable(chunk_id) is None
    opened.close()
    repository.close()
