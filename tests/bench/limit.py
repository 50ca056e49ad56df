"""What no backup of this kind can beat here: `python -m tests.bench.limit read|limit EXPORT FILE TARGET`.

`read` reads the disk through the product's export and drops the bytes. `limit` does nothing but read it, test each
chunk for zeros, compress it by zstd 1 with two threads, and write the frames into one file: no hash, no index, no
encryption, no packs, no read-back. The file's sync is timed apart.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safehaul.media.codec import Compressor
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import open_export
from safehaul.nas.export import NasFile
from tests.bench.processes import tell

CHUNK_BYTES = 1 << 20
_READ_BYTES = 8 << 20
_BUFFERS = 4
_THREADS = 2
_ZEROS = bytes(CHUNK_BYTES)

Frame = bytes | memoryview


def read_all(file: NasFile) -> None:
    """Read the file from its start to its end."""
    view = memoryview(bytearray(_READ_BYTES))
    for offset in range(0, file.size_bytes, _READ_BYTES):
        file.read_into(offset, view[: min(_READ_BYTES, file.size_bytes - offset)])


def compress_all(file: NasFile, target: Path) -> float:
    """Read, test, compress and write; returns the seconds of the final sync."""
    free = deque(bytearray(_READ_BYTES) for _ in range(_BUFFERS))
    under_way: deque[tuple[bytearray, list[Future[Frame]]]] = deque()
    compressor = Compressor()

    def encode(buffer: bytearray, start: int, end: int) -> Frame:
        # `startswith` compares in place with one memcmp.
        if buffer.startswith(_ZEROS[: end - start], start):
            return b""
        return compressor.compress(memoryview(buffer)[start:end])[1]

    def write_oldest() -> None:
        buffer, frames = under_way.popleft()
        for frame in frames:
            out.write(frame.result())
        free.append(buffer)

    with target.open("xb", buffering=0) as out, ThreadPoolExecutor(_THREADS) as pool:
        for buffer, length in _read_ahead(file, free):
            starts = range(0, length, CHUNK_BYTES)
            frames = [
                pool.submit(encode, buffer, start, min(start + CHUNK_BYTES, length)) for start in starts
            ]
            under_way.append((buffer, frames))
            if len(under_way) == _BUFFERS - 1:
                write_oldest()
        while under_way:
            write_oldest()
        begun = time.perf_counter()
        os.fsync(out.fileno())
        return time.perf_counter() - begun


def _read_ahead(file: NasFile, free: deque[bytearray]) -> Iterator[tuple[bytearray, int]]:
    """Yield buffers and how much of them is filled, the next one being read meanwhile."""

    def read(offset: int, buffer: bytearray) -> tuple[bytearray, int]:
        length = min(_READ_BYTES, file.size_bytes - offset)
        return buffer, file.read_into(offset, memoryview(buffer)[:length])

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, 0, free.popleft())
        for offset in range(_READ_BYTES, file.size_bytes, _READ_BYTES):
            done = pending.result()
            pending = reader.submit(read, offset, free.popleft())
            yield done
        yield pending.result()


def main(do: str, definition: ExportDefinition, path: str, target: Path) -> None:
    """Do it, and print the report as the last line."""
    wall, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    flush_s = 0.0
    with open_export(definition) as export:
        file = export.open_read(path)
        if do == "read":
            read_all(file)
        else:
            flush_s = compress_all(file, target)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    tell({"wall_s": time.perf_counter() - wall - flush_s, "cpu_s": cpu_s, "flush_s": flush_s})


if __name__ == "__main__":
    main(sys.argv[1], ExportDefinition.model_validate_json(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
