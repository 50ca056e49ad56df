"""Files of an export that the kernel has mounted: positional reads and writes on a file descriptor."""

from __future__ import annotations

import os

from safehaul.errors import VmMovedError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.paths import safe
from safehaul.nas.tally import ByteTally
from safehaul.nas.translation import translate


class Handle:
    """A file descriptor with the names that its errors need."""

    def __init__(self, descriptor: int, definition: ExportDefinition, path: str, size_bytes: int) -> None:
        self.descriptor = descriptor
        self.definition = definition
        self.path = path
        self.size_bytes = size_bytes

    def close(self) -> None:
        """Close; a second call does nothing."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


class MountedFile:
    """`NasFile` over a kernel mount."""

    def __init__(self, handle: Handle, tally: ByteTally) -> None:
        self._handle = handle
        self._tally = tally
        self.size_bytes = handle.size_bytes

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        """See `NasFile.read_into`."""
        handle = self._handle
        view = memoryview(buffer)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(handle.descriptor, [view[done:]], offset_bytes + done)
            except OSError as error:
                raise translate(error, handle.definition, "read", handle.path) from error
            if not count:
                raise VmMovedError(
                    f"read {safe(handle.path)} on {handle.definition}: "
                    f"it ends at byte {offset_bytes + done}, but had {self.size_bytes} bytes when opened"
                )
            done += count
        self._tally.add(done)
        return done

    def close(self) -> None:
        """See `NasFile.close`."""
        self._handle.close()


class MountedWriteFile:
    """`NasWriteFile` over a kernel mount."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        """See `NasWriteFile.write_at`."""
        handle = self._handle
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(handle.descriptor, view[done:], offset_bytes + done)
            except OSError as error:
                raise translate(error, handle.definition, "write", handle.path) from error

    def set_size(self, size_bytes: int) -> None:
        """See `NasWriteFile.set_size`."""
        try:
            os.ftruncate(self._handle.descriptor, size_bytes)
        except OSError as error:
            raise translate(error, self._handle.definition, "set the size of", self._handle.path) from error

    def flush(self) -> None:
        """See `NasWriteFile.flush`."""
        try:
            os.fsync(self._handle.descriptor)
        except OSError as error:
            raise translate(error, self._handle.definition, "flush", self._handle.path) from error

    def close(self) -> None:
        """See `NasWriteFile.close`."""
        if self._handle.descriptor >= 0:
            try:
                self.flush()
            finally:
                self._handle.close()
