"""The product's own runs, each a process: `python -m tests.bench.pipeline ORDER`, where ORDER is a JSON object.

`backup` does what the worker processes of an access node and a MediaAgent do in steps 11 and 12, with their code: the
disk's chain over an export, the loop of `transfer_disk`, `DiskWriter`, the local store with its syncs, the read-back
and the commit. `streams` backs up one disk several times at once, each time as another VM's, without the read-back.
`restore` is the command line's restore to an image, `verify` the full verification.

Times begin when everything is imported, because a worker is imported once, and include the opening of the repository
with its key. The read-back is timed apart: no peer does one.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Literal
from unittest.mock import patch

from pydantic import BaseModel, SecretBytes

from activities.transfer import _copy, _copy_spans, _Watch
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.manifest import BackupContents, DiskDescription, read_manifest
from safehaul.media.reader import BackupReader
from safehaul.media.repository import DEFAULT_CHUNK_SIZE_BYTES, Repository
from safehaul.media.seal import backup_ref, commit, verify_session
from safehaul.media.sessions import Session, find_session, open_session
from safehaul.media.store_local import LocalStore
from safehaul.media.verify import verify
from safehaul.media.writer import DiskWriter
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles, open_export
from safehaul.vmdk.chain import DiskChain
from tests.bench.processes import BenchError, tell
from tests.bench.sampling import sampled
from workers.cli.disk_image import write_image

DISK = 2000
_VM = "0f1e2d3c.50112233-bench"
_SECRET = RepositorySecret("passphrase", SecretBytes(b"a passphrase for the benchmark"))


class Order(BaseModel):
    """What one process is to do."""

    do: Literal["init", "backup", "streams", "restore", "verify"]
    repository: Path
    encrypted: bool
    session: str = ""
    export: ExportDefinition | None = None
    disk: str = ""
    """Folder of the image on the export."""
    changed: list[tuple[int, int]] | None = None
    """Start and length of what differs from `previous`, as vCenter's changed areas would tell; None: not known."""
    previous: str = ""
    """Session of the backup before, if there is one."""
    target: Path | None = None
    streams: int = 1


class _Silent(_Watch):
    """The loop's companion, without a vCenter to look at and without heartbeats."""

    def __init__(self) -> None:
        self._due = 0.0

    def waits(self, done_bytes: int, waits_for: str) -> None:
        pass

    def look(self) -> None:
        pass


