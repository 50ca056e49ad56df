"""A progress record: a range of a disk whose chunks are durable, and the packs that hold the new ones.

Body (little endian): capacity (8), first chunk (8), end chunk (8, exclusive), then the disk's sums up to the
end chunk: bytes read (8), zero (8), unchanged (8), deduplicated (8), new (8), stored (8); packs of the disk
(4), chunk size (4), count of packs of this record (4), zero (4); for each pack its id (32) and size (8); the
32-byte chunk ids of the range. Source: docs/repository-format.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from safehaul.errors import IntegrityError
from safehaul.media.codec import ID_LENGTH
from safehaul.media.pack import SealedPack

_HEAD = struct.Struct("<QQQQQQQQQIIII")
_PACK = struct.Struct("<32sQ")


@dataclass(frozen=True, slots=True)
class DiskStats:
    """What became of a disk's bytes, summed over all tries of the session."""

    bytes_read: int = 0
    bytes_zero: int = 0
    bytes_unchanged: int = 0
    """Same as in the previous backup, at the same place."""
    bytes_deduplicated: int = 0
    """Stored before, elsewhere."""
    bytes_new: int = 0
    """Stored now, before compression. The four add up to `bytes_read`."""
    bytes_stored: int = 0
    """Of new packs, with all their framing."""
    packs: int = 0


@dataclass(frozen=True, slots=True)
class ProgressRecord:
    """See the module."""

    capacity_bytes: int
    chunk_size_bytes: int
    first_chunk: int
    end_chunk: int
    digests: bytes
    """32 bytes for each chunk of the range."""
    stats: DiskStats
    packs: list[SealedPack] = field(default_factory=list)


def encode_progress(record: ProgressRecord) -> bytes:
    """Return the body of a progress record."""
    stats = record.stats
    head = _HEAD.pack(
        record.capacity_bytes,
        record.first_chunk,
        record.end_chunk,
        stats.bytes_read,
        stats.bytes_zero,
        stats.bytes_unchanged,
        stats.bytes_deduplicated,
        stats.bytes_new,
        stats.bytes_stored,
        stats.packs,
        record.chunk_size_bytes,
        len(record.packs),
        0,
    )
    return b"".join((head, *(_PACK.pack(*pack) for pack in record.packs), record.digests))


def decode_progress(body: bytes, name: str) -> ProgressRecord:
    """Read the body of a progress record. Raises IntegrityError for what cannot be true."""
    if len(body) < _HEAD.size:
        raise IntegrityError(f"object {name} is damaged: only {len(body)} bytes of body")
    values = _HEAD.unpack_from(body)
    capacity, first, end = values[:3]
    chunk_size, pack_count, zero = values[10:]
    digests_offset = _HEAD.size + pack_count * _PACK.size
    if zero or end <= first or len(body) != digests_offset + (end - first) * ID_LENGTH:
        raise IntegrityError(f"object {name} is damaged: its range and its length do not agree")
    listed = [SealedPack(*item) for item in _PACK.iter_unpack(body[_HEAD.size : digests_offset])]
    return ProgressRecord(
        capacity, chunk_size, first, end, body[digests_offset:], DiskStats(*values[3:10]), listed
    )
