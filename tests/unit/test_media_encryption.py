"""An encrypted repository tells nothing to who lacks its secret, and nobody without it can change it unseen."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from pydantic import SecretBytes

from safehaul.errors import (
    ConfigError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    SafehaulError,
    UnsupportedError,
)
from safehaul.media.canonical import canonical_json
from safehaul.media.key_slots import RepositorySecret, add_slot, remove_slot, slots, unlock
from safehaul.media.pack import SealedPack
from safehaul.media.pack_check import PackChecker
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from safehaul.media.verify import verify
from tests.unit.media_backup import (
    CHUNK,
    KEY_FILE,
    back_up,
    flip,
    new_repository,
    pack_paths,
    reopen,
    restore,
)

TEXT = b"a secret of the guest " * 400
IMAGE = TEXT[: 2 * CHUNK] + random.Random(5).randbytes(3 * CHUNK)
PASSPHRASE = RepositorySecret("passphrase", SecretBytes("fünf Wörter aus einem Hut".encode()))
OTHER = RepositorySecret("passphrase", SecretBytes(b"another passphrase"))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path, secret=KEY_FILE)


def store_of(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "repository")


def root_key_of(repository: Repository) -> bytes:
    return unlock(repository.store, repository.config.repository_id, KEY_FILE)[0]


def rewrite(path: Path, **changes: object) -> None:
    """Change a JSON object as somebody does who knows the format, and not the key."""
    value = json.loads(path.read_bytes()) | changes
    value.pop("digest")
    value["digest"] = blake3(canonical_json(value)).hexdigest()
    path.write_bytes(canonical_json(value) + b"\n")


def test_no_object_holds_a_byte_of_the_guest_the_key_or_the_vms_name(
    repository: Repository, tmp_path: Path
) -> None:
    back_up(repository, "run-1", IMAGE)
    root_key = root_key_of(repository)
    secrets = [TEXT[:22], IMAGE[3 * CHUNK : 3 * CHUNK + 16], root_key, root_key.hex().encode(), b"web 1"]
    for path in (tmp_path / "repository").rglob("*"):
        if path.is_file():
            assert [text for text in secrets if text in path.read_bytes()] == [], path


def test_equal_disks_of_two_repositories_have_nothing_in_common(tmp_path: Path) -> None:
    objects = []
    for name in ("a", "b"):
        repository = new_repository(tmp_path / name, secret=KEY_FILE)
        back_up(repository, "run-1", IMAGE)
        pages = (tmp_path / name / "repository" / "pages").rglob("*")
        objects.append({path.name for path in pages if path.is_file()})
    assert objects[0]
    assert not objects[0] & objects[1]


def test_each_slot_opens_it_until_it_is_removed(repository: Repository, tmp_path: Path) -> None:
    ref = back_up(repository, "run-1", IMAGE)
    store, identity = store_of(tmp_path), repository.config.repository_id
    before = {path: path.read_bytes() for path in pack_paths(repository)}
    added = add_slot(store, root_key_of(repository), identity, PASSPHRASE, "ops")
    assert [slot.label for slot in slots(store, identity) if slot.slot_id == added.slot_id] == ["ops"]
    assert restore(Repository.open(store, secret=PASSPHRASE), ref) == IMAGE
    assert restore(Repository.open(store, secret=KEY_FILE), ref) == IMAGE
    first = next(slot.slot_id for slot in slots(store, identity) if slot.slot_id != added.slot_id)
    remove_slot(store, identity, first)
    with pytest.raises(ConfigError, match=r"none of the 0 key slots for a key file .* its slot was removed"):
        Repository.open(store, secret=KEY_FILE)
    assert restore(Repository.open(store, secret=PASSPHRASE), ref) == IMAGE
    with pytest.raises(PolicyError, match="the last one"):
        remove_slot(store, identity, added.slot_id)
    with pytest.raises(NotFoundError, match=added.slot_id):
        remove_slot(store, identity, "0" * 16)
    assert before == {path: path.read_bytes() for path in pack_paths(repository)}, "no data was rewritten"


def test_a_wrong_or_missing_secret_is_told(tmp_path: Path) -> None:
    new_repository(tmp_path, secret=PASSPHRASE)
    with pytest.raises(ConfigError, match="opens none of the 1 key slots for a passphrase") as refused:
        Repository.open(store_of(tmp_path), secret=OTHER)
    assert "another passphrase" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"is encrypted: give its passphrase or key_file"):
        Repository.open(store_of(tmp_path))


def test_a_plain_repository_in_the_place_of_an_encrypted_one_is_refused(tmp_path: Path) -> None:
    """Who can write to the store could have all later backups written in the clear."""
    new_repository(tmp_path)
    with pytest.raises(ConfigError, match="is not encrypted, and the configuration has"):
        Repository.open(store_of(tmp_path), secret=KEY_FILE)


@pytest.mark.parametrize(
    "changes", [{"chunk_size_bytes": 8192}, {"features_for_writing": ["x"]}, {"sealed": "0" * 64}]
)
def test_a_config_changed_without_the_key_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    new_repository(tmp_path, secret=KEY_FILE)
    rewrite(tmp_path / "repository" / "config", **changes)
    with pytest.raises(IntegrityError, match="changed by somebody without the key"):
        Repository.open(store_of(tmp_path), secret=KEY_FILE, for_writing=False)


@pytest.mark.parametrize("changes", [{"label": "x"}, {"created": "20200101T000000Z"}, {"salt": "ab" * 32}])
def test_a_slot_changed_without_the_key_opens_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    new_repository(tmp_path, secret=KEY_FILE)
    (slot,) = (tmp_path / "repository" / "keys").iterdir()
    rewrite(slot, **changes)
    with pytest.raises(ConfigError, match="opens none of the 1 key slots"):
        Repository.open(store_of(tmp_path), secret=KEY_FILE)


@pytest.mark.parametrize(
    "changes", [{"iterations": 10**6}, {"memory_kib": 2**30}, {"method": "psychic"}, {"wrapped": "00"}]
)
def test_a_slot_that_asks_for_the_impossible_is_damage(tmp_path: Path, changes: dict[str, object]) -> None:
    new_repository(tmp_path, secret=PASSPHRASE)
    (slot,) = (tmp_path / "repository" / "keys").iterdir()
    rewrite(slot, **changes)
    with pytest.raises(IntegrityError, match=r"keys/\w+ is damaged"):
        Repository.open(store_of(tmp_path), secret=PASSPHRASE)


def test_any_changed_byte_of_config_or_slot_is_found(tmp_path: Path) -> None:
    new_repository(tmp_path, secret=KEY_FILE)
    for path in (tmp_path / "repository" / "config", *(tmp_path / "repository" / "keys").iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole) - 1, 3):
            flip(path, place)
            with pytest.raises(SafehaulError):
                Repository.open(store_of(tmp_path), secret=KEY_FILE)
            path.write_bytes(whole)
    assert reopen(tmp_path)


def test_a_damaged_slot_keeps_nobody_out_who_has_another(repository: Repository, tmp_path: Path) -> None:
    add_slot(repository.store, root_key_of(repository), repository.config.repository_id, PASSPHRASE, "")
    by_method = {slot.method: slot for slot in slots(repository.store, repository.config.repository_id)}
    flip(tmp_path / "repository" / by_method["key-file"].object_name, 40)
    assert Repository.open(store_of(tmp_path), secret=PASSPHRASE)
    with pytest.raises(IntegrityError, match="keys/"):
        Repository.open(store_of(tmp_path), secret=KEY_FILE)


def test_every_byte_of_a_sealed_pack_counts(repository: Repository) -> None:
    back_up(repository, "run-1", IMAGE)
    path = pack_paths(repository)[0]
    whole = path.read_bytes()
    pack = SealedPack(bytes.fromhex(path.name), len(whole))
    checker = PackChecker(repository)

    def is_sound() -> bool:
        try:
            return checker.check(pack).sound
        except UnsupportedError:
            # A changed version looks like a newer one.
            return False

    entries = checker.check(pack).entries
    assert entries
    keys = repository.keys
    headers_and_tags = whole[:64] + b"".join(
        whole[entry.offset : entry.offset + 48] + whole[entry.end - 16 : entry.end] for entry in entries
    )
    footer = len(whole) - 96
    assert blake3(headers_and_tags, key=keys.object).digest() == whole[footer + 16 : footer + 48]
    frames = {
        place for entry in entries for place in (*range(entry.offset, entry.offset + 48), entry.end - 1)
    }
    for place in sorted({*range(0, len(whole), 97), *range(64), *range(footer, len(whole)), *frames}):
        flip(path, place)
        assert not is_sound(), f"byte {place}"
        path.write_bytes(whole)
    assert is_sound()


def test_frames_of_one_pack_do_not_open_in_another(repository: Repository, tmp_path: Path) -> None:
    """An old pack under a new pack's name, bytes and digests intact as far as nobody needs the key for them."""
    back_up(repository, "run-1", IMAGE)
    before = pack_paths(repository)
    ref = back_up(repository, "run-2", IMAGE[::-1], "20260102T000000Z")
    old, new = before[0], next(path for path in pack_paths(repository) if path not in before)
    shutil.copyfile(old, new)
    with pytest.raises(IntegrityError):
        restore(reopen(tmp_path), ref)
    assert new.name in verify(reopen(tmp_path), full=True).damaged_packs


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (RepositorySecret("passphrase", SecretBytes(b"short")), "shorter than 12 characters"),
        (RepositorySecret("key-file", SecretBytes(b"x" * 31)), "31 bytes, fewer than 32"),
    ],
)
def test_a_secret_that_is_none_makes_no_repository(
    tmp_path: Path, secret: RepositorySecret, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        new_repository(tmp_path, secret=secret)
    assert not (tmp_path / "repository" / "config").exists()
    assert "short" not in repr(secret)
