"""The local store: an object is durable before it is visible, never overwritten, and never outside its folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from safehaul.errors import (
    AlreadyExistsError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    RepositoryFullError,
)
from safehaul.media.names import decode_segment, encode_segment
from safehaul.media.object_store import put_same
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


def test_of_many_writers_of_one_name_exactly_one_succeeds(store: LocalStore) -> None:
    start = threading.Barrier(8)
    won: list[bytes] = []

    def put(data: bytes) -> None:
        start.wait()
        try:
            store.put_if_absent("manifests/a", data)
        except AlreadyExistsError:
            return
        won.append(data)

    threads = [threading.Thread(target=put, args=(bytes([number]) * 100_000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("manifests/a", 1 << 20) == won[0]
    assert [found.name for found in store.list("")] == ["manifests/a"]


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


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.b", "a\0", "a b", "ä"]
)
def test_no_name_leaves_the_store(store: LocalStore, name: str) -> None:
    with pytest.raises(InvalidInputError):
        store.put_if_absent(name, b"")
    with pytest.raises(InvalidInputError):
        list(store.list(name + "/"))


def test_reads_say_what_is_wrong(store: LocalStore) -> None:
    store.put_if_absent("a", b"0123456789")
    assert store.get_range("a", 2, 3) == b"234"
    assert store.size("a") == 10
    with pytest.raises(IntegrityError, match="truncated"):
        store.get_range("a", 8, 3)
    with pytest.raises(IntegrityError, match="larger"):
        store.get("a", 9)
    for read in (store.size, lambda name: store.get(name, 1), lambda name: store.get_range(name, 0, 1)):
        with pytest.raises(NotFoundError):
            read("b")


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


def test_listing_is_in_the_order_of_the_names(store: LocalStore) -> None:
    names = ["a/b", "a-b", "a.b", "a0", "b/a/c", "b/a.c"]
    for name in names:
        store.put_if_absent(name, b"x")
    assert [found.name for found in store.list("")] == sorted(names)
    assert [found.name for found in store.list("b/")] == ["b/a.c", "b/a/c"]


@pytest.mark.parametrize("url", ["s3://bucket/x", "relative/path", "file://host/x", "file:x", "file:///x?y"])
def test_a_url_that_is_not_supported_says_what_is(url: str) -> None:
    with pytest.raises(ConfigError, match="file:///"):
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
