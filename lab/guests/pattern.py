"""What a lab guest writes: blocks that prove, by themselves, which point in time a set of disks shows.

A disk is a row of 4 KiB blocks. A *pattern block* has eight sectors; each begins with the same 32-byte tag:

    magic "LGB1", disk index u16, generation u16, block number u32, sequence u64, seed u32, fill u32, CRC-32
    u32

(little-endian), followed by 480 bytes of a fill that differs from sector to sector. The CRC covers the tag's
first 28 bytes and all eight fills, so a block mixed from two writes, even in one sector, is found.

The guest numbers its writes 1, 2, 3 … over *all* disks of the VM: that is the sequence. Where write number s
goes is not a choice but a function of (seed, s): see `Plan`. So, for any s, the content of every block after
write s is known, and a set of images either matches one s or is not one point in time.

The first pattern block of each disk is never overwritten: it holds the plan as JSON (`Superblock`), so that
the images alone are enough for the check.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Literal

from pydantic import BaseModel, Field

BLOCK_BYTES = 4096
SECTOR_BYTES = 512
SECTORS_PER_BLOCK = BLOCK_BYTES // SECTOR_BYTES

_TAG = struct.Struct("<4sHHIQII")
_CRC = struct.Struct("<I")
TAG_BYTES = _TAG.size + _CRC.size
_MAGIC = b"LGB1"
_SUPER_MAGIC = b"LGS1"
_SUPER_HEADER = struct.Struct("<4sII")
_FILL_COUNT = 32
_FILL_BYTES = SECTOR_BYTES - TAG_BYTES
# Steps of the walk over all writable blocks; the first that shares no factor with their count is used.
_STEPS = (2_654_435_761, 40_503, 7_919, 104_729, 1_299_709, 15_485_863, 32_452_843)
_MASK64 = (1 << 64) - 1


def _make_fills() -> list[tuple[bytes, ...]]:
    """32 fills of eight pieces: half noise, half text, so that compression has something to do."""
    noise = random.Random(20_240_229)
    fills = []
    for number in range(_FILL_COUNT):
        if number % 2:
            pieces = [noise.randbytes(_FILL_BYTES) for _ in range(SECTORS_PER_BLOCK)]
        else:
            line = f"fill {number} of the lab's guest, sector {{}}: " + "the quick brown fox. " * 24
            pieces = [line.format(sector).encode()[:_FILL_BYTES] for sector in range(SECTORS_PER_BLOCK)]
        fills.append((b"", *pieces))
    return fills


_FILLS = _make_fills()
_FILL_CRCS = [zlib.crc32(b"".join(fill)) for fill in _FILLS]


@dataclass(frozen=True)
class Tag:
    """What a pattern block says about itself."""

    disk: int
    generation: int
    block: int
    sequence: int
    seed: int
    fill: int


def make_block(*, disk: int, generation: int, block: int, sequence: int, seed: int) -> bytes:
    """One pattern block of 4096 bytes. `sequence` 0 is the content from before the guest's first write."""
    fill = (sequence * 7 + block * 5 + disk) % _FILL_COUNT
    tag = _TAG.pack(_MAGIC, disk, generation, block, sequence, seed & 0xFFFFFFFF, fill)
    return (tag + _CRC.pack(zlib.crc32(tag, _FILL_CRCS[fill]))).join(_FILLS[fill])


def read_tag(data: bytes) -> Tag | None:
    """The tag of a whole pattern block; None when it is none, or a mixed or damaged one."""
    if data[:4] != _MAGIC:
        return None
    _, disk, generation, block, sequence, seed, fill = _TAG.unpack_from(data)
    whole = make_block(disk=disk, generation=generation, block=block, sequence=sequence, seed=seed)
    return Tag(disk, generation, block, sequence, seed, fill) if whole == data else None


def tail_bytes(length_bytes: int) -> bytes:
    """What stands in the last, incomplete block of a pattern disk."""
    return b"".join(_FILLS[1])[:length_bytes]


class Run(BaseModel):
    """`count` blocks: the first at `start`, the others each `stride` after the one before."""

    start: int = Field(ge=0)
    count: int = Field(ge=0)
    stride: int = Field(default=1, ge=1)


