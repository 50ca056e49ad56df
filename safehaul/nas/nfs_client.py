"""An export opened by the NFS client in this process (nfs-rs): v3 and v4.1, AUTH_SYS, no kernel mount."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import nfs_rs

from safehaul.errors import (
    AlreadyExistsError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    UnsupportedError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.export import MAX_DIRECTORY_ENTRIES, DirectoryEntry, FileKind, FileStat
from safehaul.nas.nfs_file import NfsFile, NfsWriteFile
from safehaul.nas.paths import check_relative, safe
from safehaul.nas.tally import ByteTally
from safehaul.nas.translation import mount_translate, translate

_KINDS = {
    nfs_rs.FileType.FILE: FileKind.FILE,
    nfs_rs.FileType.DIRECTORY: FileKind.DIRECTORY,
    nfs_rs.FileType.SYMLINK: FileKind.SYMLINK,
}
_PATH_OF_URL = re.compile(r"/[!$%&'()*+,./0-9:;=@A-Z\[\]_a-z|~-]*")
_AUTO_VERSIONS = ["3", "4.1"]
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o600
"""As ESXi makes its disks."""
_FILE_ID_PROBES = 3


class NfsClientExport:
    """`NasExport` over nfs-rs. Threads may share it and its files; a call has up to 8 requests in flight."""

    def __init__(self, definition: ExportDefinition) -> None:
        """Connect and mount.

        Raises ConnectionLostError when the filer does not answer, NotFoundError or PermissionRefusedError
        when it refuses the mount.
        """
        self.definition = definition
        self._file_ids_stable: bool | None = None
        self._files: list[nfs_rs.File] = []
        self._lock = threading.Lock()
        self._tally = ByteTally()
        try:
            self._client = _connect(definition, definition.effective_path)
        except (nfs_rs.NfsError, OSError) as error:
            offered = _offered(definition) if isinstance(error, nfs_rs.NfsMountError) else None
            raise mount_translate(error, definition, offered) from error

    @property
    def version(self) -> str:
        """The NFS version in use: `3` or `4.1`."""
        return str(self._client.version.value)

    @property
    def bytes_read(self) -> int:
        """See `NasExport.bytes_read`."""
        return self._tally.total_bytes

    def stat(self, path: str) -> FileStat:
        """See `NasExport.stat`."""
        info = self._info(path)
        if self._file_ids_stable is None and info.type is nfs_rs.FileType.FILE:
            self._probe_file_ids(path, info)
        return self._to_stat(info)

    def list(self, path: str = "") -> list[DirectoryEntry]:
        """See `NasExport.list`."""
        if path:
            check_relative(path)
        found: list[DirectoryEntry] = []
        try:
            for entry in self._scan(path):
                if len(found) >= MAX_DIRECTORY_ENTRIES:
                    raise PolicyError(
                        f"directory {safe(path)} on {self.definition} "
                        f"has more than {MAX_DIRECTORY_ENTRIES} entries"
                    )
                found.append(DirectoryEntry(entry.name, self._to_stat(entry.info)))
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "list", path) from error
        return sorted(found, key=lambda entry: entry.name)

    def open_read(self, path: str) -> NfsFile:
        """See `NasExport.open_read`."""
        info = self._regular(path)
        return NfsFile(self._open(path, "rb", "open"), self.definition, path, info.size, self._tally)

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
            return self._client.fs_stat().available_bytes
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "ask the free space of") from error

    def create_exclusive(self, path: str) -> NfsWriteFile:
        """See `NasExport.create_exclusive`.

        Not atomic: nfs-rs has no exclusive create. Nobody else's file is ever shortened, and a file that
        already holds data is refused. For certainty create below a directory of `make_directory_exclusive`.
        """
        self._must_not_exist(path, "create")
        try:
            self._client.touch(path, exist_ok=True)
            if self._regular(path).size:
                raise AlreadyExistsError(
                    f"create {safe(path)} on {self.definition}: somebody else just made it"
                )
            # nfs-rs creates files that everybody may write; nothing is in this one yet.
            self._client.chmod(path, _FILE_MODE)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "create", path) from error
        return self.open_write(path)

    def open_write(self, path: str) -> NfsWriteFile:
        """See `NasExport.open_write`."""
        self._must_be_writable()
        self._regular(path)
        return NfsWriteFile(self._open(path, "r+b", "open for writing"), self.definition, path)

    def make_directory_exclusive(self, path: str) -> None:
        """See `NasExport.make_directory_exclusive`."""
        self._must_be_writable()
        check_relative(path)
        try:
            self._client.mkdir(path, _DIRECTORY_MODE, parents=False, exist_ok=False)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "make directory", path) from error

    def remove(self, path: str) -> None:
        """See `NasExport.remove`."""
        self._must_be_writable()
        check_relative(path)
        try:
            self._client.remove(path)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "remove", path) from error

    def remove_directory(self, path: str) -> None:
        """See `NasExport.remove_directory`."""
        self._must_be_writable()
        check_relative(path)
        try:
            self._client.rmdir(path)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "remove directory", path) from error

    def rename(self, source: str, destination: str) -> None:
        """See `NasExport.rename`."""
        self._must_be_writable()
        check_relative(source)
        self._must_not_exist(destination, "rename to")
        try:
            self._client.rename(source, destination)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "rename", source) from error

    def close(self) -> None:
        """See `NasExport.close`."""
        # Unmounting only tells the filer that we are gone (RFC 1813, 5.2.3), and after a lost connection it cannot
        # be told. Nothing is lost by that: every write was committed before it returned.
        with self._lock:
            closing: list[nfs_rs.File | nfs_rs.Client] = [*self._files, self._client]
            self._files = []
        for part in closing:
            with contextlib.suppress(nfs_rs.NfsError, OSError):
                part.close()

    def __enter__(self) -> Self:
        """Return the export itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _scan(self, path: str) -> Iterator[nfs_rs.DirEntry]:
        if path or self.version != "4.1":
            yield from self._client.scandir(path)
            return
        # nfs-rs 0.8.7 looks the root up as a name ".", which v4.1 filers refuse (NFS4ERR_BADNAME, RFC 8881 section
        # 15.1.7): over v4.1 the root is listed from the directory above, by its own name.
        above, _, name = self.definition.effective_path.rstrip("/").rpartition("/")
        if not name:
            raise UnsupportedError(
                f"{self.definition}: the NFS client cannot list the top of a filer's name space over version 4.1"
            )
        with _connect(self.definition, above or "/") as client:
            yield from client.scandir(name)

    def _info(self, path: str) -> nfs_rs.FileInfo:
        check_relative(path)
        try:
            return self._client.stat(path)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, "look up", path) from error

    def _open(self, path: str, mode: str, operation: str) -> nfs_rs.File:
        try:
            file = self._client.open(path, mode)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self.definition, operation, path) from error
        with self._lock:
            self._files = [other for other in self._files if not other.closed]
            self._files.append(file)
        return file

    def _regular(self, path: str) -> nfs_rs.FileInfo:
        info = self._info(path)
        if info.type is not nfs_rs.FileType.FILE:
            raise UnsupportedError(
                f"{safe(path)} on {self.definition} "
                f"is a {info.type.value}, not a regular file; it is not followed"
            )
        return info

    def _must_be_writable(self) -> None:
        if not self.definition.writable:
            raise PermissionRefusedError(
                f"{self.definition} is defined for reading only; nothing is written to it"
            )

    def _must_not_exist(self, path: str, operation: str) -> None:
        self._must_be_writable()
        try:
            self._info(path)
        except NotFoundError:
            return
        raise AlreadyExistsError(f"{operation} {safe(path)} on {self.definition}: it exists already")

    def _probe_file_ids(self, path: str, first: nfs_rs.FileInfo) -> None:
        # Userspace servers (rclone) number files anew at each look-up. Such numbers would look like a move.
        previous = first.fileid
        for _ in range(_FILE_ID_PROBES - 1):
            current = self._info(path).fileid
            if current == previous:
                self._file_ids_stable = True
                return
            previous = current
        self._file_ids_stable = False

    def _to_stat(self, info: nfs_rs.FileInfo) -> FileStat:
        return FileStat(
            kind=_KINDS.get(info.type, FileKind.OTHER),
            size_bytes=info.size,
            mtime_ns=info.mtime,
            file_id=info.fileid if self._file_ids_stable else None,
            uid=info.uid,
            gid=info.gid,
            mode=info.mode & 0o7777,
        )


