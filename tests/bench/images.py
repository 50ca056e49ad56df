"""The disks that are backed up: made once from the machine's own files, kept below build/bench.

`ext4` holds files of this machine on 64 % of its size; `day2` is the same with 4 % overwritten in scattered extents by
other files' bytes (it need not be a clean file system); `random` has 10 % incompressible bytes, `zeros` 1 % of plain
ones, both in holes. Each is a folder with a VMDK descriptor and its flat file, as on a datastore. Which files are
taken, and where everything lies, follows from their names and the size alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safehaul.vmdk.new_disk import flat_descriptor
from tests.bench.processes import BenchError, call

DISKS = ("ext4", "day2", "random", "zeros")
USED_SHARE = 0.64
CHANGED_SHARE = 0.04
RANDOM_SHARE = 0.10
PLAIN_SHARE = 0.01
BLOCK_BYTES = 4096
_KIB, _MIB = 1 << 10, 1 << 20
_LARGEST_SHARE = 16
"""A file larger than this part of the disk would make the image be that file."""
_VERSION = 2
_UUID = "5afe4a01-0000-4000-8000-000000000001"

Extent = tuple[int, int]
"""Start and length in bytes."""


@dataclass(frozen=True, slots=True)
class Images:
    """The folder of the images, all of one size."""

    folder: Path
    size_bytes: int
    used_bytes: int
    """Of the ext4 image: blocks of files and directories."""
    changed: tuple[Extent, ...]
    """What differs between `ext4` and `day2`."""

    def flat(self, disk: str) -> Path:
        """The flat file of a disk."""
        return self.folder / disk / "disk-flat.vmdk"

    @property
    def size_gib(self) -> float:
        """Of each disk."""
        return self.size_bytes / (1 << 30)

    @property
    def changed_bytes(self) -> int:
        """Overwritten between the two days."""
        return sum(length for _, length in self.changed)


def make_images(folder: Path, size_bytes: int) -> Images:
    """The images in `folder`, made if they are not there yet. Raises BenchError."""
    facts = folder / "images.json"
    if facts.exists():
        known = json.loads(facts.read_text())
        if known.pop("version") == _VERSION:
            return Images(
                folder, known["size_bytes"], known["used_bytes"], tuple(map(tuple, known["changed"]))
            )
    shutil.rmtree(folder, ignore_errors=True)
    for disk in DISKS:
        (folder / disk).mkdir(parents=True)
        descriptor = flat_descriptor("disk-flat.vmdk", size_bytes)
        (folder / disk / "disk.vmdk").write_bytes(descriptor)
    changed = tuple(scattered(size_bytes, CHANGED_SHARE, 16 * _KIB, 2 * _MIB, seed=2))
    images = Images(folder, size_bytes, int(size_bytes * USED_SHARE), changed)
    files = machine_files(size_bytes // _LARGEST_SHARE)
    rest = _make_ext4(images, files)
    plain = _plain_bytes(rest)
    call(["cp", "--sparse=auto", str(images.flat("ext4")), str(images.flat("day2"))])
    with images.flat("day2").open("r+b") as file:
        for start, length in changed:
            file.seek(start)
            file.write(_take(plain, length))
    _make_sparse(images, "random", scattered(size_bytes, RANDOM_SHARE, _MIB, 8 * _MIB, seed=3), None)
    _make_sparse(images, "zeros", scattered(size_bytes, PLAIN_SHARE, 4 * _KIB, 64 * _KIB, seed=4), plain)
    kept = {
        "version": _VERSION,
        "size_bytes": size_bytes,
        "used_bytes": images.used_bytes,
        "changed": changed,
    }
    facts.write_text(json.dumps(kept))
    return images


def scattered(size_bytes: int, share: float, least: int, most: int, *, seed: int) -> Iterator[Extent]:
    """Extents in whole blocks, in order, apart from each other, that cover `share` of the size.

    Their lengths lie between `least` and `most`, short ones being as frequent as long ones by magnitude.
    """
    source = random.Random(seed)
    left = int(size_bytes * share) // BLOCK_BYTES
    lengths = []
    while left > 0:
        drawn = int(least * (most / least) ** source.random()) // BLOCK_BYTES
        lengths.append(min(max(drawn, 1), left))
        left -= lengths[-1]
    free = size_bytes // BLOCK_BYTES - sum(lengths)
    cuts = sorted(source.randrange(free + 1) for _ in lengths)
    before = 0
    for cut, length in zip(cuts, lengths, strict=True):
        yield (cut + before) * BLOCK_BYTES, length * BLOCK_BYTES
        before += length


def machine_files(largest_bytes: int) -> list[Path]:
    """Plain readable files of the system and of Python, in an order that mixes all kinds but never changes."""
    seen: set[tuple[int, int]] = set()
    found = []
    roots = {Path(name).resolve() for name in ("/usr", "/opt", sys.base_prefix)}
    for root in sorted(roots):
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in names:
                path = Path(folder, name)
                try:
                    facts = path.lstat()
                except OSError:
                    continue  # it vanished
                fits = stat.S_ISREG(facts.st_mode) and 0 < facts.st_size <= largest_bytes
                if fits and (facts.st_dev, facts.st_ino) not in seen and os.access(path, os.R_OK):
                    seen.add((facts.st_dev, facts.st_ino))
                    found.append(path)
    return sorted(found, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())


def _make_ext4(images: Images, files: list[Path]) -> list[Path]:
    """Fill the ext4 image; returns the files that did not get into it."""
    stage = images.folder / "stage"
    used = 0
    for number, path in enumerate(files):
        if used >= images.used_bytes:
            rest = files[number:]
            break
        target = stage / path.relative_to("/")
        while not target.parent.exists():
            # From the top downwards; each takes a block.
            made = next(folder for folder in reversed(target.parents) if not folder.exists())
            made.mkdir()
            used += BLOCK_BYTES
        shutil.copy2(path, target)
        used += -(-path.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES
    else:
        message = f"this machine has {used >> 20} MiB of files in /usr and /opt, {images.used_bytes >> 20} are needed: "
        raise BenchError(
            f"{message}take a smaller image, BENCH_SIZE_MIB={int((used >> 20) / USED_SHARE) - 1}"
        )
    flat = images.flat("ext4")
    with flat.open("wb") as file:
        file.truncate(images.size_bytes)
    options = f"-q -F -t ext4 -b {BLOCK_BYTES} -i 8192 -m 0 -U {_UUID} -E hash_seed={_UUID}"
    call(["mke2fs", *options.split(), "-d", str(stage), str(flat)])
    shutil.rmtree(stage)
    return rest


def _make_sparse(images: Images, disk: str, extents: Iterator[Extent], plain: Iterator[bytes] | None) -> None:
    """Write extents into a hole: of `plain`, or random bytes."""
    source = random.Random(disk)
    with images.flat(disk).open("wb") as file:
        file.truncate(images.size_bytes)
        for start, length in extents:
            file.seek(start)
            file.write(source.randbytes(length) if plain is None else _take(plain, length))


def _plain_bytes(files: list[Path]) -> Iterator[bytes]:
    """Blocks of the files' bytes, over and over."""
    if not files:
        raise BenchError("this machine has no further files whose bytes could be what changes on the disk")
    while True:
        for path in files:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block.ljust(BLOCK_BYTES, b"\xa5")


def _take(blocks: Iterator[bytes], length: int) -> bytes:
    return b"".join(next(blocks) for _ in range(length // BLOCK_BYTES))
