"""The local store: an object is durable before it is visible, and never overwritten; and which store a URL names.

What every kind of store must do is in tests/contract/test_object_stores.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from safehaul.errors import (
    AlreadyExistsError,
    ConfigError,
    InvalidInputError,
    RepositoryFullError,
    TransientError,
)
from safehaul.media.names import decode_segment, encode_segment
from safehaul.media.object_store import put_same, store_time
from safehaul.media.store import open_store
from safehaul.media.store_local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_bytes_are_synced_before_the_name_exists_and_the_folder_after(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_link = os.fsync, Path.hardlink_to

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"sync {'folder ' + path.name if path.is_dir() else 'bytes'}")
        real_fsync(descriptor)

    def link(self: Path, target: Path) -> None:
        events.append(f"link {self.name}")
        real_link(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "hardlink_to", link)
    store.put_if_absent("packs/ab/object", b"x")
    parent = store.root.parent.name
    assert events == [
        f"sync folder {parent}",
        "sync folder store",
        "sync folder packs",
        "sync bytes",
        "link object",
        "sync folder ab",
    ]


def test_an_object_is_never_overwritten_and_an_aborted_one_never_seen(store: LocalStore) -> None:
    store.put_if_absent("a", b"first")
    with pytest.raises(AlreadyExistsError):
        store.put_if_absent("a", b"second")
    put_same(store, "a", b"first")
    with pytest.raises(AlreadyExistsError):
        put_same(store, "a", b"other")
    upload = store.create("b")
    upload.write(b"half")
    upload.abort()
    upload.abort()
    assert not store.exists("b")
    assert [path.name for path in store.root.iterdir()] == ["a"]


def test_a_crashed_writer_leaves_only_what_can_be_removed_by_age(store: LocalStore) -> None:
    (store.root / "packs").mkdir(parents=True)
    (store.root / "packs" / ".new-0123").write_bytes(b"half")
    assert list(store.list("")) == []
    assert store.remove_abandoned(older_than_s=3600) == 0
    assert store.remove_abandoned(older_than_s=-1) == 1


def test_a_full_disk_is_told_as_such_and_leaves_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store.put_if_absent("packs/a", b"")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RepositoryFullError, match="make room in the repository"):
        store.put_if_absent("packs/b", b"x")
    assert [path.name for path in (store.root / "packs").iterdir()] == ["a"]


@pytest.mark.parametrize("url", ["ftp://host/x", "relative/path", "file://host/x", "file:x", "file:///x?y"])
def test_a_url_that_is_not_supported_says_what_is(url: str) -> None:
    with pytest.raises(ConfigError, match="file:///"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3:///x",
        "s3://user@bucket/x",
        "s3://bucket:1/x",
        "s3://bucket/x?y",
        "gs://bucket/a//b",
        "az://box/.x",
        "s3://b/" + "x" * 101,
    ],
)
def test_a_buckets_url_has_a_bucket_and_a_plain_prefix(url: str) -> None:
    with pytest.raises(ConfigError, match=f"must be {url[:5]}bucket or {url[:5]}bucket/prefix"):
        open_store(url)


def test_a_file_url_opens_the_folder_that_it_names(tmp_path: Path) -> None:
    store = open_store((tmp_path / "mit Leer zeichen").as_uri())
    store.put_if_absent("a", b"x")
    assert (tmp_path / "mit Leer zeichen" / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "text", ["nightly-1", "..", "../../etc/passwd", "a/b", "%2f", "größe", ".x", "\ud800", "A" * 60]
)
def test_foreign_text_becomes_one_segment_and_back(store: LocalStore, text: str) -> None:
    segment = encode_segment(text, what="name", reversible=True)
    assert "/" not in segment
    assert decode_segment(segment) == text
    store.put_if_absent(f"jobs/{segment}/a", b"x")


def test_long_text_stays_distinct_or_is_refused() -> None:
    one, two = encode_segment("x" * 900 + "1", what="id"), encode_segment("x" * 900 + "2", what="id")
    assert one != two
    assert max(len(one), len(two)) <= 200
    with pytest.raises(InvalidInputError, match="too long"):
        encode_segment("x" * 900, what="id", reversible=True)
    with pytest.raises(InvalidInputError, match="empty"):
        encode_segment("", what="id")


def test_the_stores_time_is_asked_again_when_another_process_took_the_object_for_a_dead_ones(
    store: LocalStore,
) -> None:
    put, gone = LocalStore.put_if_absent, 0

    def forgotten(self: LocalStore, name: str, data: bytes) -> None:
        nonlocal gone
        put(self, name, data)
        if gone < deletions:
            gone += 1
            self.delete(name)

    with patch.object(LocalStore, "put_if_absent", forgotten):
        deletions = 2
        assert abs(store_time(store) - time.time()) < 60
        assert list(store.list("clock/")) == []
        deletions = 9
        with pytest.raises(TransientError, match="does something delete objects there"):
            store_time(store)