class _Writer(DiskWriter):
    """Takes what lies between two written ranges from the backup before."""

    def write(
        self,
        buffer: bytes | bytearray | memoryview,
        offset_bytes: int,
        *,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        self.skip_to(offset_bytes)
        super().write(buffer, offset_bytes, give_back=give_back)

    def skip_to(self, offset_bytes: int) -> None:
        """Raises BenchError when a chunk is not there any more: nothing here takes any away."""
        gap = offset_bytes - self.position_bytes
        if gap and self.skip_unchanged(gap) != gap:
            raise BenchError("a chunk of the backup before is gone")


class _Meter:
    """Wall and CPU seconds of this process, in parts."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count what happens inside."""
        wall, cpu = time.perf_counter(), _cpu_s()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += _cpu_s() - cpu


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _age_s() -> float:
    """Seconds since this process was started: proc(5), stat, field 22."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise BenchError(f"the kernel does not tell {field}")


def _forget_peak() -> None:
    """Make the present memory the peak: proc(5), clear_refs, 5."""
    Path("/proc/self/clear_refs").write_text("5")


def _open(order: Order, *, for_writing: bool) -> Repository:
    return Repository.open(
        LocalStore(order.repository), for_writing=for_writing, secret=_SECRET if order.encrypted else None
    )


def _backup(order: Order) -> None:
    assert order.export is not None
    start_s = _age_s()
    work, read_back, opening, committing = _Meter(), _Meter(), _Meter(), _Meter()
    with work.on(), sampled():
        with opening.on():
            repository = _open(order, for_writing=True)
        session = open_session(
            repository, order.session, vc_guid=_VM, vm_name="bench", point_in_time=order.session
        )
        previous = None
        if order.previous:
            ref = backup_ref(find_session(repository, order.previous))
            previous = read_manifest(repository, ref).disk_map(repository, DISK)
        _forget_peak()
        base_kib = _memory_kib("VmRSS")
        with (
            open_export(order.export) as export,
            DiskChain(DatastoreFiles({"bench": export}), f"[bench] {order.disk}/disk.vmdk") as chain,
            _Writer(session, DISK, chain.capacity_bytes, previous=previous) as writer,
        ):
            if order.changed is None:
                _copy(chain, writer, _Silent())
            else:
                _copy_changed(chain, writer, order.changed)
            summary = writer.finish()
        stream_kib = _memory_kib("VmHWM") - base_kib
    with read_back.on():
        verify_session(session)
    with work.on(), sampled(), committing.on():
        _commit(session, summary.capacity_bytes)
    stats = summary.stats
    tell(
        {
            "wall_s": work.wall_s,
            "cpu_s": work.cpu_s,
            "start_s": start_s,
            "open_s": opening.wall_s,
            "commit_s": committing.wall_s,
            "read_back_s": read_back.wall_s,
            "read_back_cpu_s": read_back.cpu_s,
            "stream_memory_mib": stream_kib / 1024,
            "bytes_zero": stats.bytes_zero,
            "bytes_new": stats.bytes_new,
        }
    )


def _streams(order: Order) -> None:
    """Whoever is the first to end tells how far the others are: that is how fair their shares are."""
    work, opening = _Meter(), _Meter()
    writers: list[DiskWriter] = []
    shares: list[float] = []
    ready = Barrier(order.streams)

    def stream(number: int, repository: Repository, export: ExportDefinition) -> None:
        name = f"{order.session}-{number}"
        session = open_session(repository, name, vc_guid=f"{_VM}{number}", vm_name=name, point_in_time=name)
        with (
            open_export(export) as opened,
            DiskChain(DatastoreFiles({"bench": opened}), f"[bench] {order.disk}/disk.vmdk") as chain,
            DiskWriter(session, DISK, chain.capacity_bytes) as writer,
        ):
            writers.append(writer)
            ready.wait()
            _copy(chain, writer, _Silent())
            if not shares:
                shares.extend(other.position_bytes / other.capacity_bytes for other in writers)
            writer.finish()

    assert order.export is not None
    with work.on():
        with opening.on():
            repository = _open(order, for_writing=True)
        _forget_peak()
        base_kib = _memory_kib("VmRSS")
        with ThreadPoolExecutor(order.streams) as pool:
            streams = [
                pool.submit(stream, number, repository, order.export) for number in range(order.streams)
            ]
            for future in streams:
                future.result()
        stream_kib = (_memory_kib("VmHWM") - base_kib) / order.streams
    # A commit asks for the read-back: both are left out, here and of the full backup that this is compared with.
    tell(
        {
            "wall_s": work.wall_s,
            "cpu_s": work.cpu_s,
            "open_s": opening.wall_s,
            "fairness": min(shares) / max(shares),
            "stream_memory_mib": stream_kib / 1024,
            "disks": order.streams,
        }
    )


def _copy_changed(chain: DiskChain, writer: _Writer, changed: list[tuple[int, int]]) -> None:
    """Read the chunks that hold a changed byte; take the others as they are in the backup before."""
    size = DEFAULT_CHUNK_SIZE_BYTES
    touched = {
        number for start, length in changed for number in range(start // size, -(-(start + length) // size))
    }
    spans = [(first * size, min(last * size, chain.capacity_bytes)) for first, last in _runs(sorted(touched))]
    _copy_spans(chain, writer, _Silent(), spans)
    writer.skip_to(chain.capacity_bytes)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Numbers that follow each other, as (first, end)."""
    begin = end = -1
    for number in numbers:
        if number != end:
            if end > begin:
                yield begin, end
            begin = number
        end = number + 1
    if end > begin:
        yield begin, end


def _commit(session: Session, capacity_bytes: int) -> None:
    disk = DiskDescription(key=DISK, label="Hard disk 1", capacity_bytes=capacity_bytes)
    commit(session, BackupContents(disks=[disk], skipped=[]))


def _restore(order: Order) -> None:
    assert order.target is not None
    work, flush = _Meter(), _Meter()
    plain_sync = os.fsync

    def timed_sync(descriptor: int) -> None:
        with flush.on():
            plain_sync(descriptor)

    # The image's sync is one call: apart from the rest it can be compared with peers, which do not sync.
    with patch.object(os, "fsync", timed_sync), work.on():
        repository = _open(order, for_writing=False)
        ref = backup_ref(find_session(repository, order.session))
        reader = BackupReader(repository, ref.vc_guid, ref.backup_id)
        try:
            write_image(reader, reader.manifest.disk(DISK), order.target, progress=lambda _: None)
        finally:
            reader.close()
    tell({"wall_s": work.wall_s - flush.wall_s, "cpu_s": work.cpu_s, "flush_s": flush.wall_s})


def _verify(order: Order) -> None:
    work = _Meter()
    with work.on():
        report = verify(_open(order, for_writing=False), full=True)
    if not report.sound:
        raise BenchError(f"the repository is damaged: {report.damage[:3]}")
    tell({"wall_s": work.wall_s, "cpu_s": work.cpu_s, "bytes_read": report.bytes_read})


def main(order: Order) -> None:
    """Do it, and print the report as the last line."""
    if order.do == "init":
        Repository.init(LocalStore(order.repository), secret=_SECRET if order.encrypted else None).close()
    else:
        {"backup": _backup, "streams": _streams, "restore": _restore, "verify": _verify}[order.do](order)


if __name__ == "__main__":
    main(Order.model_validate_json(sys.argv[1]))
