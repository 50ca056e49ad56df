"""A request's body, by length or in chunks (RFC 9112, sections 6.2 and 7.1), never more than a fixed size."""

from __future__ import annotations

import email.message
from io import BufferedIOBase

MAX_BODY_BYTES = 8 << 20  # a request for the properties of 10,000 named objects takes about 1 MB
_MAX_LINE_BYTES = 1024  # of a chunk's size with its extensions, or of a trailer field
_MAX_TRAILERS = 32


class BodyRefusedError(Exception):
    """The body is not read; `status` is the HTTP status to answer, after which the connection ends."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def request_body(headers: email.message.Message, stream: BufferedIOBase) -> bytes:
    """Read the body that `headers` announce.

    Raises:
        BodyRefusedError: 411 no length is given, 413 it is too long, 400 it is malformed or cut off.
    """
    if headers.get("Transfer-Encoding", "").strip().lower() == "chunked":
        return _chunked(stream)
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit()):
        raise BodyRefusedError(411)
    if int(length) > MAX_BODY_BYTES:
        raise BodyRefusedError(413)
    return _exactly(stream, int(length))


def _chunked(stream: BufferedIOBase) -> bytes:
    parts: list[bytes] = []
    total_bytes = 0
    while True:
        size_bytes = _chunk_size(_line(stream))
        if size_bytes == 0:
            break
        total_bytes += size_bytes
        if total_bytes > MAX_BODY_BYTES:
            raise BodyRefusedError(413)
        parts.append(_exactly(stream, size_bytes))
        if _line(stream):
            raise BodyRefusedError(400)
    for _ in range(_MAX_TRAILERS):
        if not _line(stream):
            return b"".join(parts)
    raise BodyRefusedError(400)


def _chunk_size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    if not digits or len(digits) > 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise BodyRefusedError(400)
    return int(digits, 16)


def _line(stream: BufferedIOBase) -> bytes:
    line = stream.readline(_MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise BodyRefusedError(400)
    return line.rstrip(b"\r\n")


def _exactly(stream: BufferedIOBase, size_bytes: int) -> bytes:
    content = stream.read(size_bytes)
    if len(content) != size_bytes:
        raise BodyRefusedError(400)
    return content
