"""How vCenter writes names and datastore paths, and how we read them. Both are untrusted input."""

from __future__ import annotations

import re
from typing import NamedTuple

from safehaul.errors import InvalidInputError

# vSphere API reference, ManagedEntity.name: slash, backslash and percent are escaped.
_ESCAPED = re.compile(r"%(2f|5c|25)", re.IGNORECASE)
_PLAIN = {"2f": "/", "5c": "\\", "25": "%"}
_ESCAPES = {"%": "%25", "/": "%2f", "\\": "%5c"}

# vSphere API reference, Datastore: a datastore path is `[datastore] path/in/it`, with one space.
_DATASTORE_PATH = re.compile(r"^\[(?P<datastore>[^\]\x00-\x1f]+)\] ?(?P<path>[^\x00-\x1f]*)$")
# ESXi's own bound on a path (PATH_MAX of its file systems).
MAX_PATH_CHARS = 2048


def unescape(name: str) -> str:
    """The name as a person typed it: `%2f`, `%5c` and `%25` once, any other percent as it stands."""
    return _ESCAPED.sub(lambda match: _PLAIN[match.group(1).lower()], name)


def escape(name: str) -> str:
    """The name as vCenter's methods want it."""
    return re.sub(r"[%/\\]", lambda match: _ESCAPES[match.group(0)], name)


def path_component(name: str) -> str:
    """One component of a `/`-separated inventory path: unescaped, except that its own slashes stay `%2f`."""
    return unescape(name).replace("/", "%2f")


class DatastorePath(NamedTuple):
    """`[datastore] path`, taken apart."""

    datastore: str
    path: str
    """Relative, `/`-separated, without `.`, `..` and empty components; empty for the datastore's root."""

    @property
    def directory(self) -> str:
        """The datastore path of the directory that holds it."""
        return format_datastore_path(self.datastore, self.path.rpartition("/")[0])

    @property
    def file_name(self) -> str:
        """The last component."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        """`[datastore] path`."""
        return format_datastore_path(self.datastore, self.path)


def format_datastore_path(datastore: str, path: str) -> str:
    """`[datastore] path`; without a path `[datastore]` and a space, as vCenter writes the root."""
    return f"[{datastore}] {path}"


def parse_datastore_path(text: str) -> DatastorePath:
    """Takes `[datastore] path` apart.

    Raises:
        InvalidInputError: not of that form, too long, absolute, or climbing with `..`.
    """
    match = _DATASTORE_PATH.match(text) if len(text) <= MAX_PATH_CHARS else None
    if match is None:
        raise InvalidInputError(f"{text[:200]!r} is not a datastore path like '[datastore] folder/file'")
    path = match["path"].strip(" ").rstrip("/")
    components = path.split("/") if path else []
    if any(component in {"", ".", ".."} for component in components):
        raise InvalidInputError(f"datastore path {text[:200]!r} leaves its datastore or has empty components")
    return DatastorePath(match["datastore"], path)
