"""`idx/` objects: the trailers of many packs in one object, so that a reader need not open every pack.

Body (little endian): count of packs (4), variant (4), then for each pack: pack id (32), size (8), count of
chunks (4), zero (4), and the 56-byte records of its trailer. The object's name is the keyed BLAKE3 of its
body: two committers of one session write the same object. The variant is 0; a repair counts it up when the name
is taken by a damaged object. Source: docs/repository-format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from safehaul.errors import IntegrityError
from safehaul.media.pack import (
    ENTRY_LENGTH,
    MAX_CHUNKS,
    ChunkEntry,
    SealedPack,
    decode_entries,
    encode_entries,
)

_HEAD = struct.Struct("<II")
_PACK = struct.Struct("<32sQII")
BATCH_CHUNKS = 1 << 16
"""An object is closed when it lists this many chunks: 3.5 MiB, and at most twice that."""


class PackListing(NamedTuple):
    """One pack and the chunks in it."""

    pack: SealedPack
    entries: list[ChunkEntry]


def batches(listings: Iterable[PackListing]) -> Iterator[list[PackListing]]:
    """Group packs so that each group makes one `idx/` object of bounded size."""
    batch: list[PackListing] = []
    chunks = 0
    for listing in listings:
        batch.append(listing)
        chunks += len(listing.entries)
        if chunks >= BATCH_CHUNKS:
            yield batch
            batch, chunks = [], 0
    if batch:
        yield batch


def encode_locations(batch: list[PackListing], variant: int = 0) -> bytes:
    """Return the body of an `idx/` object."""
    parts = [_HEAD.pack(len(batch), variant)]
    for pack, entries in batch:
        parts.append(_PACK.pack(pack.pack_id, pack.size_bytes, len(entries), 0))
        parts.append(encode_entries(entries))
    return b"".join(parts)


def decode_locations(body: bytes, name: str) -> list[PackListing]:
    """Read the body of an `idx/` object. Raises IntegrityError for what cannot be true."""
    try:
        count, _ = _HEAD.unpack_from(body)
        position = _HEAD.size
        found = []
        for _ in range(count):
            pack_id, size, chunks, _ = _PACK.unpack_from(body, position)
            position += _PACK.size
            length = chunks * ENTRY_LENGTH
            if chunks > MAX_CHUNKS or position + length > len(body):
                raise IntegrityError(f"object {name} is damaged: it lists more chunks than it has room for")
            entries = list(decode_entries(memoryview(body)[position : position + length], name, size))
            position += length
            found.append(PackListing(SealedPack(pack_id, size), entries))
    except struct.error as error:
        raise IntegrityError(f"object {name} is damaged: {error}") from error
    if position != len(body):
        raise IntegrityError(f"object {name} is damaged: {len(body) - position} bytes too many")
    return found
