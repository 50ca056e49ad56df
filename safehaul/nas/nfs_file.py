"""Files of an export that the NFS client in this process has opened."""

from __future__ import annotations

import nfs_rs

from safehaul.errors import VmMovedError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.paths import safe
from safehaul.nas.tally import ByteTally
from safehaul.nas.translation import translate


class NfsFile:
    """`NasFile` over nfs-rs."""

    def __init__(
        self, file: nfs_rs.File, definition: ExportDefinition, path: str, size_bytes: int, tally: ByteTally
    ) -> None:
        self._file = file
        self._tally = tally
        self._definition = definition
        self._path = path
        self.size_bytes = size_bytes

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        """See `NasFile.read_into`."""
        wanted = len(buffer)
        if not wanted:
            return 0
        # Callers ask for what the file has. Past its end nfs-rs 0.8.7 drops requests in flight, and over v4.1 the filer
        # then refuses a later one of this connection (NFS4ERR_RETRY_UNCACHED_REP), which is worth another try.
        try:
            count = self._file.readinto_at(buffer, offset_bytes)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self._definition, "read", self._path) from error
        if count != wanted:
            raise VmMovedError(
                f"read {safe(self._path)} on {self._definition}: it ends at byte {offset_bytes + count}, "
                f"but had {self.size_bytes} bytes when it was opened"
            )
        self._tally.add(count)
        return count

    def close(self) -> None:
        """See `NasFile.close`."""
        try:
            self._file.close()
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self._definition, "close", self._path) from error


class NfsWriteFile:
    """`NasWriteFile` over nfs-rs: each write is committed (RFC 1813 COMMIT) before it returns."""

    def __init__(self, file: nfs_rs.File, definition: ExportDefinition, path: str) -> None:
        self._file = file
        self._definition = definition
        self._path = path

    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        """See `NasWriteFile.write_at`."""
        try:
            self._file.write_at(data, offset_bytes)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self._definition, "write", self._path) from error

    def set_size(self, size_bytes: int) -> None:
        """See `NasWriteFile.set_size`."""
        try:
            self._file.truncate(size_bytes)
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self._definition, "set the size of", self._path) from error

    def flush(self) -> None:
        """See `NasWriteFile.flush`."""
        try:
            self._file.flush()
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self._definition, "flush", self._path) from error

    def close(self) -> None:
        """See `NasWriteFile.close`."""
        try:
            self._file.close()
        except (nfs_rs.NfsError, OSError) as error:
            raise translate(error, self._definition, "close", self._path) from error
