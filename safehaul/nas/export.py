"""What the transport needs of an export, whoever serves it: this process's NFS client or a kernel mount.

Paths are relative to the export, `/`-separated, checked by `safehaul.nas.paths`. A symbolic link is never
followed: its target is text from the filer that could point anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

MAX_DIRECTORY_ENTRIES = 100_000
"""A VM's directory holds tens of files; a listing beyond this is refused, not collected."""


class FileKind(StrEnum):
    """What a name on the export is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FileStat:
    """Attributes of a file, as the filer reports them now."""

    kind: FileKind
    size_bytes: int
    mtime_ns: int
    """Nanoseconds since the Unix epoch, the filer's clock."""
    file_id: int | None
    """The filer's number of the file (NFS `fileid`, an inode); None where the server keeps none stable."""
    uid: int
    gid: int
    mode: int
    """Permission bits only."""


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory."""

    name: str
    stat: FileStat


class NasFile(Protocol):
    """A file open for reading. Threads may share it: reads are positional."""

    @property
    def size_bytes(self) -> int:
        """The size when the file was opened."""

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        """Fill the whole buffer from the offset and return its length.

        Raises VmMovedError when the file ends before that or its handle is stale, else as `translate`.
        """

    def close(self) -> None:
        """Release the handle; a second call does nothing."""


class NasWriteFile(Protocol):
    """A file open for writing. Threads may share it: writes are positional."""

    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of the data. What was written is on stable storage after `flush`."""

    def set_size(self, size_bytes: int) -> None:
        """Cut or extend (with a hole) to the size."""

    def flush(self) -> None:
        """Return when everything written is on the filer's stable storage."""

    def close(self) -> None:
        """Flush and release the handle; a second call does nothing."""


class NasExport(Protocol):
    """An open export. A context manager; closing it closes every file opened from it."""

    @property
    def bytes_read(self) -> int:
        """Bytes of files asked of the filer since the export was opened: also tables, gaps, descriptors."""

    @property
    def version(self) -> str:
        """The NFS version that is really spoken: `3` or `4.1`; empty when it cannot be told."""

    def stat(self, path: str) -> FileStat:
        """Attributes of the name itself (of the link, not of its target). Raises NotFoundError."""

    def list(self, path: str = "") -> list[DirectoryEntry]:
        """The entries of a directory, sorted by name; the empty path is the export's root."""

    def open_read(self, path: str) -> NasFile:
        """Open a regular file. Raises NotFoundError, PermissionRefusedError, UnsupportedError (no file)."""

    def read_small(self, path: str, limit_bytes: int) -> bytes:
        """The whole of a small file. Raises PolicyError when it is larger than the limit."""

    def free_bytes(self) -> int:
        """Free space that this node's identity may use."""

    def create_exclusive(self, path: str) -> NasWriteFile:
        """Create a file that must not exist. Raises AlreadyExistsError; never shortens what exists."""

    def open_write(self, path: str) -> NasWriteFile:
        """Open an existing file to go on writing it."""

    def make_directory_exclusive(self, path: str) -> None:
        """Create a directory that must not exist (atomic on the filer). Raises AlreadyExistsError."""

    def remove(self, path: str) -> None:
        """Remove a file. Raises NotFoundError."""

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory. Raises NotFoundError."""

    def rename(self, source: str, destination: str) -> None:
        """Rename within the export; the destination must not exist (checked, not atomic on NFS)."""

    def close(self) -> None:
        """Close the files and the connection; a second call does nothing."""

    def __enter__(self) -> Self:
        """Return the export itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
