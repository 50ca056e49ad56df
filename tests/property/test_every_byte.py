"""A byte of any class of any object of a repository, changed or cut away, is found, and the object is named."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehaul.errors import SafehaulError
from safehaul.media import holds
from safehaul.media.audit import Action, append
from safehaul.media.collection import record_damaged
from safehaul.media.files import FileWriter
from safehaul.media.forgotten import forget
from safehaul.media.manifest import BackupIndex, write_index
from safehaul.media.pack import FRAME, HEADER_LENGTH
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.store_local import LocalStore
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    KEY_FILE,
    SECRETS,
    VM,
    back_up,
    contents,
    new_repository,
    new_session,
    write_disk,
)

FOOTER_LENGTH = 96
EDGE = 96
"""Bytes at both ends of an object that are all tried: headers, salts, digests, tags, footers."""


def image(seed: int, chunks: int) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK - 100)


@pytest.fixture(params=SECRETS)
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    """One object of every kind, at least."""
    repository = new_repository(tmp_path, secret=request.param)
    session = new_session(repository, "run-1")
    with FileWriter(session) as files:
        files.add("web-1.vmx", "config", b'guestOS = "debian"')
        files.finish()
    write_disk(session, image(1, 5))
    verify_session(session)
    ref = commit(session, contents(image(1, 5)))
    write_index(repository, BackupIndex(backup_id=ref.backup_id, vc_guid=VM, status="Completed"))
    given_up = back_up(repository, "run-2", image(2, 2), "20260102T000000Z")
    forget(repository, _store(repository), given_up, "daily 7")
    holds.place_hold(repository, ref, "auditor@site", "the auditors come")
    append(repository, Action.HOLD, f"{ref.vc_guid}/{ref.backup_id}", {})
    # Under way: records of a disk, and no outcome.
    under_way = new_session(repository, "run-3", "20260103T000000Z")
    with FileWriter(under_way) as files:
        files.add("web-1.vmx", "config", b'guestOS = "debian"')
        files.finish()
    # All of it is stored: packs that no backup has yet are read back before its commit, and not by a verification.
    with DiskWriter(under_way, DISK, 2 * len(image(1, 5))) as writer:
        writer.write(image(1, 5), 0)
    record_damaged(repository, [bytes(32)])
    return repository


def _store(repository: Repository) -> LocalStore:
    assert isinstance(repository.store, LocalStore)
    return repository.store


def _places(name: str, length: int) -> Iterator[int]:
    """Offsets of bytes of every class: all at the ends, of packs also those of the first frame, and some in between."""
    chance = random.Random(name)
    edge = HEADER_LENGTH + FRAME.size if name.startswith("packs/") else EDGE
    ends = {*range(min(edge, length)), *range(max(0, length - max(edge, FOOTER_LENGTH)), length)}
    yield from sorted(ends | {chance.randrange(length) for _ in range(20)})


def _named(repository: Repository, name: str) -> bool:
    """Does anybody who opens and verifies the repository learn that this object is not what it was?"""
    try:
        mine = Repository.open(repository.store, secret=KEY_FILE if repository.config.encrypted else None)
    except SafehaulError as error:
        return name in str(error)
    try:
        report = verify(mine, full=True)
    finally:
        mine.close()
    return any(item.object_name == name for item in report.damage)


def _check(repository: Repository, step: int) -> None:
    store = _store(repository)
    # What a session recorded on its way to a backup is never read again.
    passed = ("sessions/run-1/disk", "sessions/run-1/files", "sessions/run-2/disk")
    names = [found.name for found in store.list("") if not found.name.startswith(passed)]
    missed = []
    for name in names:
        path = store.root / name
        sound = path.read_bytes()
        chance = random.Random(name)
        places = list(_places(name, len(sound)))
        for place in places[chance.randrange(step) :: step]:
            broken = bytearray(sound)
            broken[place] ^= 1 << chance.randrange(8)
            path.write_bytes(broken)
            if not _named(repository, name):
                missed.append((name, f"byte {place} of {len(sound)}"))
        for length in sorted({0, 1, len(sound) // 2, len(sound) - 1})[chance.randrange(min(step, 4)) :: step]:
            path.write_bytes(sound[:length])
            if not _named(repository, name):
                missed.append((name, f"cut to {length} of {len(sound)}"))
        path.write_bytes(sound)
    assert missed == [], sorted({(name.split("/")[0], name.split("/")[-1][:12]) for name, _ in missed})
    kinds = {name.split("/")[0] for name in names}
    assert kinds >= {
        "config",
        "packs",
        "idx",
        "pages",
        "manifests",
        "index",
        "sessions",
        "forgotten",
        "holds",
        "gc",
    }


@pytest.mark.slow
def test_each_class_of_bytes_of_each_object(repository: Repository) -> None:
    _check(repository, 1)


def test_some_bytes_of_each_object(repository: Repository) -> None:
    _check(repository, 40)
