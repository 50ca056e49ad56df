"""What no backup of this kind can beat here: `python -m tests.bench.limit read|limit EXPORT FILE TARGET`.

`read` reads the disk through the product's export and drops the bytes. `limit` does nothing but read it, test each
chunk for zeros, compress it by zstd 1 with a thread for each processor, and write the frames into one file: no hash,
no index, no encryption, no packs, no read-back. Both read ahead as the product does, and the frames are written past
the page cache as its packs are, because that is the fastest that was found: a limit that is slower than it could be
is none. The file's sync is timed apart.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from activities.read_ahead import Piece, ReadAhead
from safehaul.direct_io import BLOCK_BYTES, DirectWriter, page_buffer
from safehaul.media.codec import Compressor, ZeroTest
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import open_export
from safehaul.nas.export import NasFile
from tests.bench.processes import tell

CHUNK_BYTES = 1 << 20
_HELD_PIECES = 4
_THREADS = len(os.sched_getaffinity(0))
"""As many as the product has (see safehaul.media.encoder)."""

Frame = bytes | memoryview


def read_all(file: NasFile) -> None:
    """Read the file from its start to its end."""
    with ReadAhead(file.read_into, [(0, file.size_bytes)], 0) as ahead:
        while (piece := ahead.take()) is not None:
            piece.give_back()


class _Frames:
    """Frames one after the other in one file, in whole blocks."""

    def __init__(self, descriptor: int) -> None:
        self._writer = DirectWriter(descriptor)
        self._buffer = page_buffer(2 << 20)
        self._filled = 0
        self._offset = 0

    def add(self, frame: Frame) -> None:
        if self._filled + len(frame) > len(self._buffer):
            self.flush(self._filled - self._filled % BLOCK_BYTES)
        self._buffer[self._filled : self._filled + len(frame)] = frame
        self._filled += len(frame)

    def flush(self, length: int | None = None) -> None:
        done = self._filled if length is None else length
        self._writer.write_at(self._buffer[:done], self._offset)
        self._buffer[: self._filled - done] = self._buffer[done : self._filled]
        self._offset, self._filled = self._offset + done, self._filled - done


def compress_all(file: NasFile, target: Path) -> float:
    """Read, test, compress and write; returns the seconds of the final sync."""
    under_way: deque[tuple[Piece, list[Future[Frame]]]] = deque()
    compressor, is_zero = Compressor(), ZeroTest(CHUNK_BYTES)

    def encode(chunk: memoryview) -> Frame:
        return b"" if is_zero(chunk) else compressor.compress(chunk)[1]

    with target.open("xb", buffering=0) as out, ThreadPoolExecutor(_THREADS) as pool:
        frames = _Frames(out.fileno())

        def write_oldest() -> None:
            piece, encoded = under_way.popleft()
            for frame in encoded:
                frames.add(frame.result())
            piece.give_back()

        with ReadAhead(file.read_into, [(0, file.size_bytes)], _HELD_PIECES) as ahead:
            while (piece := ahead.take()) is not None:
                data = piece.data
                chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
                under_way.append((piece, [pool.submit(encode, chunk) for chunk in chunks]))
                if len(under_way) == _HELD_PIECES:
                    write_oldest()
        while under_way:
            write_oldest()
        frames.flush()
        begun = time.perf_counter()
        os.fsync(out.fileno())
        return time.perf_counter() - begun


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
