"""Which store a repository's URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from safehaul.errors import ConfigError
from safehaul.media.object_store import DeletingStore, ObjectStore
from safehaul.media.store_local import LocalStore

__all__ = ["DeletingStore", "LocalStore", "ObjectStore", "open_deleting_store", "open_store"]


def open_store(url: str) -> ObjectStore:
    """Open the store that a URL names: `file:///absolute/path`.

    Raises ConfigError for other schemes, naming what is supported.
    """
    return _open(url)


def open_deleting_store(url: str) -> DeletingStore:
    """Open the store with the right to delete, for whoever keeps the repository. Raises as `open_store`."""
    return _open(url)


def _open(url: str) -> LocalStore:
    parts = urlsplit(url)
    if parts.scheme != "file":
        scheme = parts.scheme or "none"
        raise ConfigError(f"repository URL has scheme {scheme!r}; supported: file:///absolute/path")
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not path.startswith("/") or parts.query or parts.fragment:
        raise ConfigError(
            f"repository URL {url!r} must be file:///absolute/path, without host, query or fragment"
        )
    return LocalStore(Path(path))
