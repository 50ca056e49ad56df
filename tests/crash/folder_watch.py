"""Tells of every file that appears below a folder, from outside, the moment it appears (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_CREATED, _MOVED_HERE, _FOLDER, _ONLY_FOLDERS = 0x100, 0x80, 0x40000000, 0x01000000
_IGNORED = 0x8000
_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 64 * 1024

Told = Callable[[Path], None]


class FolderWatch:
    """A context manager. `told` is called on its thread with the path of each new file, temporary ones too."""

    def __init__(self, root: Path, told: Told) -> None:
        self._root = root
        self._told = told
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = -1
        self._stop_read, self._stop_write = -1, -1
        self._folders: dict[int, Path] = {}
        self._known: set[Path] = set()
        self._thread = threading.Thread(target=self._run, name="folder-watch", daemon=True)

    def start(self) -> None:
        """Watch from now on: what is there already is not told. Raises OSError."""
        self._inotify = self._libc.inotify_init1(os.O_CLOEXEC)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._stop_read, self._stop_write = os.pipe()
        for folder in [self._root, *(path for path in self._root.rglob("*") if path.is_dir())]:
            self._add(folder)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._inotify)
        os.close(self._stop_read)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _add(self, folder: Path) -> None:
        mask = _CREATED | _MOVED_HERE | _ONLY_FOLDERS
        number = self._libc.inotify_add_watch(self._inotify, os.fsencode(folder), mask)
        if number >= 0:
            self._folders[number] = folder
        elif ctypes.get_errno() not in (2, 20):  # it is gone already, or is no folder
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._inotify, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            self._take(os.read(self._inotify, _BUFFER_BYTES))

    def _take(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            number, mask, _, length = _EVENT.unpack_from(events, at)
            name = os.fsdecode(events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0"))
            at += _EVENT.size + length
            folder = self._folders.get(number)
            if mask & _IGNORED:
                self._folders.pop(number, None)
            elif folder is not None and name:
                self._appeared(folder / name, is_folder=bool(mask & _FOLDER))

    def _appeared(self, path: Path, *, is_folder: bool) -> None:
        if path in self._known:
            return
        self._known.add(path)
        if not is_folder:
            self._told(path)
            return
        self._add(path)
        # What was made in it before the watch was there.
        try:
            inside = list(os.scandir(path))
        except OSError:  # gone again
            return
        for entry in inside:
            self._appeared(Path(entry.path), is_folder=entry.is_dir())
