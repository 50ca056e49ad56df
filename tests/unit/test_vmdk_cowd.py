"""Goal: each impossible number in a redo log is named as damage, never followed; clean logs list what they hold."""

from __future__ import annotations

import struct

import pytest

from safehaul.errors import IntegrityError, SafehaulError, UnsupportedError
from safehaul.vmdk.cowd import CowdExtent
from tests.vmdk_images import SECTOR, cowd_bytes

SECTORS = 10_000
GRAINS = [(number, bytes([number % 251]) * SECTOR) for number in (0, 1, 2, 4095, 4096, 9999)]
GOOD = cowd_bytes(SECTORS, GRAINS)
DIRECTORY = 4 * SECTOR
(FIRST_TABLE,) = struct.unpack_from("<I", GOOD, DIRECTORY)
FILE_SECTORS = len(GOOD) // SECTOR


class _Bytes:
    """A file in memory, for damage that is easier to make there."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size_bytes = len(content)
        self.asked_bytes = 0

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        assert offset_bytes + len(buffer) <= len(self.content), "read outside the file"
        self.asked_bytes += len(buffer)
        memoryview(buffer)[:] = self.content[offset_bytes : offset_bytes + len(buffer)]
        return len(buffer)

    def close(self) -> None:
        pass


def _changed(place: int, number: int) -> bytes:
    raw = bytearray(GOOD)
    struct.pack_into("<I", raw, place, number)
    return bytes(raw)


def _read(content: bytes, sectors: int = SECTORS) -> None:
    extent = CowdExtent(_Bytes(content), "[ds] d-delta.vmdk", sectors)
    buffer = memoryview(bytearray(extent.length_bytes))
    extent.read(extent.pieces(0, extent.length_bytes), buffer, 0)


def test_what_a_log_holds_is_listed_and_read() -> None:
    file = _Bytes(GOOD)
    extent = CowdExtent(file, "x", SECTORS)
    found = [(start // SECTOR, end // SECTOR) for start, end in extent.allocated_ranges()]
    assert found == [(0, 3), (4095, 4097), (9999, 10_000)]
    buffer = memoryview(bytearray(3 * SECTOR))
    extent.read(extent.pieces(0, len(buffer)), buffer, 0)
    assert bytes(buffer) == b"".join(content for _, content in GRAINS[:3])
    asked = file.asked_bytes
    assert extent.pieces(100, 200)
    assert file.asked_bytes == asked, "the table is cached"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_changed(0, 0x12345678), IntegrityError),
        (_changed(0, 0xCAFEBABE), UnsupportedError),
        (_changed(4, 2), UnsupportedError),
        (_changed(12, SECTORS + 1), IntegrityError),
        (_changed(16, 0), IntegrityError),
        (_changed(16, 3), IntegrityError),
        (_changed(16, 256), IntegrityError),
        (_changed(20, 3), IntegrityError),
        (_changed(20, FILE_SECTORS), IntegrityError),
        (_changed(20, 0xFFFFFFFF), IntegrityError),
        (_changed(24, 2), IntegrityError),
        (_changed(DIRECTORY, 1), IntegrityError),
        (_changed(DIRECTORY, FILE_SECTORS - 31), IntegrityError),
        (_changed(DIRECTORY, 0xFFFFFFFF), IntegrityError),
        (_changed(FIRST_TABLE * SECTOR, 4), IntegrityError),
        (_changed(FIRST_TABLE * SECTOR, FILE_SECTORS), IntegrityError),
        (_changed(FIRST_TABLE * SECTOR + 8000, 0xFFFFFFFF), IntegrityError),
        (GOOD[:100], IntegrityError),
        (GOOD[: 4 * SECTOR], IntegrityError),
        (GOOD[:-SECTOR], IntegrityError),
        (b"", IntegrityError),
    ],
)
def test_damage_is_named(content: bytes, expected: type[SafehaulError]) -> None:
    with pytest.raises(expected, match="d-delta"):
        _read(content)


def test_more_directory_entries_than_needed_are_not_read() -> None:
    """Goal: the entries that the header claims never decide how much is allocated."""
    file = _Bytes(_changed(24, 0xFFFFFFFF))
    CowdExtent(file, "x", SECTORS)
    assert file.asked_bytes < 4096


def test_tables_beyond_the_cache_are_read_again_and_right() -> None:
    sectors = 4096 * 80
    grains = [(number * 4096 + 5, bytes([number + 1]) * SECTOR) for number in range(80)]
    extent = CowdExtent(_Bytes(cowd_bytes(sectors, grains)), "x", sectors)
    for _ in range(2):
        for number, content in grains:
            buffer = memoryview(bytearray(SECTOR))
            extent.read(extent.pieces(number * SECTOR, number * SECTOR + SECTOR), buffer, number * SECTOR)
            assert bytes(buffer) == content