def _connect(definition: ExportDefinition, path: str) -> nfs_rs.Client:
    """Mount `path` of the filer. Raises NfsError, OSError, and UnsupportedError for a path that cannot be sent."""
    versions: list[str] = _AUTO_VERSIONS if definition.version == "auto" else [definition.version]
    return nfs_rs.Client.connect(_url(definition, path), versions=versions, **_options(definition))


def _options(definition: ExportDefinition) -> dict[str, Any]:
    return {
        "uid": definition.uid,
        "gid": definition.gid,
        "nfs_port": definition.nfs_port,
        "mount_port": definition.mount_port,
        "noresvport": not definition.reserved_port,
        "connect_timeout": definition.connect_timeout_s,
        "operation_timeout": definition.operation_timeout_s,
    }


def _offered(definition: ExportDefinition) -> list[str] | None:
    """What the filer's v3 mount service lists for this node; None when it does not say."""
    # Only to make a refusal clearer, so a failure of it is no failure.
    with contextlib.suppress(nfs_rs.NfsError, OSError):
        return [entry.path for entry in nfs_rs.list_exports(_url(definition, "/"), **_options(definition))]
    return None


def _url(definition: ExportDefinition, path: str) -> str:
    address = definition.effective_address
    host = f"[{address}]" if ":" in address else address
    # The client puts the path through a URL and sends it to the filer as it comes out: encoded.
    if not _PATH_OF_URL.fullmatch(path):
        raise UnsupportedError(
            f'{definition}: the NFS client cannot mount a path with spaces, non-ASCII or any of "#<>?`{{}}^; '
            "mount it with the kernel and set mounted_at"
        )
    return f"nfs://{host}{path}"
