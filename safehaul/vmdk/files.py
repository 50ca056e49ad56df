"""What a disk chain needs of whoever holds its files. Structural: the NAS fits without knowing us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SECTOR_BYTES = 512
"""All offsets and sizes of VMDK formats count sectors of 512 bytes (Virtual Disk Format 5.0)."""


class OpenFile(Protocol):
    """A file open for positional reads; threads may share it."""

    @property
    def size_bytes(self) -> int:
        """The size when it was opened."""

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        """Fill the whole buffer from the offset, or raise."""

    def close(self) -> None:
        """Release the handle; a second call does nothing."""


class FileFacts(Protocol):
    """A file's attributes now."""

    @property
    def size_bytes(self) -> int:
        """The size."""

    @property
    def mtime_ns(self) -> int:
        """Time of the last change of content, nanoseconds since the Unix epoch."""

    @property
    def file_id(self) -> int | None:
        """The server's number of the file; None where it keeps none stable."""


class DiskFiles(Protocol):
    """Files by path. Paths are opaque text to this package: only the methods here make new ones."""

    def open_read(self, path: str) -> OpenFile:
        """Open a file for reading."""

    def stat(self, path: str) -> FileFacts:
        """A file's attributes now."""

    def sibling(self, path: str, name: str) -> str:
        """The path of the plain file name `name` (untrusted) in the same directory as `path`."""

    def parent(self, path: str, hint: str) -> str:
        """The path that the `parentFileNameHint` (untrusted) of the descriptor at `path` means."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What must not change about a file of a frozen disk while it is backed up."""

    path: str
    size_bytes: int
    mtime_ns: int
    file_id: int | None

    def difference(self, now: FileIdentity) -> str:
        """What changed since, in words; empty if nothing did. An unknown file id is not compared."""
        changes = []
        if self.path != now.path:
            changes.append(f"path {self.path!r} became {now.path!r}")
        if self.size_bytes != now.size_bytes:
            changes.append(f"size {self.size_bytes} became {now.size_bytes} bytes")
        if self.mtime_ns != now.mtime_ns:
            changes.append("modification time changed")
        if None not in (self.file_id, now.file_id) and self.file_id != now.file_id:
            changes.append("another file has taken its name")
        return f"{self.path}: {', '.join(changes)}" if changes else ""
