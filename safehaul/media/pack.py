"""Packs: many chunks in one object, with a trailer that lists them. Written once, never appended to.

Layout (little endian), version 1:

    header   64  common header (16), pack id (32), zero (16)
    frame    48  magic `CHNK` (4), flags (4), stored length (4), raw length (4), chunk id (32)
                 then the payload; frames follow each other without gaps
    trailer  56  for each chunk: chunk id (32), offset of its frame (8), stored length (4), raw length (4),
                 flags (4), zero (4)
    footer   96  offset of the trailer (8), count of chunks (4), zero (4), body digest (32),
                 trailer digest (32), zero (8), magic `SAFEPACK` (8)

Suite 1 differs in one thing: each payload is encrypted, and 16 bytes (the tag) longer; its frame's header, its place
and the pack's id are bound to it. Headers and trailer stay readable: ids are keyed, but chunks' lengths can be seen.

Body digest: keyed BLAKE3 of all bytes before the trailer; in suite 1 of the pack's header and of each frame's header
and tag, because a tag covers its payload already. Trailer digest: keyed BLAKE3 of the pack id, the trailer and the
footer's first 48 bytes. So every byte of a pack is covered, and each index can be rebuilt from packs alone. Source:
docs/repository-format.md.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from typing import NamedTuple

from blake3 import blake3

from safehaul.direct_io import BLOCK_BYTES, page_buffer
from safehaul.errors import IntegrityError, InvalidInputError
from safehaul.media.codec import FLAG_ZSTD, ID_LENGTH, Decompressor
from safehaul.media.envelope import Kind, check_common_header, pack_common_header
from safehaul.media.keys import SUITE_AES_GCM, TAG_LENGTH, FrameCipher, RepositoryKeys
from safehaul.media.object_store import ObjectStore

HEADER_LENGTH = 64
FRAME = struct.Struct("<4sIII32s")
FRAME_MAGIC = b"CHNK"
_ENTRY = struct.Struct("<32sQIIII")
_FOOTER = struct.Struct("<QII32s32s8s8s")
_FOOTER_SIGNED_LENGTH = 48
_FOOTER_MAGIC = b"SAFEPACK"
MAX_CHUNKS = 1 << 16
"""Chunks of one pack: bounds the trailer to 3.5 MiB."""

MAX_PACK_BYTES = 1 << 30

_BUFFER_BYTES = 2 << 20


class ChunkEntry(NamedTuple):
    """Where one chunk lies in its pack."""

    chunk_id: bytes
    offset: int
    """Of the frame, in bytes from the pack's start; the payload follows 48 bytes later."""
    stored_length: int
    raw_length: int
    flags: int

    @property
    def end(self) -> int:
        """Offset of the byte after the payload."""
        return self.offset + FRAME.size + self.stored_length

    def frame_header(self) -> bytes:
        """Return the 48 bytes that must stand at `offset`."""
        return FRAME.pack(FRAME_MAGIC, self.flags, self.stored_length, self.raw_length, self.chunk_id)


class SealedPack(NamedTuple):
    """A pack that is durable."""

    pack_id: bytes
    size_bytes: int


def pack_name(pack_id: bytes) -> str:
    """Return the object name of a pack: `packs/xx/ID`, fanned out by the id's first byte."""
    text = pack_id.hex()
    return f"packs/{text[:2]}/{text}"


class BodyDigest:
    """What a pack's footer says of all bytes before the trailer."""

    def __init__(self, keys: RepositoryKeys, pack_header: bytes) -> None:
        self._hasher = blake3(pack_header, key=keys.object)
        self._sealed = keys.suite == SUITE_AES_GCM

    def add(self, frame: memoryview) -> None:
        """Count the next frame: header and payload."""
        if self._sealed:
            # The tag is over the payload, and the reader checks it with the cipher: no byte need be hashed again.
            self._hasher.update(frame[: FRAME.size])
            self._hasher.update(frame[-TAG_LENGTH:])
        else:
            self._hasher.update(frame)

    def digest(self) -> bytes:
        """Of what was added up to now."""
        return self._hasher.digest()