class GuestDisk(BaseModel):
    """One disk of the guest: where its writer may write, and whether the rest is pattern too (`whole`)."""

    index: int = Field(ge=0, le=0xFFFF)
    capacity_bytes: int = Field(ge=0)
    superblock: int = Field(ge=0)
    runs: list[Run]
    content: Literal["whole", "runs"] = "whole"

    @property
    def blocks(self) -> int:
        """Whole blocks of the disk."""
        return self.capacity_bytes // BLOCK_BYTES

    def starts_filled(self, block: int) -> bool:
        """Whether the block held a pattern block (sequence 0) before the first write; else it held zeros."""
        return block // 16 % 4 != 3


class Superblock(BaseModel):
    """The plan as it stands on each disk: `disk` is this disk's index in `disks`."""

    seed: int
    disk: int
    disks: list[GuestDisk]

    def encode(self) -> bytes:
        """4096 bytes: magic "LGS1", JSON length u32, CRC-32 of the JSON u32, JSON, zeros."""
        text = json.dumps(self.model_dump(mode="json"), separators=(",", ":")).encode()
        if len(text) > BLOCK_BYTES - _SUPER_HEADER.size:
            message = f"the guest's plan takes {len(text)} bytes: too many runs for one block"
            raise ValueError(message)
        return (_SUPER_HEADER.pack(_SUPER_MAGIC, len(text), zlib.crc32(text)) + text).ljust(
            BLOCK_BYTES, b"\0"
        )

    @staticmethod
    def decode(data: bytes) -> Superblock | None:
        """The superblock in a block, or None when there is none or it is damaged."""
        if data[:4] != _SUPER_MAGIC:
            return None
        _, length, checksum = _SUPER_HEADER.unpack_from(data)
        text = data[_SUPER_HEADER.size : _SUPER_HEADER.size + length]
        if zlib.crc32(text) != checksum:
            return None
        return Superblock.model_validate_json(text)


class Plan:
    """Where each write of a guest goes.

    All writable blocks, disk after disk, are numbered 0 … N-1. Writes are grouped in rounds of N; in round r
    write i goes to place (a·i + c) mod N, with a and c from (seed, r) and a coprime to N. So each round
    writes every block once, jumping between the disks, and both directions are one multiplication.
    """

    def __init__(self, seed: int, disks: list[GuestDisk]) -> None:
        self.seed = seed
        self.disks = disks
        self._runs = [(disk.index, run) for disk in disks for run in disk.runs if run.count]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(disk index, block) of each place."""
        return [
            (disk, run.start + number * run.stride) for disk, run in self._runs for number in range(run.count)
        ]

    @cached_property
    def place_of(self) -> dict[tuple[int, int], int]:
        """The place of each writable (disk index, block)."""
        return {place: number for number, place in enumerate(self.places)}

    def _round(self, number: int) -> tuple[int, int]:
        count = len(self.places)
        mixed = (self.seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) & _MASK64
        mixed ^= mixed >> 31
        first = mixed % len(_STEPS)
        steps = (_STEPS[(first + offset) % len(_STEPS)] for offset in range(len(_STEPS)))
        return next((step for step in steps if gcd(step, count) == 1), 1), (mixed >> 8) % count

    def target(self, sequence: int) -> tuple[int, int]:
        """(disk index, block) of write number `sequence` (≥ 1)."""
        number, index = divmod(sequence - 1, len(self.places))
        step, offset = self._round(number)
        return self.places[(step * index + offset) % len(self.places)]

    def last_write(self, disk: int, block: int, sequence: int) -> int:
        """The last write to a block among the first `sequence` writes; 0 when there was none."""
        place = self.place_of.get((disk, block))
        if place is None or sequence < 1:
            return 0
        count = len(self.places)
        newest = (sequence - 1) // count
        for number in (newest, newest - 1):
            if number < 0:
                return 0
            step, offset = self._round(number)
            found = number * count + (place - offset) * pow(step, -1, count) % count + 1
            if found <= sequence:
                return found
        message = f"write plan is broken at disk {disk} block {block}"
        raise AssertionError(message)
