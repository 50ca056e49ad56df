"""Where the CPU time of a full backup goes: the headline's run once more, under Linux' perf (Debian: linux-perf).

Samples are taken while the backup works, not while Python imports nor during the read-back: the run tells perf by two
named pipes when to begin and when to pause (perf-record(1), --control). The filer is another process and not in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.bench.contenders import Product, Step
from tests.bench.processes import BenchError, call, warm
from tests.bench.sampling import PIPES_VARIABLE

_PARTS = (
    ("zstd", r"^backend_c\.", ""),
    ("BLAKE3", r"^blake3\.", ""),
    ("key derivation, once for each opening (Argon2id)", r"^_rust\.", r"fill_|cleanse"),
    ("AES-GCM", r"^_rust\.|^libcrypto", ""),
    ("NFS client (nfs-rs)", r"^_internal\.", ""),
    ("SQLite (the index)", r"sqlite", ""),
    ("kernel: copies between it and the process", r"^\[kernel", r"copy|rep_movs|memcpy"),
    (
        "kernel: memory given and taken",
        r"^\[kernel",
        r"fault|clear_page|pte|unmap|memcg|anon|lruvec|free_unref",
    ),
    ("kernel: everything else", r"^\[", ""),
    ("memory copied, filled, compared", r"^libc\.", r"mem(cpy|move|set|cmp|chr)"),
    ("Python's interpreter", r"^(lib)?python", ""),
)
"""What it is, the object file that it lies in, the symbol; the first that fits counts."""


def why_not() -> str:
    """Why there can be no profile here; empty when there can."""
    return "" if shutil.which("perf") else "perf is not installed (Debian: linux-perf)"


def profile(product: Product, place: Path) -> list[tuple[str, float]]:
    """Parts of the full backup's CPU time and their shares in percent, the largest first. Raises BenchError."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    product.prepare(place)
    command = product.command(Step.FULL, place)
    assert command is not None
    for name in ("control", "answer"):
        os.mkfifo(place / name)
    data = place / "perf.data"
    warm(command.inputs)
    pipes = f"--control=fifo:{place / 'control'},{place / 'answer'}"
    perf = ["perf", "record", "--quiet", "--freq=999", "--delay=-1", pipes, f"--output={data}", "--"]
    call([*perf, *command.arguments], {PIPES_VARIABLE: str(place)})
    shown = subprocess.run(
        [
            "perf",
            "report",
            f"--input={data}",
            "--stdio",
            "--fields=overhead,dso,symbol",
            "--field-separator=|",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found = shares(shown.stdout.splitlines())
    if not found:
        raise BenchError(f"perf found nothing: {shown.stderr.strip()[-300:]}")
    shutil.rmtree(place)
    return found


def shares(lines: Iterable[str]) -> list[tuple[str, float]]:
    """Sum perf's lines `PERCENT|OBJECT|[.] SYMBOL` by part, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for line in lines:
        fields = line.split("|")
        if line.startswith("#") or len(fields) != 3:
            continue
        percent, origin, symbol = (field.strip() for field in fields)
        sums[_part(origin, symbol)] += float(percent.rstrip("%"))
    return sorted(((name, round(share, 1)) for name, share in sums.items()), key=lambda item: -item[1])


def _part(origin: str, symbol: str) -> str:
    for name, wanted_origin, wanted_symbol in _PARTS:
        if re.search(wanted_origin, origin) and re.search(wanted_symbol, symbol):
            return name
    return "everything else"
