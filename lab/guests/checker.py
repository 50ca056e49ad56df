"""Prove that disk images show one point in time of a lab guest.

    report = check_point_in_time([Path("web-0.raw"), Path("web-1.raw")])
    report.require(frozen_sequence)          # raises NotOnePointInTimeError with the first problems

The images alone decide: see lab.guests.pattern. An image without a guest's superblock is listed in
`unchecked`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lab.guests.pattern import BLOCK_BYTES, GuestDisk, Plan, Superblock, make_block, read_tag, tail_bytes

_MAX_PROBLEMS = 50
_WINDOW_BLOCKS = 256
_ZEROS = bytes(BLOCK_BYTES)


class NotOnePointInTimeError(Exception):
    """The images do not show one point in time, or not the expected one."""


@dataclass
class Report:
    """What the images show.

    The images match the guest's disks after write number s for every s in `low` … `high` (more than one when
    the next writes went to disks that are not among the images). `problems` is empty when they match.
    """

    low: int = 0
    high: int = 0
    generation: int = 0
    blocks_checked: int = 0
    blocks_written: int = 0
    disks: list[int] = field(default_factory=list)
    missing_disks: list[int] = field(default_factory=list)
    unchecked: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def consistent(self) -> bool:
        """Whether the images are one point in time (of at least one guest disk)."""
        return bool(self.disks) and not self.problems

    def require(self, sequence: int | None = None) -> None:
        """Raise NotOnePointInTimeError unless consistent and, if given, exactly at write `sequence`."""
        if not self.disks:
            raise NotOnePointInTimeError("no image holds a lab guest's superblock")
        if self.problems:
            shown = "; ".join(self.problems[:5])
            message = f"{len(self.problems)} or more blocks do not fit one point in time: {shown}"
            raise NotOnePointInTimeError(message)
        if sequence is not None and not self.low <= sequence <= self.high:
            message = f"the images show write {self.low} to {self.high}, not the frozen write {sequence}"
            raise NotOnePointInTimeError(message)

    def add(self, problem: str) -> None:
        """Note a problem, at most 50."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


@dataclass
class _Image:
    path: Path
    disk: GuestDisk
    # Sequence of each pattern block that was found whole; a block that held zeros or its first content has 0.
    sequences: dict[int, int] = field(default_factory=dict)


def check_point_in_time(disk_files: list[Path]) -> Report:
    """Check raw images of one VM's disks, in any order, against each other. Errors: OSError."""
    report = Report()
    supers = {path: find_superblock(path) for path in disk_files}
    report.unchecked = [path for path, found in supers.items() if found is None]
    found_supers = [found for found in supers.values() if found is not None]
    if not found_supers:
        return report
    first = found_supers[0]
    images = []
    for path, found in supers.items():
        if found is None:
            continue
        if (found.seed, found.disks) != (first.seed, first.disks):
            report.add(f"{path} belongs to another guest than {disk_files[0]}")
            continue
        images.append(_Image(path, found.disks[found.disk]))
    report.disks = sorted(image.disk.index for image in images)
    if len(set(report.disks)) != len(report.disks):
        report.add(f"the same disk is there twice: {report.disks}")
    report.missing_disks = [d.index for d in first.disks if d.index not in report.disks]
    plan = Plan(first.seed, first.disks)
    for image in images:
        _scan(image, plan, report)
    _compare(images, plan, report)
    return report


def find_superblock(path: Path) -> Superblock | None:
    """The guest's superblock of a raw image: on a pattern disk block 0, in a file system wherever its file
    is.
    """
    with path.open("rb") as file:
        while window := file.read(BLOCK_BYTES * _WINDOW_BLOCKS):
            for offset in range(0, len(window) - BLOCK_BYTES + 1, BLOCK_BYTES):
                found = Superblock.decode(window[offset : offset + BLOCK_BYTES])
                if found is not None:
                    return found
    return None


def _scan(image: _Image, plan: Plan, report: Report) -> None:
    """Read the image once: what cannot change is compared here, sequences are noted for `_compare`."""
    disk = image.disk
    size = image.path.stat().st_size
    if size != disk.capacity_bytes:
        report.add(f"{image.path} has {size} bytes, the disk {disk.capacity_bytes}")
    with image.path.open("rb") as file:
        for block in range(disk.blocks):
            data = file.read(BLOCK_BYTES)
            if block == disk.superblock:
                continue
            writable = (disk.index, block) in plan.place_of
            if not writable and disk.content == "runs":
                continue
            report.blocks_checked += 1
            _scan_block(image, plan, report, block, data)
        tail = file.read()
    if disk.content == "whole" and tail != tail_bytes(disk.capacity_bytes % BLOCK_BYTES):
        report.add(f"disk {disk.index}: the last {len(tail)} bytes are not as they were made")


def _scan_block(image: _Image, plan: Plan, report: Report, block: int, data: bytes) -> None:
    disk = image.disk
    filled = disk.content == "runs" or disk.starts_filled(block)
    if data == _ZEROS:
        image.sequences[block] = 0
        if filled:
            report.add(f"disk {disk.index} block {block} is empty, but it held data from the start")
        return
    tag = read_tag(data)
    if tag is None:
        report.add(f"disk {disk.index} block {block} is no whole block of one write")
        return
    if (tag.disk, tag.block, tag.seed) != (disk.index, block, plan.seed & 0xFFFFFFFF):
        report.add(f"disk {disk.index} block {block} holds disk {tag.disk} block {tag.block}")
        return
    if tag.sequence == 0 and not filled:
        report.add(f"disk {disk.index} block {block} holds data that was never written there")
    if tag.sequence and plan.target(tag.sequence) != (disk.index, block):
        report.add(f"disk {disk.index} block {block} holds write {tag.sequence}, which went elsewhere")
        return
    image.sequences[block] = tag.sequence
    report.generation = max(report.generation, tag.generation)
    report.blocks_written += tag.sequence > 0
    report.low = max(report.low, tag.sequence)


def _compare(images: list[_Image], plan: Plan, report: Report) -> None:
    """Every block must hold its last write among the first `low`: the newest write seen on any image."""
    for image in images:
        for block, sequence in image.sequences.items():
            expected = plan.last_write(image.disk.index, block, report.low)
            if sequence != expected:
                report.add(
                    f"disk {image.disk.index} block {block} holds write {sequence}, but write {expected} "
                    f"had gone there before write {report.low}, which is on the images"
                )
    report.high = report.low
    indices = {image.disk.index for image in images}
    limit = report.low + 2 * len(plan.places)
    while plan.places and report.high < limit and plan.target(report.high + 1)[0] not in indices:
        report.high += 1


def initial_block(disk: GuestDisk, block: int, seed: int) -> bytes:
    """What a block of a guest disk holds before the first write."""
    if disk.content == "runs" or disk.starts_filled(block):
        return make_block(disk=disk.index, generation=0, block=block, sequence=0, seed=seed)
    return _ZEROS
