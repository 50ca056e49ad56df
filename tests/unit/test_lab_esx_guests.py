"""Goal: a lab guest's disks prove one point in time, and the checker sees every way in which they do not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.esx.guest_plan import pattern_disk, superblock
from lab.guests.checker import NotOnePointInTimeError, check_point_in_time, initial_block
from lab.guests.ext4 import make_image
from lab.guests.pattern import BLOCK_BYTES, GuestDisk, Plan, Superblock, make_block, read_tag, tail_bytes

SEED = 4711
DISKS = [pattern_disk(0, 256 * BLOCK_BYTES), pattern_disk(1, 100 * BLOCK_BYTES + 7 * 512)]


class Guest:
    """A guest on plain files, as the hosts would let it write."""

    def __init__(self, directory: Path) -> None:
        self.plan = Plan(SEED, DISKS)
        self.sequence = 0
        self.images = []
        for disk in DISKS:
            image = directory / f"disk{disk.index}.raw"
            blocks = [initial_block(disk, block, SEED) for block in range(disk.blocks)]
            blocks[0] = superblock(SEED, disk.index, DISKS)
            image.write_bytes(b"".join(blocks) + tail_bytes(disk.capacity_bytes % BLOCK_BYTES))
            self.images.append(image)

    def write(self, count: int, only: int | None = None) -> None:
        """`count` writes; with `only` those to other disks are lost."""
        for _ in range(count):
            self.sequence += 1
            disk, block = self.plan.target(self.sequence)
            if only is None or disk == only:
                self.put(disk, block, self.sequence)

    def put(self, disk: int, block: int, sequence: int) -> None:
        data = make_block(disk=disk, generation=1, block=block, sequence=sequence, seed=SEED)
        with self.images[disk].open("r+b") as file:
            file.seek(block * BLOCK_BYTES)
            file.write(data)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_the_plan_and_its_inverse_agree_over_several_rounds() -> None:
    plan = Plan(SEED, DISKS)
    last: dict[tuple[int, int], int] = {}
    for sequence in range(1, 4 * len(plan.places)):
        last[plan.target(sequence)] = sequence
        if sequence % 37 == 0:
            assert all(plan.last_write(*place, sequence) == last.get(place, 0) for place in plan.places)


@pytest.mark.parametrize("count", [0, 1, 50, 118, 119, 500])
def test_disks_after_any_write_are_one_point_in_time(guest: Guest, count: int) -> None:
    guest.write(count)
    report = check_point_in_time(guest.images)
    report.require(count)
    assert (report.low, report.missing_disks, report.unchecked) == (count, [], [])
    with pytest.raises(NotOnePointInTimeError, match="not the frozen write"):
        report.require(count + 1)


def test_one_of_two_disks_is_checked_against_what_it_can_show(guest: Guest) -> None:
    guest.write(60)
    report = check_point_in_time([guest.images[1]])
    report.require(60)
    assert report.missing_disks == [0]


def test_disks_frozen_at_different_moments_are_found_out(guest: Guest, tmp_path: Path) -> None:
    guest.write(40)
    earlier = shutil.copy(guest.images[0], tmp_path / "earlier.raw")
    guest.write(40)
    report = check_point_in_time([Path(earlier), guest.images[1]])
    with pytest.raises(NotOnePointInTimeError, match="had gone there before"):
        report.require()


def test_a_write_lost_on_one_disk_is_found_out(guest: Guest) -> None:
    guest.write(100)
    guest.write(10, only=1)
    guest.write(5)
    assert not check_point_in_time(guest.images).consistent


def test_a_block_of_two_writes_is_found_out(guest: Guest) -> None:
    guest.write(119)
    disk, block = guest.plan.target(119)
    newer = make_block(disk=disk, generation=1, block=block, sequence=119 + 119, seed=SEED)
    with guest.images[disk].open("r+b") as file:
        file.seek(block * BLOCK_BYTES + 3 * 512)
        file.write(newer[3 * 512 : 4 * 512])
    report = check_point_in_time(guest.images)
    assert any("no whole block" in problem for problem in report.problems)


def test_damage_where_the_guest_never_writes_is_found_out(guest: Guest) -> None:
    for offset in (2 * BLOCK_BYTES + 100, 100 * BLOCK_BYTES + 5):  # a cold block, and the incomplete last one
        raw = bytearray(guest.images[1].read_bytes())
        raw[offset] ^= 1
        damaged = guest.images[1].with_name(f"damaged-{offset}.raw")
        damaged.write_bytes(raw)
        assert not check_point_in_time([guest.images[0], damaged]).consistent


def test_a_misplaced_block_and_a_short_image_are_found_out(guest: Guest) -> None:
    guest.write(30)
    raw = guest.images[0].read_bytes()
    swapped = guest.images[0].with_name("swapped.raw")
    swapped.write_bytes(
        raw[: 4 * BLOCK_BYTES] + raw[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] + raw[5 * BLOCK_BYTES :]
    )
    assert not check_point_in_time([swapped, guest.images[1]]).consistent
    short = guest.images[0].with_name("short.raw")
    short.write_bytes(raw[:-BLOCK_BYTES])
    assert not check_point_in_time([short, guest.images[1]]).consistent


def test_an_image_without_a_guest_is_told_and_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "zeros.raw").write_bytes(bytes(64 * 1024))
    report = check_point_in_time([tmp_path / "zeros.raw"])
    assert report.unchecked == [tmp_path / "zeros.raw"]
    with pytest.raises(NotOnePointInTimeError, match="superblock"):
        report.require()


def test_blocks_and_superblocks_read_back_and_damage_is_seen() -> None:
    block = make_block(disk=3, generation=2, block=9, sequence=1 << 40, seed=SEED)
    tag = read_tag(block)
    assert tag is not None
    assert (tag.disk, tag.generation, tag.block, tag.sequence) == (3, 2, 9, 1 << 40)
    assert read_tag(block[:-1] + b"?") is None
    whole = Superblock(seed=SEED, disk=1, disks=DISKS).encode()
    assert Superblock.decode(whole) == Superblock(seed=SEED, disk=1, disks=DISKS)
    assert Superblock.decode(whole[:20] + b"?" + whole[21:]) is None


@pytest.mark.skipif(shutil.which("debugfs") is None, reason="apt-get install e2fsprogs")
def test_an_ext4_guest_overwrites_a_file_and_the_file_system_stays_clean(tmp_path: Path) -> None:
    image = tmp_path / "fs.raw"
    capacity_bytes = 16 * 1024 * 1024
    with image.open("wb") as file:
        file.truncate(capacity_bytes)
    runs = make_image(image, capacity_bytes, SEED)
    first = runs[0]
    rest = [first.model_copy(update={"start": first.start + 1, "count": first.count - 1}), *runs[1:]]
    disk = GuestDisk(
        index=0, capacity_bytes=capacity_bytes, superblock=first.start, runs=rest, content="runs"
    )
    plan = Plan(SEED, [disk])
    with image.open("r+b") as file:
        file.seek(first.start * BLOCK_BYTES)
        file.write(superblock(SEED, 0, [disk]))
        for _, block in plan.places:
            file.seek(block * BLOCK_BYTES)
            file.write(initial_block(disk, block, SEED))
        for sequence in range(1, 200):
            _, block = plan.target(sequence)
            file.seek(block * BLOCK_BYTES)
            file.write(make_block(disk=0, generation=1, block=block, sequence=sequence, seed=SEED))
    check_point_in_time([image]).require(199)
    done = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
