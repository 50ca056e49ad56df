"""Datastore paths (`[datastore] folder/file.vmdk`) from vCenter and descriptors: untrusted, checked here.

Nothing is ever decoded or normalised on the way to the filer: a name is used as it is, or refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from safehaul.errors import InvalidInputError

MAX_COMPONENT_BYTES = 255
"""NAME_MAX of the filesystems behind NFS servers; NFSv3 leaves it to them (RFC 1813, PATHCONF)."""
MAX_PATH_BYTES = 4096
MAX_DATASTORE_CHARACTERS = 80
"""VMware limits entity names to 80 characters; `%` escapes inside a name count as part of it."""

_ENCODED_SEPARATOR = re.compile(r"%(?:2f|5c|00)", re.IGNORECASE)
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, lone surrogates, line and paragraph separators."""


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A checked datastore path: `relative` is `/`-separated, without empty, `.` or `..` components."""

    datastore: str
    relative: str

    def __str__(self) -> str:
        """The path as vCenter writes it."""
        return f"[{self.datastore}] {self.relative}"

    @property
    def name(self) -> str:
        """The last component."""
        return self.relative.rpartition("/")[2]

    @property
    def directory(self) -> str:
        """All but the last component; empty for a file in the datastore's root."""
        return self.relative.rpartition("/")[0]

    @property
    def parent(self) -> DatastorePath:
        """The directory that holds it. Raises InvalidInputError for a file in the datastore's root."""
        return DatastorePath(self.datastore, check_relative(self.directory))

    def child(self, name: str) -> DatastorePath:
        """A file in this directory. Raises InvalidInputError when `name` is no plain file name."""
        return DatastorePath(self.datastore, f"{self.relative}/{check_component(name)}")

    def sibling(self, name: str) -> DatastorePath:
        """The path of another file in the same directory; `name` is a plain file name from a descriptor.

        Raises InvalidInputError for anything else, such as a path or `..`.
        """
        if "/" in name:
            raise InvalidInputError(
                f"{safe(str(self))} names {safe(name)}: "
                "only a plain file name in the same directory is accepted"
            )
        check_component(name)
        return DatastorePath(self.datastore, f"{self.directory}/{name}" if self.directory else name)


def parse_datastore_path(text: str) -> DatastorePath:
    """Parse `[datastore] folder/file`.

    Raises InvalidInputError with a safe representation of the text and the reason.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"a datastore path must be text, not {type(text).__name__}")
    end = text.find("] ")
    if not text.startswith("[") or end < 0:
        raise InvalidInputError(f"datastore path {safe(text)} is not of the form '[datastore] folder/file'")
    datastore = text[1:end]
    check_datastore(datastore)
    return DatastorePath(datastore, check_relative(text[end + 2 :]))


def check_datastore(name: str) -> str:
    """Return the datastore's name if it is a plain one, else raise InvalidInputError."""
    if not name or len(name) > MAX_DATASTORE_CHARACTERS:
        raise InvalidInputError(
            f"datastore name {safe(name)} must have 1 to {MAX_DATASTORE_CHARACTERS} characters"
        )
    _check_characters(name, name)
    return name


def check_relative(relative: str) -> str:
    """Return the path below a datastore if it is safe to use as it is, else raise InvalidInputError."""
    if not relative:
        raise InvalidInputError("a path below a datastore is empty")
    if relative.startswith("/"):
        raise InvalidInputError(f"path {safe(relative)} is absolute; it must be relative to its datastore")
    if "\x00" not in relative and len(relative.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise InvalidInputError(f"path {safe(relative)} is longer than {MAX_PATH_BYTES} bytes")
    for component in relative.split("/"):
        check_component(component, relative)
    return relative


def check_component(component: str, whole: str | None = None) -> str:
    """Return one component of a path if it is a plain file name, else raise InvalidInputError."""
    whole = component if whole is None else whole
    if component in {"", ".", ".."}:
        raise InvalidInputError(f"path {safe(whole)} has an empty, '.' or '..' component")
    if "/" in component:
        raise InvalidInputError(f"{safe(whole)} is a path where a plain file name is expected")
    _check_characters(component, whole)
    if len(component.encode("utf-8")) > MAX_COMPONENT_BYTES:
        raise InvalidInputError(
            f"path {safe(whole)} has a component of more than {MAX_COMPONENT_BYTES} bytes"
        )
    return component


def resolve_parent_hint(child: DatastorePath, hint: str, volumes: Mapping[str, str]) -> DatastorePath:
    """Resolve a descriptor's `parentFileNameHint`, for a chain whose parents vCenter did not name.

    The hint is a plain name (same directory), or `/vmfs/volumes/VOLUME/folder/file`, where VOLUME is a
    datastore's name or volume id: `volumes` maps each accepted spelling to a datastore's name. All else, such as
    a relative path with directories, raises InvalidInputError: the chain that vCenter tells is better.
    """
    prefix = "/vmfs/volumes/"
    if not hint.startswith(prefix):
        return child.sibling(hint)
    volume, _, relative = hint.removeprefix(prefix).partition("/")
    datastore = volumes.get(volume)
    if datastore is None:
        raise InvalidInputError(
            f"{safe(str(child))} names a parent on volume {safe(volume)}, which is no known NAS datastore"
        )
    return DatastorePath(check_datastore(datastore), check_relative(relative))


def safe(text: str, limit_characters: int = 120) -> str:
    """A representation for messages: quoted, shortened; what does not print (also bidi controls) is escaped."""
    shown = repr(text[: limit_characters + 1])
    return shown if len(shown) <= limit_characters else f"{shown[:limit_characters]}…"


def _check_characters(part: str, whole: str) -> None:
    if "\\" in part:
        raise InvalidInputError(f"path {safe(whole)} has a backslash")
    if _ENCODED_SEPARATOR.search(part):
        raise InvalidInputError(f"path {safe(whole)} has an encoded separator")
    for character in part:
        if character in _BIDI_CONTROLS or unicodedata.category(character) in _REFUSED_CATEGORIES:
            raise InvalidInputError(f"path {safe(whole)} has the forbidden character U+{ord(character):04X}")
