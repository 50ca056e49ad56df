"""An object store in a local directory: what is reported as stored survives a loss of power.

Each object is written to a hidden temporary file in its own folder, synced, hard-linked to its name (which
fails when the name is taken: that is put-if-absent), and the folder is synced. obstore's local store is not
used because it cannot sync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from safehaul.direct_io import DirectWriter
from safehaul.errors import (
    AlreadyExistsError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    PermissionRefusedError,
    RepositoryFullError,
    SafehaulError,
    TransientError,
    UnreadableError,
)
from safehaul.media.names import check_name, check_prefix
from safehaul.media.object_store import ObjectInfo

_TEMPORARY = ".new-"
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
# A bad sector; ext4 and XFS for a block whose checksum is wrong; the device for a medium's error.
_UNREADABLE = {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def _translated(error: OSError, action: str, path: Path) -> SafehaulError:
    """Say what the operating system's error means for the caller."""
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return NotFoundError(f"cannot {action} {path}: {reason}")
    if error.errno in _REFUSED:
        return PermissionRefusedError(
            f"cannot {action} {path}: {reason}; check owner, mode and mount options"
        )
    if error.errno in _NO_SPACE:
        return RepositoryFullError(
            f"cannot {action} {path}: {reason}; make room in the repository, then start the job again"
        )
    if error.errno in _UNREADABLE and action == "read":
        return UnreadableError(f"cannot read {path}: {reason}; look at the disk below it")
    return TransientError(f"cannot {action} {path}: {reason}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _LocalUpload:
    """One object on its way; see ObjectUpload."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.parent / f"{_TEMPORARY}{secrets.token_hex(12)}"
        self._file: FileIO | None = None
        try:
            self._file = self._temporary.open("xb", buffering=0)
        except OSError as error:
            raise _translated(error, "create", self._temporary) from error
        self._writer = DirectWriter(self._file.fileno())
        self._written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self._file is not None, "write after commit or abort"
        try:
            self._writer.write_at(data, self._written)
        except OSError as error:
            raise _translated(error, "write", self._temporary) from error
        self._written += len(data)

    def commit(self) -> None:
        assert self._file is not None, "commit after commit or abort"
        try:
            os.fsync(self._file.fileno())
            # Let go of the cached pages: the read-back after this must come from the disk, not from memory.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._target.hardlink_to(self._temporary)
            self._close()
            _sync_folder(self._target.parent)
        except FileExistsError as error:
            raise AlreadyExistsError(f"object exists already: {self._target}") from error
        except OSError as error:
            if error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK} and self._temporary.exists():
                raise ConfigError(
                    f"cannot link {self._target}: the file system must support hard links (no FAT or SMB)"
                ) from error
            raise _translated(error, "commit", self._target) from error
        finally:
            self._close()

    def abort(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        # The temporary name is ours alone; should it stay, `remove_abandoned` takes it away later.
        with contextlib.suppress(OSError):
            self._temporary.unlink()


class LocalStore:
    """Objects as files below `root`; see ObjectStore. Safe for many threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable_folders: set[Path] = set()

    @property
    def url(self) -> str:
        """The folder as a `file:` URL."""
        return self.root.absolute().as_uri()

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _begin(self, path: Path) -> _LocalUpload:
        try:
            self._make_durable(path.parent)
        except OSError as error:
            raise _translated(error, "make", path.parent) from error
        return _LocalUpload(path)

    def _make_durable(self, folder: Path) -> None:
        """Make `folder` if it is missing, and its name durable, once in this process.

        A folder that is there may have been made a moment ago by another process that has not synced it yet.
        """
        if folder in self._durable_folders:
            return
        inside = self.root in folder.parents
        if inside or not folder.is_dir():
            self._make_durable(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)
        self._durable_folders.add(folder)

    def put_if_absent(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object durably; see ObjectStore."""
        path = self._path(name)
        if path.exists():
            # Saves the write in the usual case; the link below decides in a race.
            raise AlreadyExistsError(f"object exists already: {path}")
        upload = self._begin(path)
        try:
            upload.write(data)
            upload.commit()
        finally:
            upload.abort()

    def create(self, name: str) -> _LocalUpload:
        """Begin an object that is written piece by piece; see ObjectStore."""
        return self._begin(self._path(name))

    def get(self, name: str, limit_bytes: int) -> bytes:
        """Read a whole object; see ObjectStore."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                data = file.read(limit_bytes + 1)
        except OSError as error:
            raise _translated(error, "read", path) from error
        if len(data) > limit_bytes:
            raise IntegrityError(f"object {path} is larger than the {limit_bytes} bytes that it may have")
        return data

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Read a part of an object; see ObjectStore."""
        buffer = bytearray(length)
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from an object; see ObjectStore."""
        path = self._path(name)
        done = 0
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                while done < len(buffer):
                    count = os.preadv(descriptor, [buffer[done:]], offset + done)
                    if count == 0:
                        break
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _translated(error, "read", path) from error
        if done < len(buffer):
            raise IntegrityError(
                f"object {path} is truncated: {len(buffer)} bytes wanted at offset {offset}, {done} are there"
            )

    def size(self, name: str) -> int:
        """Length in bytes; see ObjectStore."""
        path = self._path(name)
        try:
            return path.stat().st_size
        except OSError as error:
            raise _translated(error, "look up", path) from error

    def exists(self, name: str) -> bool:
        """Tell whether the object is there; see ObjectStore."""
        try:
            self.size(name)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder; see ObjectStore."""
        yield from self._walk(self.root / check_prefix(prefix), prefix)

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.is_dir(), entry) for entry in entries if entry.name[0] != "."]
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translated(error, "list", folder) from error
        # A folder sorts as its name with the slash, as object stores sort their keys.
        found.sort(key=lambda item: item[0] + "/" if item[1] else item[0])
        for name, is_folder, entry in found:
            if is_folder:
                yield from self._walk(folder / name, f"{prefix}{name}/")
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                # A collection has taken it away since the folder was read.
                continue
            yield ObjectInfo(prefix + name, status.st_size, status.st_mtime)

    def delete(self, name: str) -> None:
        """Take an object away, durably; see DeletingStore."""
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _sync_folder(path.parent)
        except OSError as error:
            raise _translated(error, "delete", path) from error

    def remove_abandoned(self, older_than_s: float) -> int:
        """Remove temporary files that a crash left behind; returns how many. They were never visible."""
        removed = 0
        limit = time.time() - older_than_s
        for path in self.root.rglob(f"{_TEMPORARY}*"):
            # A file that vanishes meanwhile was still in use by its writer: leave it.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed
