"""Writes one disk into a session, from where the session's records end.

Bytes come in order; chunks that are new go into packs, and each pack that is durable is followed by a progress
record. What is not recorded is read again by the next try: at most one pack's worth of new chunks, and never
more than RECORD_PACKS packs' worth of disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from safehaul.errors import InvalidInputError
from safehaul.media.codec import HOLE, ID_LENGTH, Encoded
from safehaul.media.disk_map import DiskMap, chunk_count
from safehaul.media.durable import Segment, SegmentRecorder
from safehaul.media.encoder import HELD_CHUNKS, ChunkEncoder
from safehaul.media.known_chunks import SEEN_LIMIT, KnownChunks
from safehaul.media.pack import MAX_CHUNKS, PackBuilder
from safehaul.media.progress import DiskStats
from safehaul.media.sessions import Session

RECORD_PACKS = 4
"""A record is due after this many packs' worth of disk, even if the open pack is not full: a short pack costs
less than reading a large disk again. While no new chunk waits, each pack's worth is recorded."""

_SEGMENTS_UNDER_WAY = 2


@dataclass(frozen=True, slots=True)
class DiskSummary:
    """A disk that is completely in the session."""

    disk_key: int
    capacity_bytes: int
    resumed_at_bytes: int
    """Where this try began to read."""
    stats: DiskStats
    """Over all tries of the session."""


