"""A range of a disk is read alone, and what was read is at hand for the next read."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safehaul.errors import InvalidInputError
from safehaul.media.disk_view import DiskView
from safehaul.media.reader import BackupReader
from safehaul.media.store_local import LocalStore
from tests.unit.media_backup import CHUNK, DISK, back_up, new_repository, reopen

IMAGE = random.Random(1).randbytes(10 * CHUNK) + bytes(6 * CHUNK) + random.Random(2).randbytes(3 * CHUNK + 77)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many bytes of which packs are read."""
    counts: Counter[str] = Counter()
    plain = LocalStore.read_into

    def read_into(self: LocalStore, name: str, offset: int, buffer: memoryview) -> None:
        counts[name.partition("/")[0]] += len(buffer)
        plain(self, name, offset, buffer)

    monkeypatch.setattr(LocalStore, "read_into", read_into)
    return counts


@pytest.fixture
def reader(tmp_path: Path) -> Any:
    ref = back_up(new_repository(tmp_path), "run-1", IMAGE)
    found = BackupReader(reopen(tmp_path), *ref)
    yield found
    found.close()


def test_any_range_is_what_the_disk_holds(reader: BackupReader) -> None:
    view, chance = DiskView(reader, DISK, cache_bytes=3 * CHUNK), random.Random(3)
    assert view.size_bytes == len(IMAGE)
    for _ in range(300):
        start = chance.randrange(len(IMAGE) + 1)
        length = chance.choice([0, 1, 512, CHUNK, 5 * CHUNK])
        assert view.read(start, length) == IMAGE[start : start + length]


def test_only_the_touched_chunks_are_read_and_each_once(reader: BackupReader, reads: Counter[str]) -> None:
    view = DiskView(reader, DISK)
    assert view.read(3 * CHUNK + 10, 100) == IMAGE[3 * CHUNK + 10 : 3 * CHUNK + 110]
    first = reads["packs"]
    assert 0 < first < 2 * CHUNK
    for place in range(3 * CHUNK, 4 * CHUNK, 512):
        view.read(place, 512)
    assert reads["packs"] == first
    view.read(12 * CHUNK, CHUNK)
    assert reads["packs"] == first, "a hole is not stored"


def test_what_was_not_used_for_longest_is_forgotten(reader: BackupReader, reads: Counter[str]) -> None:
    view = DiskView(reader, DISK, cache_bytes=2 * CHUNK)
    for number in (0, 1, 0, 2):
        view.read(number * CHUNK, 1)
    seen = reads["packs"]
    view.read(0, 1)
    assert reads["packs"] == seen
    view.read(CHUNK, 1)
    assert reads["packs"] > seen


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (len(IMAGE) + 1, 1)])
def test_a_range_outside_of_the_disk_is_refused(reader: BackupReader, offset: int, length: int) -> None:
    with pytest.raises(InvalidInputError, match="is beyond"):
        DiskView(reader, DISK).read(offset, length)
    assert DiskView(reader, DISK).read(len(IMAGE), 10) == b""
