"""A repository opens only when this code understands it, and a store that only pretends cannot hold one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

from safehaul.errors import AlreadyExistsError, ConfigError, IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.canonical import canonical_json
from safehaul.media.envelope import Kind, unwrap, wrap
from safehaul.media.keys import SUITES, RepositoryKeys
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from tests.unit.media_backup import new_repository


def _change_config(folder: Path, **changes: object) -> None:
    path = folder / "repository" / "config"
    value = json.loads(path.read_text()) | changes
    value.pop("digest")
    value["digest"] = blake3(canonical_json(value)).hexdigest()
    path.write_bytes(canonical_json(value) + b"\n")


def test_what_init_makes_opens_again_and_info_shows_no_key(tmp_path: Path) -> None:
    made = new_repository(tmp_path)
    opened = Repository.open(LocalStore(tmp_path / "repository"))
    assert opened.config == made.config
    info = opened.info()
    assert (info.pack_count, info.backup_count, info.encrypted) == (0, 0, False)
    assert made.config.root_key not in str(info)
    assert made.config.root_key not in repr(made)


def test_a_second_init_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    before = new_repository(tmp_path).config
    with pytest.raises(AlreadyExistsError, match="already"):
        new_repository(tmp_path)
    assert Repository.open(LocalStore(tmp_path / "repository")).config == before


def test_no_repository_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="repo init"):
        Repository.open(LocalStore(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"features_required": ["encryption-v9"]}, {"suite": 9}],
)
def test_a_newer_format_is_refused_by_name(tmp_path: Path, changes: dict[str, object]) -> None:
    new_repository(tmp_path)
    _change_config(tmp_path, **changes)
    with pytest.raises(UnsupportedError, match=r"version 2|encryption-v9|cipher suite 9"):
        Repository.open(LocalStore(tmp_path / "repository"))


def test_a_feature_for_writing_still_lets_read(tmp_path: Path) -> None:
    new_repository(tmp_path)
    _change_config(tmp_path, features_for_writing=["later"])
    store = LocalStore(tmp_path / "repository")
    with pytest.raises(UnsupportedError, match="later"):
        Repository.open(store)
    assert Repository.open(store, for_writing=False).config.features_for_writing == ["later"]


def test_every_changed_byte_of_the_configuration_is_found(tmp_path: Path) -> None:
    new_repository(tmp_path)
    path = tmp_path / "repository" / "config"
    good = path.read_bytes()
    for place in range(len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises((IntegrityError, UnsupportedError, ConfigError)):
            Repository.open(LocalStore(tmp_path / "repository"))


class OverwritingStore(LocalStore):
    """A store that ignores put-if-absent, as `rclone serve s3` does."""

    def put_if_absent(self, name: str, data: bytes | bytearray | memoryview) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class RangelessStore(LocalStore):
    """A store that answers every range with the beginning."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return super().get_range(name, 0, length)


@pytest.mark.parametrize("kind", [OverwritingStore, RangelessStore])
def test_a_store_that_only_pretends_is_refused(tmp_path: Path, kind: type[LocalStore]) -> None:
    with pytest.raises(ConfigError, match="cannot hold a repository"):
        Repository.init(kind(tmp_path / "store"))


@pytest.mark.parametrize(("chunk", "pack"), [(1000, 1 << 20), (1 << 25, 1 << 26), (1 << 20, 1 << 19)])
def test_impossible_sizes_are_refused(tmp_path: Path, chunk: int, pack: int) -> None:
    with pytest.raises(ConfigError, match="size"):
        new_repository(tmp_path, chunk, pack)


@pytest.mark.parametrize("suite", sorted(SUITES))
@pytest.mark.parametrize("body", [b"", b"x", bytes(10_000), bytes(range(256)) * 4])
def test_every_changed_or_missing_byte_of_a_small_object_is_found(body: bytes, suite: int) -> None:
    key, name = RepositoryKeys(bytes(32), suite), "jobs/a/b"
    data = wrap(key, Kind.JOB, name, body)
    assert unwrap(key, Kind.JOB, name, data) == body
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 0x10
        with pytest.raises((IntegrityError, UnsupportedError), match=name):
            unwrap(key, Kind.JOB, name, bytes(bad))
        with pytest.raises((IntegrityError, UnsupportedError), match=name):
            unwrap(key, Kind.JOB, name, data[:place])


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_an_object_under_another_name_or_kind_is_found(suite: int) -> None:
    keys = RepositoryKeys(bytes(32), suite)
    data = wrap(keys, Kind.JOB, "jobs/a", b"x")
    with pytest.raises(IntegrityError):
        unwrap(keys, Kind.JOB, "jobs/b", data)
    with pytest.raises(IntegrityError):
        unwrap(keys, Kind.PAGE, "jobs/a", data)
    with pytest.raises(IntegrityError):
        unwrap(RepositoryKeys(b"1" * 32, suite), Kind.JOB, "jobs/a", data)
