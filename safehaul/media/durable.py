"""Makes a writer's segments durable one after the other: the pack first, then the record that names it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from safehaul.errors import AlreadyExistsError, IntegrityError, TransientError
from safehaul.media.codec import HOLE, ID_LENGTH
from safehaul.media.disk_map import chunk_count
from safehaul.media.pack import PackBuilder, SealedPack
from safehaul.media.progress import DiskStats, ProgressRecord
from safehaul.media.sessions import Session


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of chunks of a disk, and the open pack that holds the new ones (None: there are none)."""

    first_chunk: int
    end_chunk: int
    digests: bytes
    pack: PackBuilder | None
    stats: DiskStats
    """Sums up to `end_chunk`, without the bytes of packs."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a session's records of one disk end."""

    next_chunk: int = 0
    stats: DiskStats = field(default_factory=DiskStats)
    recent_ids: list[bytes] = field(default_factory=list)
    """Ids of stored chunks before `next_chunk`, the nearest ones, oldest first."""


class SegmentRecorder:
    """Records the segments of one disk. After an error it records no more: records have no gaps."""

    def __init__(
        self,
        session: Session,
        disk_key: int,
        capacity_bytes: int,
    ) -> None:
        self._session = session
        self._disk_key = disk_key
        self._capacity = capacity_bytes
        self._chunk_size = session.repository.config.chunk_size_bytes
        self._records = session.disk_record_count(disk_key)
        self._failed = False
        self.stored_bytes = 0
        """Bytes of the packs that the disk's records name."""
        self.packs = 0
        self.durable_chunk = 0
        """The chunks before this one are durable and recorded."""

    def resume(self, ids_limit: int) -> ResumePoint:
        """Read where the records end, and up to `ids_limit` ids before that."""
        if not self._records:
            return ResumePoint()
        last = self._read(self._records)
        self.durable_chunk = last.end_chunk
        self.stored_bytes, self.packs = last.stats.bytes_stored, last.stats.packs
        newest_first: list[bytes] = []
        record, number = last, self._records
        while True:
            digests = record.digests
            backwards = range(len(digests) - ID_LENGTH, -1, -ID_LENGTH)
            found = (digests[at : at + ID_LENGTH] for at in backwards)
            newest_first.extend(identity for identity in found if identity != HOLE)
            number -= 1
            if number == 0 or len(newest_first) >= ids_limit:
                return ResumePoint(last.end_chunk, last.stats, newest_first[ids_limit - 1 :: -1])
            record = self._read(number)

    def _read(self, number: int) -> ProgressRecord:
        record = self._session.read_progress(self._disk_key, number)
        same = (record.capacity_bytes, record.chunk_size_bytes) == (self._capacity, self._chunk_size)
        if not same or record.end_chunk > chunk_count(self._capacity, self._chunk_size):
            raise IntegrityError(
                f"session {self._session.info.session_id}, disk {self._disk_key}: record {number} is of a disk of "
                f"{record.capacity_bytes} bytes, not {self._capacity}: start a new session"
            )
        return record

    def record(self, segment: Segment) -> None:
        """Seal the segment's pack and record the segment. Runs on the writer's background thread."""
        try:
            self._record(segment)
        except BaseException:
            self._failed = True
            raise
        finally:
            if segment.pack is not None:
                segment.pack.abort()

    def _record(self, segment: Segment) -> None:
        if self._failed:
            raise TransientError(f"disk {self._disk_key}: an earlier part could not be recorded; try again")
        packs: list[SealedPack] = []
        if segment.pack is not None:
            packs.append(segment.pack.seal())
        start = max(segment.first_chunk, self.durable_chunk)
        while start < segment.end_chunk:
            stored_bytes = self.stored_bytes + sum(pack.size_bytes for pack in packs)
            record = ProgressRecord(
                self._capacity,
                self._chunk_size,
                start,
                segment.end_chunk,
                segment.digests[(start - segment.first_chunk) * ID_LENGTH :],
                replace(segment.stats, bytes_stored=stored_bytes, packs=self.packs + len(packs)),
                packs,
            )
            try:
                self._session.put_progress(self._disk_key, self._records + 1, record)
                start = segment.end_chunk
                self.stored_bytes, self.packs = stored_bytes, self.packs + len(packs)
            except AlreadyExistsError:
                # Another try of this session (a zombie, or our successor) was here first: its record counts.
                start = self._adopt(segment, start)
            self._records += 1
        self.durable_chunk = max(self.durable_chunk, start)

    def _adopt(self, segment: Segment, start: int) -> int:
        """Accept the record that another try wrote at `start`; returns where it ends."""
        other = self._read(self._records + 1)
        if other.first_chunk != start:
            raise IntegrityError(
                f"session {self._session.info.session_id}, disk {self._disk_key}: another try's record begins at "
                f"chunk {other.first_chunk}, not {start}"
            )
        ours = segment.digests[(start - segment.first_chunk) * ID_LENGTH :]
        common = min(len(ours), len(other.digests))
        if ours[:common] != other.digests[:common]:
            raise IntegrityError(
                f"session {self._session.info.session_id}, disk {self._disk_key}: two tries read different bytes of "
                f"the frozen disk after chunk {start}: start a new session"
            )
        self.stored_bytes, self.packs = other.stats.bytes_stored, other.stats.packs
        return other.end_chunk
