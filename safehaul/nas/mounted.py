"""An export that the kernel has mounted on this node: a plain path, walked without following any link."""

from __future__ import annotations

import os
import stat as stat_bits
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from safehaul.errors import (
    AlreadyExistsError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    UnsupportedError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.export import MAX_DIRECTORY_ENTRIES, DirectoryEntry, FileKind, FileStat
from safehaul.nas.mounted_file import Handle, MountedFile, MountedWriteFile
from safehaul.nas.paths import check_relative, safe
from safehaul.nas.tally import ByteTally
from safehaul.nas.translation import mount_translate, translate

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, a FIFO put in place of a file would hold us for ever.
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o600
"""As ESXi makes its disks."""


class MountedExport:
    """`NasExport` over a kernel mount at `definition.mounted_at`."""

    def __init__(self, definition: ExportDefinition) -> None:
        """Open the mount point. Raises NotFoundError or PermissionRefusedError."""
        if definition.mounted_at is None:
            raise ValueError("the definition names no mount point")
        self.definition = definition
        self._files: list[Handle] = []
        self._lock = threading.Lock()
        self._tally = ByteTally()
        try:
            self._root = os.open(definition.mounted_at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise mount_translate(error, definition) from error

    @property
    def version(self) -> str:
        """See `NasExport.version`; as the kernel's list of mounts says (proc(5), mountinfo: super options)."""
        device = os.fstat(self._root).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted and rest.startswith("nfs"):
                options = rest.rsplit(" ", 1)[-1].split(",")
                return next((item.removeprefix("vers=") for item in options if item.startswith("vers=")), "")
        return ""

    @property
    def bytes_read(self) -> int:
        """See `NasExport.bytes_read`."""
        return self._tally.total_bytes

    def stat(self, path: str) -> FileStat:
        """See `NasExport.stat`."""
        with self._parent(path, "look up") as (parent, name):
            return _to_stat(os.stat(name, dir_fd=parent, follow_symlinks=False))

    def list(self, path: str = "") -> list[DirectoryEntry]:
        """See `NasExport.list`."""
        found: list[DirectoryEntry] = []
        with self._directory(path, "list") as directory, os.scandir(directory) as entries:
            for entry in entries:
                if len(found) >= MAX_DIRECTORY_ENTRIES:
                    raise PolicyError(
                        f"directory {safe(path)} on {self.definition} "
                        f"has more than {MAX_DIRECTORY_ENTRIES} entries"
                    )
                try:
                    found.append(DirectoryEntry(entry.name, _to_stat(entry.stat(follow_symlinks=False))))
                except FileNotFoundError:
                    # Removed between the listing and the look-up: as if it had gone before.
                    continue
        return sorted(found, key=lambda entry: entry.name)

    def open_read(self, path: str) -> MountedFile:
        """See `NasExport.open_read`."""
        with self._parent(path, "open") as (parent, name):
            descriptor = os.open(name, os.O_RDONLY | _FILE, dir_fd=parent)
        return MountedFile(self._keep(descriptor, path), self._tally)

    def read_small(self, path: str, limit_bytes: int) -> bytes:
        """See `NasExport.read_small`."""
        file = self.open_read(path)
        try:
            if file.size_bytes > limit_bytes:
                raise PolicyError(
                    f"file {safe(path)} on {self.definition} has {file.size_bytes} bytes; "
                    f"at most {limit_bytes} are accepted"
                )
            content = bytearray(file.size_bytes)
            file.read_into(0, content)
            return bytes(content)
        finally:
            file.close()

    def free_bytes(self) -> int:
        """See `NasExport.free_bytes`."""
        try:
            facts = os.fstatvfs(self._root)
        except OSError as error:
            raise translate(error, self.definition, "ask the free space of") from error
        return facts.f_bavail * facts.f_frsize

    def create_exclusive(self, path: str) -> MountedWriteFile:
        """See `NasExport.create_exclusive`; atomic (O_EXCL)."""
        self._must_be_writable()
        with self._parent(path, "create") as (parent, name):
            descriptor = os.open(
                name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, mode=_FILE_MODE, dir_fd=parent
            )
        return MountedWriteFile(self._keep(descriptor, path))

    def open_write(self, path: str) -> MountedWriteFile:
        """See `NasExport.open_write`."""
        self._must_be_writable()
        with self._parent(path, "open for writing") as (parent, name):
            descriptor = os.open(name, os.O_RDWR | _FILE, dir_fd=parent)
        return MountedWriteFile(self._keep(descriptor, path))

    def make_directory_exclusive(self, path: str) -> None:
        """See `NasExport.make_directory_exclusive`."""
        self._must_be_writable()
        with self._parent(path, "make directory") as (parent, name):
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)
            os.fsync(parent)

    def remove(self, path: str) -> None:
        """See `NasExport.remove`."""
        self._must_be_writable()
        with self._parent(path, "remove") as (parent, name):
            os.unlink(name, dir_fd=parent)

    def remove_directory(self, path: str) -> None:
        """See `NasExport.remove_directory`."""
        self._must_be_writable()
        with self._parent(path, "remove directory") as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def rename(self, source: str, destination: str) -> None:
        """See `NasExport.rename`."""
        self._must_be_writable()
        try:
            self.stat(destination)
        except NotFoundError:
            pass
        else:
            raise AlreadyExistsError(f"rename to {safe(destination)} on {self.definition}: it exists already")
        with (
            self._parent(source, "rename") as (old_parent, old_name),
            self._parent(destination, "rename to") as (new_parent, new_name),
        ):
            os.rename(old_name, new_name, src_dir_fd=old_parent, dst_dir_fd=new_parent)
            os.fsync(new_parent)

    def close(self) -> None:
        """See `NasExport.close`."""
        with self._lock:
            files, self._files = self._files, []
        for file in files:
            file.close()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def __enter__(self) -> Self:
        """Return the export itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _must_be_writable(self) -> None:
        if not self.definition.writable:
            raise PermissionRefusedError(
                f"{self.definition} is defined for reading only; nothing is written to it"
            )

    def _keep(self, descriptor: int, path: str) -> Handle:
        facts = os.fstat(descriptor)
        if not stat_bits.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise UnsupportedError(
                f"{safe(path)} on {self.definition} is a {_kind(facts.st_mode).value}, not a regular file"
            )
        handle = Handle(descriptor, self.definition, path, facts.st_size)
        with self._lock:
            self._files = [file for file in self._files if file.descriptor >= 0]
            self._files.append(handle)
        return handle

    @contextmanager
    def _directory(self, path: str, operation: str) -> Iterator[int]:
        """Open a directory step by step, following no link. The body's errors are translated."""
        if path:
            check_relative(path)
        opened: list[int] = []
        try:
            current = self._root
            for component in path.split("/") if path else []:
                current = os.open(component, _DIRECTORY, dir_fd=current)
                opened.append(current)
            yield current
        except OSError as error:
            raise translate(error, self.definition, operation, path) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)

    @contextmanager
    def _parent(self, path: str, operation: str) -> Iterator[tuple[int, str]]:
        check_relative(path)
        directory, _, name = path.rpartition("/")
        with self._directory(directory, operation) as descriptor:
            try:
                yield descriptor, name
            except OSError as error:
                raise translate(error, self.definition, operation, path) from error


def _kind(mode: int) -> FileKind:
    if stat_bits.S_ISREG(mode):
        return FileKind.FILE
    if stat_bits.S_ISDIR(mode):
        return FileKind.DIRECTORY
    return FileKind.SYMLINK if stat_bits.S_ISLNK(mode) else FileKind.OTHER


def _to_stat(facts: os.stat_result) -> FileStat:
    return FileStat(
        kind=_kind(facts.st_mode),
        size_bytes=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        file_id=facts.st_ino,
        uid=facts.st_uid,
        gid=facts.st_gid,
        mode=stat_bits.S_IMODE(facts.st_mode),
    )
