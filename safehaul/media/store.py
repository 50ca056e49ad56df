"""Which store a repository's URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from safehaul.errors import ConfigError, InvalidInputError
from safehaul.media.names import check_name
from safehaul.media.object_store import DeletingStore, ObjectStore
from safehaul.media.store_local import LocalStore
from safehaul.media.store_s3 import SCHEMES, S3Options, S3Store, open_bucket

__all__ = [
    "DeletingStore",
    "LocalStore",
    "ObjectStore",
    "S3Options",
    "S3Store",
    "open_deleting_store",
    "open_store",
]

_MAX_PREFIX_LENGTH = 100
_SUPPORTED = "supported: file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"


def open_store(url: str, options: S3Options | None = None) -> ObjectStore:
    """Open the store that a URL names: `file:///absolute/path`, or a bucket such as `s3://bucket/prefix`.

    `options` say how a bucket is reached. Raises ConfigError for other schemes, naming what is supported.
    """
    return _open(url, options or S3Options())


def open_deleting_store(url: str, options: S3Options | None = None) -> DeletingStore:
    """Open the store with the right to delete, for whoever keeps the repository. Raises as `open_store`.

    For a bucket that right is the server's to give: `options` hold the keys of an identity that has it.
    """
    return _open(url, options or S3Options())


def _open(url: str, options: S3Options) -> LocalStore | S3Store:
    parts = urlsplit(url)
    if parts.scheme in SCHEMES:
        return _bucket(parts, options)
    if parts.scheme != "file":
        scheme = parts.scheme or "none"
        raise ConfigError(f"repository URL has scheme {scheme!r}; {_SUPPORTED}")
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not path.startswith("/") or parts.query or parts.fragment:
        raise ConfigError(
            f"repository URL {url!r} must be file:///absolute/path, without host, query or fragment"
        )
    return LocalStore(Path(path))


def _bucket(parts: SplitResult, options: S3Options) -> S3Store:
    prefix = parts.path.strip("/")
    plain = parts.netloc and not set(parts.netloc) & set("@:[]%") and not (parts.query or parts.fragment)
    try:
        if prefix:
            check_name(prefix)
    except InvalidInputError:
        plain = False
    if not plain or len(prefix) > _MAX_PREFIX_LENGTH:
        raise ConfigError(
            f"repository URL must be {parts.scheme}://bucket or {parts.scheme}://bucket/prefix: letters, digits and "
            f"_.~=- in at most {_MAX_PREFIX_LENGTH} characters, without user, port, query or fragment"
        )
    url = f"{parts.scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else "")
    bucket = open_bucket(parts.scheme, parts.netloc, prefix, options)
    return S3Store(bucket, url, part_size_bytes=options.part_size_bytes)
