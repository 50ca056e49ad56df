"""The wrapping of every small object: what it is, which version, whether it is whole.

Layout (little endian), version 1, suite 0:

    0   8  magic `SAFEHAUL`
    8   4  kind, ASCII
    12  2  version of that kind
    14  2  suite: 0 = not encrypted; the suite decides what follows
    16  4  flags: bit 0 = body is one zstd frame (RFC 8878)
    20  4  zero
    24  8  length of the body before compression
    32  …  body
    -32 32 keyed BLAKE3 of the object's name (length as 2 bytes, then UTF-8) and of all bytes before

The name is part of the digest, so that an object copied over another one's name is found out.
Source: docs/repository-format.md.
"""

from __future__ import annotations

import struct
from enum import Enum

import zstandard
from blake3 import blake3

from safehaul.errors import IntegrityError, UnsupportedError

MAGIC = b"SAFEHAUL"
COMMON_HEADER = struct.Struct("<8s4sHH")
SUITE_NONE = 0
DIGEST_LENGTH = 32
BODY_LIMIT_BYTES = 32 << 20
"""No small object is larger; who reads one need not trust its length field beyond this."""

_FLAG_ZSTD = 1
_BODY_HEADER = struct.Struct("<IIQ")
_BODY_OFFSET = COMMON_HEADER.size + _BODY_HEADER.size
OBJECT_LIMIT_BYTES = BODY_LIMIT_BYTES + _BODY_OFFSET + DIGEST_LENGTH


class Kind(Enum):
    """What an object is: the four ASCII bytes at offset 8."""

    PACK = b"PACK"
    LOCATIONS = b"IDX1"
    PAGE = b"PAGE"
    MANIFEST = b"MANI"
    INDEX = b"INDX"
    SESSION = b"SESS"
    PROGRESS = b"PROG"
    FILES = b"FILS"
    COLLECTION = b"GCGN"
    JOB = b"JOBO"


VERSION = 1
"""The one version that this code writes; each kind counts its own."""


def pack_common_header(kind: Kind) -> bytes:
    """Return the 16 bytes that begin every object but `config`."""
    return COMMON_HEADER.pack(MAGIC, kind.value, VERSION, SUITE_NONE)


def check_common_header(data: bytes | memoryview, kind: Kind, name: str) -> None:
    """Check the first 16 bytes of an object.

    Raises IntegrityError when they are not those of a `kind` object, UnsupportedError for a newer version
    or an unknown suite.
    """
    if len(data) < COMMON_HEADER.size:
        raise IntegrityError(f"object {name} is damaged: only {len(data)} bytes long")
    magic, found_kind, version, suite = COMMON_HEADER.unpack_from(data)
    if magic != MAGIC or found_kind != kind.value:
        raise IntegrityError(
            f"object {name} is damaged: it does not begin as a {kind.name.lower()} object does"
        )
    if version != VERSION or suite != SUITE_NONE:
        raise UnsupportedError(
            f"object {name} has version {version} and suite {suite}; this safehaul reads "
            f"version {VERSION} and suite {SUITE_NONE}: use a newer safehaul, or the object is damaged"
        )


def _digest(key: bytes, name: str, *parts: bytes | memoryview) -> bytes:
    encoded = name.encode()
    hasher = blake3(len(encoded).to_bytes(2, "little"), key=key)
    hasher.update(encoded)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def wrap(key: bytes, kind: Kind, name: str, body: bytes) -> bytes:
    """Make the stored form of a small object that will be named `name`."""
    if len(body) > BODY_LIMIT_BYTES:
        raise UnsupportedError(f"object {name} would be {len(body)} bytes; the limit is {BODY_LIMIT_BYTES}")
    flags, stored = 0, body
    compressed = zstandard.ZstdCompressor(level=1).compress(body)
    if len(compressed) < len(body):
        flags, stored = _FLAG_ZSTD, compressed
    head = pack_common_header(kind) + _BODY_HEADER.pack(flags, 0, len(body))
    return b"".join((head, stored, _digest(key, name, head, stored)))


def unwrap(key: bytes, kind: Kind, name: str, data: bytes) -> bytes:
    """Check the stored form of a small object and return its body.

    Raises IntegrityError for any damage, UnsupportedError for a newer version.
    """
    check_common_header(data, kind, name)
    if len(data) < _BODY_OFFSET + DIGEST_LENGTH:
        raise IntegrityError(f"object {name} is damaged: only {len(data)} bytes long")
    view = memoryview(data)
    if _digest(key, name, view[:-DIGEST_LENGTH]) != data[-DIGEST_LENGTH:]:
        raise IntegrityError(
            f"object {name} is damaged or belongs to another name: its digest does not agree"
        )
    flags, reserved, raw_length = _BODY_HEADER.unpack_from(data, COMMON_HEADER.size)
    stored = view[_BODY_OFFSET:-DIGEST_LENGTH]
    if flags & ~_FLAG_ZSTD or reserved or raw_length > BODY_LIMIT_BYTES:
        raise UnsupportedError(
            f"object {name} uses flags {flags:#x} or sizes that this safehaul does not know"
        )
    body = bytes(stored)
    if flags & _FLAG_ZSTD:
        try:
            body = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_length)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"object {name} is damaged: {error}") from error
    if len(body) != raw_length:
        raise IntegrityError(f"object {name} is damaged: {len(body)} bytes of body, {raw_length} declared")
    return body
