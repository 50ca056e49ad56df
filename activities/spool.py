"""An access node's spool: the VM's small files between steps 9 and 10. No name from vCenter becomes a path.

One directory a VM and job. Step 9 fills it, step 10 stores the files, keeps only a record of what it stored, and so
gives their room to the next VM; step 14 empties it. What belongs to a VM that did not get through step 10 goes with
its snapshot (step 13), and what a killed process left goes when the node prepares itself for a later job.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from activities.beat import beat
from safehaul.errors import BusyError, ConfigError
from safehaul.messages.steps import StoredFiles, VmRef

# The others' files go within seconds (steps 10). A step that waits longer gives its slot up and is tried again.
WAIT_S = 30.0
_LOOK_EVERY_S = 0.5
# No snapshot is held for longer than a week (`max_hold_s`): what is older belongs to nobody.
STALE_S = 8 * 86400.0
_STORED = "stored.json"


class Spool:
    """The spool of one access node; its steps' threads share it."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """`limit_bytes` bounds the files of all VMs together."""
        self._root = root
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._reserved: dict[str, int] = {}

    def prepare(self) -> None:
        """Make the spool, and remove what no living VM can still need.

        Raises ConfigError when this process may not, or cannot, write there.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._root).close()
        except OSError as error:
            raise ConfigError(
                f"the spool {self._root} cannot be written by uid {os.geteuid()}: {error.strerror}: let the worker's "
                "user make and write it, or set another spool_dir for this access node"
            ) from error
        for path in self._root.iterdir():
            with suppress(FileNotFoundError):  # a VM's step has just removed it
                if time.time() - path.stat().st_mtime > STALE_S:
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def fill(self, vm: VmRef, size_bytes: int) -> Iterator[Path]:
        """An empty directory for the VM, once `size_bytes` fit beside the files of the other VMs.

        Raises BusyError when they do not fit in time: the step is tried again.
        """
        key = self._key(vm)
        self.empty(vm)
        self._reserve(key, size_bytes, vm)
        try:
            directory = self._root / key
            directory.mkdir(mode=0o700, parents=True)
            yield directory
        finally:
            with self._lock:
                self._reserved.pop(key, None)

    def directory(self, vm: VmRef) -> Path:
        """The directory of one VM in one job, named by a digest of both."""
        return self._root / self._key(vm)

    def stored(self, vm: VmRef) -> StoredFiles | None:
        """What step 10 has stored of the VM's files; None when it has not been done."""
        try:
            return StoredFiles.model_validate_json((self.directory(vm) / _STORED).read_bytes())
        except FileNotFoundError:
            return None

    def keep_record(self, vm: VmRef, files: StoredFiles) -> None:
        """Step 10 is done: the record takes the files' place, so that a second run answers the same."""
        directory = self.directory(vm)
        draft = directory / f"{_STORED}.new"
        draft.unlink(missing_ok=True)
        write_new(draft, files.model_dump_json().encode())
        draft.replace(directory / _STORED)
        for path in directory.iterdir():
            if path.name != _STORED:
                path.unlink()

    def drop_unstored(self, vm: VmRef) -> None:
        """The VM's snapshot is gone: files that step 10 has not stored serve nobody any more."""
        if not (self.directory(vm) / _STORED).exists():
            self.empty(vm)

    def empty(self, vm: VmRef) -> bool:
        """Remove the VM's directory; True when nothing of it is left."""
        directory = self.directory(vm)
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    def _reserve(self, key: str, size_bytes: int, vm: VmRef) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            with self._lock:
                used = self._used_bytes(key)
                if used + size_bytes <= self.limit_bytes:
                    self._reserved[key] = size_bytes
                    return
            if time.monotonic() > deadline:
                raise BusyError(
                    f"the spool {self._root} holds {used:,} bytes of other VMs, and the {size_bytes:,} of VM "
                    f"{vm.name!r} would pass spool_limit_bytes ({self.limit_bytes:,}): they are waited for; a "
                    "larger spool_limit_bytes or fewer streams avoid it"
                )
            beat(vm.name)
            time.sleep(_LOOK_EVERY_S)

    def _used_bytes(self, key: str) -> int:
        """What the other VMs have on the disk, or have been promised."""
        total = sum(size for name, size in self._reserved.items() if name != key)
        if not self._root.is_dir():
            return total
        for directory in self._root.iterdir():
            if directory.name != key and directory.name not in self._reserved:
                total += sum(_size_bytes(path) for path in directory.glob("*"))
        return total

    @staticmethod
    def _key(vm: VmRef) -> str:
        return hashlib.sha256(f"{vm.job_id}\0{vm.vc_guid}".encode()).hexdigest()[:32]


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist, readable by this user alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # another VM's step has just removed it
        return 0
