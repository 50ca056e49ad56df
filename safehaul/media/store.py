"""Which store a repository's URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from safehaul.errors import ConfigError
from safehaul.media.object_store import ObjectStore
from safehaul.media.store_local import LocalStore

__all__ = ["LocalStore", "ObjectStore", "open_store"]


def open_store(url: str) -> ObjectStore:
    """Open the store that a URL names: `file:///absolute/path`.

    Raises ConfigError for other schemes, naming what is supported.
    """
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
