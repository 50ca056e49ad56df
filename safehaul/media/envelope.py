"""The wrapping of every small object: what it is, which version, whether it is whole.

Layout (little endian), version 1:

    0   8  magic `SAFEHAUL`
    8   4  kind, ASCII
    12  2  version of that kind
    14  2  suite: 0 = not encrypted, 1 = AES-256-GCM; the suite decides what follows

Suite 0:

    16  4  flags: bit 0 = body is one zstd frame (RFC 8878)
    20  4  zero
    24  8  length of the body before compression
    32  …  body
    -32 32 keyed BLAKE3 of the object's name (length as 2 bytes, then UTF-8) and of all bytes before

Suite 1: 32 random bytes, then offset 16 to the body of suite 0, encrypted, then the tag of 16 bytes; all bound to the
name and to the first 16 bytes.

The name is part of what is signed, so that an object copied over another one's name is found out.
Source: docs/repository-format.md.
"""

from __future__ import annotations

import struct
from enum import Enum

import zstandard
from blake3 import blake3

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.media.keys import SALT_LENGTH, SUITE_NONE, SUITES, TAG_LENGTH, RepositoryKeys

MAGIC = b"SAFEHAUL"
COMMON_HEADER = struct.Struct("<8s4sHH")
DIGEST_LENGTH = 32
BODY_LIMIT_BYTES = 32 << 20
"""No small object is larger; who reads one need not trust its length field beyond this."""

_FLAG_ZSTD = 1
_BODY_HEADER = struct.Struct("<IIQ")
_BODY_OFFSET = COMMON_HEADER.size + _BODY_HEADER.size
OBJECT_LIMIT_BYTES = BODY_LIMIT_BYTES + _BODY_OFFSET + SALT_LENGTH + DIGEST_LENGTH


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
    FORGOTTEN = b"FRGT"
    VERIFIED = b"VRFD"
    HOLD = b"HOLD"
    AUDIT = b"AUDT"


VERSION = 1
"""The one version that this code writes; each kind counts its own."""


def pack_common_header(kind: Kind, suite: int) -> bytes:
    """Return the 16 bytes that begin every object but `config` and key slots."""
    return COMMON_HEADER.pack(MAGIC, kind.value, VERSION, suite)


def check_common_header(data: bytes | memoryview, kind: Kind, name: str, suite: int) -> None:
    """Check the first 16 bytes of an object in a repository of `suite`.

    Raises IntegrityError when they are not those of a `kind` object, or those of another suite; UnsupportedError for
    a newer version or an unknown suite.
    """
    if len(data) < COMMON_HEADER.size:
        raise IntegrityError(f"object {name} is damaged: only {len(data)} bytes long")
    magic, found_kind, version, found_suite = COMMON_HEADER.unpack_from(data)
    if magic != MAGIC or found_kind != kind.value:
        raise IntegrityError(
            f"object {name} is damaged: it does not begin as a {kind.name.lower()} object does"
        )
    if version != VERSION or found_suite not in SUITES:
        raise UnsupportedError(
            f"object {name} has version {version} and suite {found_suite}; this safehaul reads version {VERSION} and "
            f"suites {', '.join(map(str, sorted(SUITES)))}: use a newer safehaul, or the object is damaged"
        )
    if found_suite != suite:
        raise IntegrityError(
            f"object {name} has suite {found_suite} in a repository of suite {suite}: it is damaged, or was put there "
            "by somebody else"
        )


def _bound_to(name: str) -> bytes:
    encoded = name.encode()
    return len(encoded).to_bytes(2, "little") + encoded


def _digest(keys: RepositoryKeys, name: str, *parts: bytes | memoryview) -> bytes:
    hasher = blake3(_bound_to(name), key=keys.object)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def wrap(keys: RepositoryKeys, kind: Kind, name: str, body: bytes) -> bytes:
    """Make the stored form of a small object that will be named `name`."""
    if len(body) > BODY_LIMIT_BYTES:
        raise UnsupportedError(f"object {name} would be {len(body)} bytes; the limit is {BODY_LIMIT_BYTES}")
    flags, stored = 0, body
    compressed = zstandard.ZstdCompressor(level=1).compress(body)
    if len(compressed) < len(body):
        flags, stored = _FLAG_ZSTD, compressed
    head = pack_common_header(kind, keys.suite)
    rest = _BODY_HEADER.pack(flags, 0, len(body)) + stored
    if keys.suite == SUITE_NONE:
        return b"".join((head, rest, _digest(keys, name, head, rest)))
    return head + keys.seal(_bound_to(name) + head, rest)


def unwrap(keys: RepositoryKeys, kind: Kind, name: str, data: bytes) -> bytes:
    """Check the stored form of a small object and return its body.

    Raises IntegrityError for any damage, UnsupportedError for a newer version.
    """
    check_common_header(data, kind, name, keys.suite)
    rest = _open_body(keys, name, data)
    flags, reserved, raw_length = _BODY_HEADER.unpack_from(rest)
    stored = rest[_BODY_HEADER.size :]
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


def _open_body(keys: RepositoryKeys, name: str, data: bytes) -> memoryview:
    """What follows the common header, checked and decrypted: body header and stored body."""
    view = memoryview(data)
    salt = 0 if keys.suite == SUITE_NONE else SALT_LENGTH
    tail = DIGEST_LENGTH if keys.suite == SUITE_NONE else TAG_LENGTH
    if len(data) < _BODY_OFFSET + salt + tail:
        raise IntegrityError(f"object {name} is damaged: only {len(data)} bytes long")
    if salt:
        head = bytes(view[: COMMON_HEADER.size])
        return memoryview(keys.open(_bound_to(name) + head, view[COMMON_HEADER.size :], name))
    if _digest(keys, name, view[:-DIGEST_LENGTH]) != data[-DIGEST_LENGTH:]:
        raise IntegrityError(
            f"object {name} is damaged or belongs to another name: its digest does not agree"
        )
    return view[COMMON_HEADER.size : -DIGEST_LENGTH]
