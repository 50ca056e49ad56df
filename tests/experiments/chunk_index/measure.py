"""What the chunk index costs when it is large: `python -m tests.experiments.chunk_index.measure 10_000_000 [FOLDER]`.

Synthetic lists of random ids, as the `idx/` objects of a repository with chunks of 1 MiB would give them, go through
the index's own methods. Prints one line for each figure. 100,000,000 entries (100 TB of unique content) need
30 GB of disk.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from safehaul.media.chunk_index import ChunkIndex
from safehaul.media.locations import BATCH_CHUNKS, PackListing
from safehaul.media.pack import FRAME, HEADER_LENGTH, ChunkEntry, SealedPack

PACK_CHUNKS = 128
STORED = 500_000
LOOKUPS = 20_000


def _ids(number: int) -> bytes:
    return blake3(number.to_bytes(8, "little")).digest(length=32 * BATCH_CHUNKS)


def _list(number: int) -> tuple[str, Iterator[PackListing]]:
    """One `idx/` object's content: 65,536 chunks in 512 packs."""
    return f"idx/{number:064x}", _listings(number)


def _listings(number: int) -> Iterator[PackListing]:
    ids = _ids(number)
    step = STORED + FRAME.size
    for first in range(0, BATCH_CHUNKS, PACK_CHUNKS):
        pack = SealedPack(
            blake3(ids[first * 32 : first * 32 + 32]).digest(), HEADER_LENGTH + PACK_CHUNKS * step
        )
        yield PackListing(
            pack,
            [
                ChunkEntry(
                    ids[(first + at) * 32 : (first + at + 1) * 32],
                    HEADER_LENGTH + at * step,
                    STORED,
                    1 << 20,
                    1,
                )
                for at in range(PACK_CHUNKS)
            ],
        )


def _memory() -> str:
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{int(status['VmRSS'].split()[0]) >> 10} MiB resident, {peak >> 10} MiB at most"


def _forget_pages(path: Path) -> None:
    """Take the file out of the system's page cache, as a start of the machine would."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(what: str, work: Callable[[], object], count: int = 0) -> None:
    begun = time.perf_counter()
    work()
    took = time.perf_counter() - begun
    rate = f", {count / took:,.0f}/s" if count else ""
    print(f"{what}: {took:.3f} s{rate}; {_memory()}", flush=True)


def _look(index: ChunkIndex, lists: int, *, there: bool) -> None:
    made = random.Random(7)
    wanted = []
    for _ in range(40):
        ids = _ids(made.randrange(lists))
        wanted += [
            ids[at * 32 : at * 32 + 32] for at in (made.randrange(BATCH_CHUNKS) for _ in range(LOOKUPS // 40))
        ]
    if not there:
        wanted = [blake3(chunk_id).digest() for chunk_id in wanted]
    made.shuffle(wanted)
    for warm in ("page cache empty", "again"):
        if warm != "again":
            assert index._path is not None
            _forget_pages(index._path)
        begun = time.perf_counter()
        found = sum(1 for chunk_id in wanted if index.lookup(chunk_id))
        took = time.perf_counter() - begun
        assert found == (LOOKUPS if there else 0)
        what = "hits" if there else "misses"
        print(f"{LOOKUPS} {what}, {warm}: {LOOKUPS / took:,.0f}/s", flush=True)


def load(path: Path, lists: int) -> None:
    """Make the index."""
    begun = time.perf_counter()
    for number in range(8):
        for _ in _list(number)[1]:
            pass
    made = (time.perf_counter() - begun) / 8 * lists
    index = ChunkIndex(path, "measured")
    _timed(
        f"load {lists * BATCH_CHUNKS:,} entries from {lists} lists (of it {made:.0f} s to make them up)",
        lambda: index.add_all(_list(number) for number in range(lists)),
        lists * BATCH_CHUNKS,
    )
    index.close()
    for name in sorted(path.parent.iterdir()):
        print(f"{name.name}: {name.stat().st_size:,} bytes", flush=True)
    print(f"{path.stat().st_size / lists / BATCH_CHUNKS:.1f} bytes an entry", flush=True)


def use(path: Path, lists: int) -> None:
    """Use the index as a worker does, in a process of its own."""
    print(f"before: {_memory()}", flush=True)
    _forget_pages(path)
    begun = time.perf_counter()
    index = ChunkIndex(path, "measured")
    print(f"open, page cache empty: {time.perf_counter() - begun:.3f} s; {_memory()}", flush=True)
    _timed("names of the lists", index.loaded)
    _timed("count of the entries", index.chunk_count)
    _look(index, lists, there=True)
    _look(index, lists, there=False)
    print(f"after the lookups: {_memory()}", flush=True)
    _timed("add one list", lambda: index.add(*_list(lists)), BATCH_CHUNKS)
    _timed(
        "add 16 lists, a million entries",
        lambda: index.add_all(_list(lists + 1 + number) for number in range(16)),
        16 * BATCH_CHUNKS,
    )
    _timed("forget a list", lambda: index.forget([_list(lists)[0]]))
    index.close()
    print(f"{path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    """Measure."""
    lists = max(1, int(sys.argv[1]) // BATCH_CHUNKS)
    parent = sys.argv[2] if len(sys.argv) > 2 else None
    if parent is not None and parent.endswith(".index"):
        use(Path(parent), lists)
        return
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        # SQLite sorts in files of its own.
        os.environ["SQLITE_TMPDIR"] = folder
        path = Path(folder) / "measured.index"
        load(path, lists)
        command = [sys.executable, "-m", "tests.experiments.chunk_index.measure", sys.argv[1], str(path)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