class DiskWriter:
    """Writes one disk of a session; use it as a context manager. For one thread.

    `previous` is the map of the same disk in an earlier backup: it tells what is unchanged. `on_durable` is
    called, on the thread that writes, with the bytes from the disk's start that no later try must read again.

    Errors: IntegrityError when another try of this session read other bytes from the same frozen disk;
    StaleLeaseError when the session is sealed; TransientError from the store (the next try goes on).
    """

    def __init__(
        self,
        session: Session,
        disk_key: int,
        capacity_bytes: int,
        *,
        previous: DiskMap | None = None,
        on_durable: Callable[[int], None] | None = None,
    ) -> None:
        if capacity_bytes <= 0:
            raise InvalidInputError(f"disk {disk_key}: capacity {capacity_bytes} is not possible")
        session.refuse_if_sealed()
        self._repository = session.repository
        self._repository.refresh_index(lately=True)
        self._chunk_size = self._repository.config.chunk_size_bytes
        self._pack_size = self._repository.config.pack_size_bytes
        self._previous = previous if previous and previous.chunk_size_bytes == self._chunk_size else None
        self.disk_key = disk_key
        self.capacity_bytes = capacity_bytes
        self._chunks = chunk_count(capacity_bytes, self._chunk_size)
        self._recorder = SegmentRecorder(session, disk_key, capacity_bytes)
        self._on_durable = on_durable
        resume = self._recorder.resume(SEEN_LIMIT)
        self._known = KnownChunks(self._repository)
        self._known.add(resume.recent_ids)
        self._counts = asdict(resume.stats)
        self._next_chunk = self._segment_start = resume.next_chunk
        self._position = min(resume.next_chunk * self._chunk_size, capacity_bytes)
        self.resume_offset_bytes = self._position
        """Where the caller must begin to read; the capacity when nothing is left."""
        self._digests = bytearray()
        self._pack: PackBuilder | None = None
        self._segments: deque[Future[None]] = deque()
        self._encoder = ChunkEncoder(self._repository.keys.chunk, self._chunk_size, self._known, self._take)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="durable")
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="pack")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def durable_bytes(self) -> int:
        """Bytes from the disk's start that no later try has to read again."""
        return min(self._recorder.durable_chunk * self._chunk_size, self.capacity_bytes)

    @property
    def stats(self) -> DiskStats:
        """Sums up to now, over all tries of the session; chunks and packs under way are not in them yet."""
        recorder = self._recorder
        return DiskStats(**self._counts | {"bytes_stored": recorder.stored_bytes, "packs": recorder.packs})

    @property
    def position_bytes(self) -> int:
        """Where the next bytes belong."""
        return self._position

    @property
    def held_buffers(self) -> int:
        """At most so many lent buffers are not given back yet when `write` returns."""
        return HELD_CHUNKS

    def write(
        self,
        buffer: bytes | bytearray | memoryview,
        offset_bytes: int,
        *,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        """Take the bytes at `offset_bytes`, which must be where the last call ended.

        `buffer` may be reused at once; or, which saves a copy, with `give_back` it is lent until that is called, on
        this thread and by this call or a later one. Raises InvalidInputError for another offset or bytes beyond the
        capacity.
        """
        data = memoryview(buffer).cast("B")
        self._check(offset_bytes, len(data))
        self._encoder.feed(data, give_back)
        self._advance(len(data))

    def write_hole(self, offset_bytes: int, length_bytes: int) -> None:
        """Take a range that is known to be zero, without its bytes. Errors as `write`."""
        self._check(offset_bytes, length_bytes)
        while length_bytes:
            inside = self._position % self._chunk_size
            if inside == 0 and length_bytes >= self._chunk_size:
                count = self._chunk_size
                self._encoder.feed_hole()
            else:
                count = min(length_bytes, self._chunk_size - inside)
                self._encoder.feed(memoryview(bytes(count)))
            self._advance(count)
            length_bytes -= count

    def skip_unchanged(self, length_bytes: int) -> int:
        """Take what stands as in the `previous` backup, without its bytes, from where the last call ended.

        The caller answers for it (vCenter's changed areas). Returns how many bytes were taken: whole chunks, up to the
        range's end or to the first chunk that no sound pack holds any more; what is left is to be written.
        """
        begin, previous = self._position, self._previous
        self._check(begin, length_bytes)
        while previous is not None and self._position % self._chunk_size == 0:
            number = self._position // self._chunk_size
            length = min(self._chunk_size, self.capacity_bytes - self._position)
            left = begin + length_bytes - self._position
            # The last chunk of a disk that has grown since is another one.
            if left < length or not length or number >= previous.chunk_count:
                break
            chunk_id = previous.chunk_id(number)
            if previous.length_of(number) != length or not (chunk_id == HOLE or self._known.asked(chunk_id)):
                break
            self._encoder.feed_stored(chunk_id, length)
            self._advance(length)
        return self._position - begin

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes != self._position or offset_bytes + length_bytes > self.capacity_bytes:
            raise InvalidInputError(
                f"disk {self.disk_key}: bytes {offset_bytes}+{length_bytes} given, but {self._position} is next "
                f"and the disk ends at {self.capacity_bytes}"
            )

    def _advance(self, count: int) -> None:
        self._position += count
        if self._position == self.capacity_bytes:
            self._encoder.end_chunk()
        self._collect(leave=_SEGMENTS_UNDER_WAY)

    def finish(self) -> DiskSummary:
        """Wait until the whole disk is durable and recorded. Raises InvalidInputError when bytes are missing."""
        if self._position != self.capacity_bytes:
            raise InvalidInputError(
                f"disk {self.disk_key} is not complete: {self._position} of {self.capacity_bytes} bytes written"
            )
        self._encoder.drain()
        self._end_segment()
        self._collect(leave=0)
        assert self._next_chunk == self._chunks == self._recorder.durable_chunk, "a chunk was lost on the way"
        self.close()
        return DiskSummary(self.disk_key, self.capacity_bytes, self.resume_offset_bytes, self.stats)

    def close(self) -> None:
        """Stop. What is recorded stays; a pack that is not full is thrown away. Harmless after `finish`."""
        self._encoder.close()
        self._background.shutdown(wait=True)
        if self._pack is not None:
            self._pack.abort()
            self._pack = None
        self._writes.shutdown(wait=True)

    def _take(self, chunk: Encoded) -> None:
        """Account for the next chunk of the disk, in order, and put it into the open pack if it is new."""
        length, counts = chunk.raw_length, self._counts
        if chunk.chunk_id == HOLE:
            counts["bytes_zero"] += length
        elif chunk.payload is None or chunk.chunk_id in self._known:
            # Compressed in vain when an equal chunk was under way at the same time: rare, and in order.
            unchanged = self._is_unchanged(chunk.chunk_id)
            counts["bytes_unchanged" if unchanged else "bytes_deduplicated"] += length
        else:
            counts["bytes_new"] += length
            self._store(chunk, chunk.payload)
        counts["bytes_read"] += length
        self._digests += chunk.chunk_id
        self._next_chunk += 1
        self._end_segment_if_due()

    def _is_unchanged(self, chunk_id: bytes) -> bool:
        previous = self._previous
        return (
            previous is not None
            and self._next_chunk < previous.chunk_count
            and previous.chunk_id(self._next_chunk) == chunk_id
        )

    def _store(self, chunk: Encoded, payload: bytes | memoryview) -> None:
        if self._pack is None:
            self._pack = PackBuilder(self._repository.store, self._repository.keys, self._writes)
        self._pack.add(chunk.chunk_id, chunk.raw_length, chunk.flags, payload)
        self._known.add([chunk.chunk_id])

    def _end_segment_if_due(self) -> None:
        covered = (self._next_chunk - self._segment_start) * self._chunk_size
        if self._pack is None:
            due = covered >= self._pack_size
        else:
            full = self._pack.size_bytes >= self._pack_size or self._pack.chunk_count >= MAX_CHUNKS
            due = full or covered >= RECORD_PACKS * self._pack_size
        if due or len(self._digests) >= MAX_CHUNKS * ID_LENGTH:
            self._end_segment()

    def _end_segment(self) -> None:
        """Hand what came since the last record to the background thread; wait when it is behind."""
        if self._next_chunk == self._segment_start:
            return
        # Waiting first: should it raise, `close` still finds the open pack and throws it away.
        self._collect(leave=_SEGMENTS_UNDER_WAY - 1)
        segment = Segment(
            self._segment_start, self._next_chunk, bytes(self._digests), self._pack, DiskStats(**self._counts)
        )
        self._segment_start, self._pack = self._next_chunk, None
        self._digests.clear()
        self._segments.append(self._background.submit(self._recorder.record, segment))

    def _collect(self, leave: int) -> None:
        """Take the results of recorded segments; wait for the oldest until only `leave` are under way."""
        while self._segments and (self._segments[0].done() or len(self._segments) > leave):
            self._segments.popleft().result()
            if self._on_durable is not None:
                self._on_durable(self.durable_bytes)