class PackBuilder:
    """Writes one new pack. The id is fresh and random: never taken from content or from a workflow's id.

    Frames are made in a buffer that is written in whole blocks, so that a store can write them past the page cache.
    With `writes`, an executor of one thread, they are written there while the next ones are made in another buffer.
    """

    def __init__(self, store: ObjectStore, keys: RepositoryKeys, writes: Executor | None = None) -> None:
        self.pack_id = secrets.token_bytes(ID_LENGTH)
        self._keys = keys
        self._cipher = keys.frames(self.pack_id)
        self._entries: list[ChunkEntry] = []
        self._upload = store.create(pack_name(self.pack_id))
        # Of pages, because direct I/O asks for whole ones; it grows when a frame does not fit.
        self._buffer = page_buffer(_BUFFER_BYTES)
        self._other = page_buffer(_BUFFER_BYTES) if writes is not None else self._buffer
        self._writes = writes
        self._writing: Future[None] | None = None
        self._filled = 0
        self._written = 0
        header = pack_common_header(Kind.PACK, keys.suite) + self.pack_id + bytes(16)
        self._digest = BodyDigest(keys, header)
        self._append(header)

    @property
    def size_bytes(self) -> int:
        """Bytes added up to now."""
        return self._written + self._filled

    @property
    def chunk_count(self) -> int:
        """Chunks added up to now."""
        return len(self._entries)

    def _append(self, data: bytes) -> None:
        self._make_room(len(data))
        self._buffer[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def _make_room(self, length: int) -> None:
        if self._filled + length <= len(self._buffer):
            return
        whole = self._filled - self._filled % BLOCK_BYTES
        rest = self._buffer[whole : self._filled]
        self._write(whole)
        # What was written from the other buffer is done: two writes never wait.
        self._buffer, self._other = self._other, self._buffer
        needed = self._filled + length
        if needed > len(self._buffer):
            self._buffer = page_buffer(needed)
        self._buffer[: self._filled] = rest

    def _write(self, length: int) -> None:
        self._wait()
        data = self._buffer[:length]
        if self._writes is None:
            self._upload.write(data)
        else:
            self._writing = self._writes.submit(self._upload.write, data)
        self._written += length
        self._filled -= length

    def _wait(self) -> None:
        """Until the write under way is done. Raises what it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def add(self, chunk_id: bytes, raw_length: int, flags: int, payload: bytes | memoryview) -> None:
        """Append one chunk."""
        if len(self._entries) >= MAX_CHUNKS:
            raise InvalidInputError(f"a pack holds at most {MAX_CHUNKS} chunks")
        length = len(payload) + self._keys.overhead
        entry = ChunkEntry(chunk_id, self.size_bytes, length, raw_length, flags)
        self._make_room(FRAME.size + length)
        frame = self._buffer[self._filled : self._filled + FRAME.size + length]
        header = entry.frame_header()
        frame[: FRAME.size] = header
        if self._cipher is not None:
            self._cipher.seal_into(header, entry.offset, payload, frame[FRAME.size :])
        else:
            frame[FRAME.size :] = payload
        self._digest.add(frame)
        self._filled += len(frame)
        self._entries.append(entry)

    def seal(self) -> SealedPack:
        """Write trailer and footer and make the pack durable."""
        body_digest = self._digest.digest()
        trailer_offset = self.size_bytes
        trailer = encode_entries(self._entries)
        signed = struct.pack("<QII32s", trailer_offset, len(self._entries), 0, body_digest)
        trailer_digest = _trailer_digest(self._keys.object, self.pack_id, trailer, signed)
        self._append(trailer)
        self._append(signed + trailer_digest + bytes(8) + _FOOTER_MAGIC)
        self._write(self._filled)
        self._wait()
        self._upload.commit()
        return SealedPack(self.pack_id, self.size_bytes)

    def abort(self) -> None:
        """Throw the pack away. Harmless after `seal`."""
        if self._writing is not None:
            # Nothing may be written any more when the file is closed; whether it failed does not matter now.
            wait([self._writing])
        self._upload.abort()


def _trailer_digest(key: bytes, pack_id: bytes, trailer: bytes, signed: bytes) -> bytes:
    return blake3(pack_id + trailer + signed, key=key).digest()


def encode_entries(entries: list[ChunkEntry]) -> bytes:
    """Return the 56-byte records of a trailer."""
    return b"".join(_ENTRY.pack(*entry, 0) for entry in entries)


ENTRY_LENGTH = _ENTRY.size


def decode_entries(data: bytes | memoryview, name: str, limit: int) -> Iterator[ChunkEntry]:
    """Yield a trailer's records. `limit` is the offset before which all frames end.

    Raises IntegrityError for records that cannot be true.
    """
    for chunk_id, offset, stored, raw, flags, zero in _ENTRY.iter_unpack(data):
        entry = ChunkEntry(chunk_id, offset, stored, raw, flags)
        if zero or flags & ~FLAG_ZSTD or offset < HEADER_LENGTH or entry.end > limit or not raw:
            raise IntegrityError(f"{name} lists chunk {chunk_id.hex()} at an impossible place")
        yield entry


class PackContents(NamedTuple):
    """What footer and trailer of a pack say."""

    entries: list[ChunkEntry]
    body_length: int
    body_digest: bytes


def read_trailer(store: ObjectStore, keys: RepositoryKeys, pack: SealedPack) -> PackContents:
    """Read and check a pack's footer and trailer: two ranged reads.

    Raises NotFoundError when the pack is gone, IntegrityError for damage or another size.
    """
    name = pack_name(pack.pack_id)
    size = store.size(name)
    if size != pack.size_bytes or not HEADER_LENGTH + _FOOTER.size <= size <= MAX_PACK_BYTES:
        raise IntegrityError(f"pack {name} has {size} bytes instead of {pack.size_bytes}")
    footer = store.get_range(name, size - _FOOTER.size, _FOOTER.size)
    trailer_offset, count, zero, body_digest, trailer_digest, pad, magic = _FOOTER.unpack(footer)
    if magic != _FOOTER_MAGIC or zero or pad != bytes(8):
        raise IntegrityError(f"pack {name} has a damaged footer")
    length = size - _FOOTER.size - trailer_offset
    if length != count * _ENTRY.size or count > MAX_CHUNKS or trailer_offset < HEADER_LENGTH:
        raise IntegrityError(f"pack {name} has a damaged footer: the trailer's place is impossible")
    trailer = store.get_range(name, trailer_offset, length)
    if _trailer_digest(keys.object, pack.pack_id, trailer, footer[:_FOOTER_SIGNED_LENGTH]) != trailer_digest:
        raise IntegrityError(f"pack {name} has a damaged trailer: its digest does not agree")
    return PackContents(list(decode_entries(trailer, name, trailer_offset)), trailer_offset, body_digest)


def check_pack_header(data: bytes | memoryview, pack_id: bytes, suite: int) -> None:
    """Check the first 64 bytes of a pack. Raises IntegrityError, UnsupportedError for a newer version."""
    name = pack_name(pack_id)
    check_common_header(data, Kind.PACK, name, suite)
    if data[16:48] != pack_id or data[48:HEADER_LENGTH] != bytes(16):
        raise IntegrityError(f"pack {name} has a damaged header")


def decode_frame(
    decompressor: Decompressor,
    cipher: FrameCipher | None,
    frame: memoryview,
    entry: ChunkEntry,
    out: memoryview,
) -> None:
    """Decode a frame (header and payload) into `out`, exactly the chunk's length. Raises IntegrityError."""
    header = entry.frame_header()
    if frame[: FRAME.size] != header:
        raise IntegrityError(f"chunk {entry.chunk_id.hex()} has a damaged frame header")
    payload = frame[FRAME.size :]
    if cipher is not None:
        payload = memoryview(cipher.open(header, entry.offset, payload))
    decompressor.decode_into(entry.flags, payload, out, entry.chunk_id)
