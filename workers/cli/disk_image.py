"""Writes one disk of a backup to a raw image: verified, sparse, never over a file that exists, never half."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from safehaul.direct_io import DirectWriter
from safehaul.errors import AlreadyExistsError, InvalidInputError, PermanentError
from safehaul.media.manifest import ManifestDisk
from safehaul.media.reader import BackupReader, Hole


def find_disk(disks: list[ManifestDisk], which: str) -> ManifestDisk:
    """The disk of that key, or of that label when no other disk has it. Raises InvalidInputError."""
    found = [item for item in disks if which == str(item.key)] or [
        item for item in disks if which == item.label
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{item.key} ({item.label})" for item in disks)
    if found:
        raise InvalidInputError(
            f"several disks of the backup are called {which!r}: name one by its key: {names}"
        )
    raise InvalidInputError(f"the backup holds no disk {which!r}; it holds: {names or 'none'}")


def write_image(
    reader: BackupReader, disk: ManifestDisk, to: Path, *, progress: Callable[[int], None]
) -> int:
    """Write the disk to `to`; return the bytes that were written, holes left out. `progress` gets the bytes done.

    The image is made beside its target under another name and gets its name when it is whole and durable.

    Raises:
        AlreadyExistsError: the target, or the unfinished image of another restore, exists.
        InvalidInputError: the target's directory cannot be written to.
        IntegrityError: a chunk is damaged; names disk, offset, chunk and pack. Nothing is left behind.
        PermanentError: the target's file system failed or is full.
    """
    if to.exists() or to.is_symlink():
        raise AlreadyExistsError(f"{to} exists: choose another file, it is never overwritten")
    partial = to.with_name(f".{to.name}.partial")
    try:
        # What is on a guest's disk is for nobody else on this machine.
        target = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExistsError(
            f"{partial} exists: another restore writes it, or one was killed; in that case remove it"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{to} cannot be written: {error.strerror}: choose another file") from None
    try:
        try:
            written = _copy(reader, disk, target, progress)
        finally:
            os.close(target)
        _name(partial, to)
    except OSError as error:
        raise PermanentError(
            f"{to} cannot be written to its end: {error.strerror}: free space or choose another place"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return written


def _copy(reader: BackupReader, disk: ManifestDisk, target: int, progress: Callable[[int], None]) -> int:
    written = 0
    writer = DirectWriter(target)
    os.ftruncate(target, disk.capacity_bytes)
    for offset, piece in reader.iter_disk(disk.key):
        if isinstance(piece, Hole):
            progress(offset + piece.length_bytes)
            continue
        writer.write_at(piece, offset)
        written += len(piece)
        progress(offset + len(piece))
    os.fsync(target)
    return written


def _name(partial: Path, to: Path) -> None:
    """Give the whole image its name. A placeholder takes the name first: not every file system has hard links."""
    try:
        to.open("xb").close()
    except FileExistsError:
        raise AlreadyExistsError(f"{to} was made by another process meanwhile: choose another file") from None
    try:
        partial.replace(to)
    except OSError:
        to.unlink(missing_ok=True)
        raise
    folder = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
