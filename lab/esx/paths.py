"""Datastore paths (`[datastore] directory/file`): taken apart and resolved without leaving the datastore."""

from __future__ import annotations

import re
from pathlib import Path

from lab.esx.api import Fault

_PATH = re.compile(r"^\[([^\[\]/\x00]{1,80})\] ?(.*)$", re.DOTALL)


class HostError(Exception):
    """A refusal by the hosts, as a vSphere fault."""

    def __init__(self, type_name: str, message: str, **fields: str) -> None:
        super().__init__(f"{type_name}: {message}")
        self.fault = Fault(type=type_name, message=message, fields=fields)


def split(path: str) -> tuple[str, str]:
    """`[ds] a/b` → ("ds", "a/b"). Errors: HostError InvalidDatastorePath."""
    match = _PATH.match(path)
    if match is None:
        raise HostError("InvalidDatastorePath", f"{path!r} is no datastore path", datastorePath=path)
    return match[1], match[2].strip("/")


def join(datastore: str, *parts: str) -> str:
    """("ds", "a", "b") → `[ds] a/b`."""
    return f"[{datastore}] " + "/".join(part.strip("/") for part in parts if part.strip("/"))


def sibling(path: str, name: str) -> str:
    """The file `name` in the directory of datastore path `path`."""
    datastore, inner = split(path)
    return join(datastore, inner.rpartition("/")[0], name)


def name_of(path: str) -> str:
    """The last part of a datastore path."""
    return split(path)[1].rpartition("/")[2]


def resolve(datastores_dir: Path, path: str) -> Path:
    """The local file of a datastore path, below STATE/datastores/NAME.

    Errors: HostError InvalidDatastorePath for `..`, NUL, empty parts or a symbolic link that leads outside.
    """
    datastore, inner = split(path)
    parts = inner.split("/") if inner else []
    bad = any(part in {"", ".", ".."} or "\0" in part or len(part.encode()) > 255 for part in parts)
    root = datastores_dir / datastore
    local = root.joinpath(*parts) if not bad else root
    if bad or datastore in {".", ".."} or not local.resolve().is_relative_to(root.resolve()):
        raise HostError("InvalidDatastorePath", f"{path!r} leaves its datastore", datastorePath=path)
    return local
