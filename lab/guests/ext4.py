"""ext4 images for guests: a clean file system with some files, one of which the guest overwrites in place.

Made with `mke2fs -d` and `debugfs` (Debian: e2fsprogs), without root and without mounting. Overwriting the
data blocks of an allocated file changes no metadata, so the file system is clean at every moment.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.guests.pattern import BLOCK_BYTES, Run

LIVE_FILE = "live.dat"
_TIMEOUT_S = 60
_MIN_BYTES = 8 * 1024 * 1024


class Ext4Error(Exception):
    """The image could not be made; the message says why."""


def why_not(capacity_bytes: int) -> str | None:
    """Why no ext4 image of this size can be made here, or None when it can."""
    missing = [tool for tool in ("mke2fs", "debugfs") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: apt-get install e2fsprogs"
    if capacity_bytes < _MIN_BYTES:
        return f"an ext4 disk of the lab has at least {_MIN_BYTES} bytes"
    return None


def make_image(image: Path, capacity_bytes: int, seed: int) -> list[Run]:
    """Make a file system in `image` (which exists with its full size); returns the live file's blocks.

    A quarter of the disk is the live file, about a third other files. Errors: Ext4Error.
    """
    source = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="lab-ext4-") as name:
        root = Path(name)
        (root / "etc").mkdir()
        (root / "data").mkdir()
        (root / "etc" / "hostname").write_text(f"guest-{seed:x}\n")
        (root / "data" / "unicode ümläut 数据.txt").write_text("kept as it is\n" * 500)
        for number in range(8):
            (root / "data" / f"noise-{number}.bin").write_bytes(source.randbytes(capacity_bytes // 48))
            text = f"line of file {number}, " * 40 + "\n"
            (root / "data" / f"text-{number}.log").write_text(text * (capacity_bytes // 48 // len(text)))
        # Not zeros: mke2fs would leave them out, and the guest could not overwrite them in place.
        (root / LIVE_FILE).write_bytes(b"\xa5" * (capacity_bytes // 4 // BLOCK_BYTES * BLOCK_BYTES))
        _run(
            [
                *f"mke2fs -q -F -t ext4 -b {BLOCK_BYTES} -m 0".split(),
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
                "-d",
                str(root),
                str(image),
            ]
        )
    listing = _run(["debugfs", "-R", f"dump_extents -l /{LIVE_FILE}", str(image)])
    runs = _leaf_runs(listing)
    if sum(run.count for run in runs) != capacity_bytes // 4 // BLOCK_BYTES:
        message = f"debugfs tells another size of /{LIVE_FILE} than was written: {listing[-300:]}"
        raise Ext4Error(message)
    return runs


def _leaf_runs(listing: str) -> list[Run]:
    """Physical runs from `dump_extents -l`: lines `0/ 0   1/  3     0 -  2047  9216 - 11263   2048`."""
    runs = []
    for line in listing.splitlines():
        numbers = [int(number) for number in re.findall(r"\d+", line)]
        if re.match(r"\s*\d+/\s*\d+", line) and len(numbers) == 9:
            runs.append(Run(start=numbers[6], count=numbers[8]))
    return runs


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        message = f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-300:]}"
        raise Ext4Error(message)
    return done.stdout
