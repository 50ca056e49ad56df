"""Names of the repository's objects: which are allowed, and how foreign text becomes part of one.

An object name is a path of segments joined by `/`. Everything that comes from outside (VC.GUIDs, workflow
ids, group names) passes `encode_segment`, so that no name can leave its folder, collide with a hidden file,
or exceed what a file system or an object store takes.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

from safehaul.errors import InvalidInputError

MAX_NAME_LENGTH = 900
"""Characters of a whole name. S3 allows 1,024 bytes of key; the rest is left for a prefix of the bucket."""

MAX_SEGMENT_LENGTH = 200
"""Characters of one segment. ext4, XFS and NFS allow 255 bytes; the rest is left for a temporary suffix."""

_SEGMENT = re.compile(r"[A-Za-z0-9_%~=-][A-Za-z0-9_.%~=-]{0,199}")
_SAFE = "~=-_."


def check_name(name: str) -> str:
    """Return `name` when it is an allowed object name, else raise InvalidInputError."""
    segments = name.split("/")
    if len(name) > MAX_NAME_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise InvalidInputError(
            f"object name {name[:200]!r} is not allowed: use segments of letters, digits and _%~=-. "
            f"(no leading dot, at most {MAX_SEGMENT_LENGTH} characters each, {MAX_NAME_LENGTH} in all)"
        )
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` when it is empty or a folder with its trailing `/`, else raise InvalidInputError."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidInputError(f"prefix {prefix[:200]!r} must be empty or end with a slash")
        check_name(prefix[:-1])
    return prefix


def encode_segment(text: str, *, what: str, reversible: bool = False) -> str:
    """Make one allowed segment of any text: percent-encoded UTF-8 (RFC 3986, section 2.1).

    Text that would be too long is cut and completed with a digest, so that it stays distinct; with
    `reversible` such text is refused instead, because `decode_segment` could not give it back.
    Raises InvalidInputError, naming `what`, for empty text and for too long text.
    """
    if not text:
        raise InvalidInputError(f"{what} must not be empty")
    encoded = quote(text, safe=_SAFE, errors="surrogatepass")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) <= MAX_SEGMENT_LENGTH:
        return encoded
    if reversible:
        raise InvalidInputError(f"{what} {text[:60]!r}… is too long for an object name")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{encoded[:120].rstrip('%')}~{digest}"


def decode_segment(segment: str) -> str:
    """Undo `encode_segment` (for segments that were not cut)."""
    return unquote(segment, errors="surrogatepass")
