"""Which of a VM's files are backed up beside its disks, and which are left out on purpose, with the reason.

`layoutEx` names a VM's files (vSphere API, `VirtualMachineFileLayoutExFileType`). What it names and is not left out by
design is wanted: whatever of it cannot be taken is *skipped*, which makes the VM Partial.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from safehaul.errors import SafehaulError
from safehaul.messages.inventory import VmFile
from safehaul.messages.vm import SkippedFile
from safehaul.nas.paths import parse_datastore_path

MAX_FILES = 500
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_SKIPPED = 100
"""Skipped files that are named one by one; of more only the number is told."""

_DISK = "a disk's own bytes: step 11 reads them"
_RESTORED_OFF = "memory of a running or suspended guest: a restored VM starts powered off"
_NO_SNAPSHOTS = "a snapshot's memory: a restored VM has no snapshots, its chains are made one disk"
_REMADE = "made again by the host"

BY_DESIGN: tuple[tuple[str, str], ...] = (
    ("-flat.vmdk", _DISK),
    ("-delta.vmdk", _DISK),
    ("-sesparse.vmdk", _DISK),
    ("-rdm.vmdk", "a pointer to a raw device, which is told as a disk"),
    ("-rdmp.vmdk", "a pointer to a raw device, which is told as a disk"),
    ("-ctk.vmdk", "change tracking of the source's own chain: a restored disk begins a new one"),
    (".vswp", _REMADE),
    (".vmem", _RESTORED_OFF),
    (".vmss", _RESTORED_OFF),
    (".lck", "a lock of the host that runs the VM"),
    (".scoreboard", _REMADE),
    (".hlog", _REMADE),
    (".psf", "the state of a replication of the source"),
)
"""Ends of names that are left out, with the reason."""

BY_DESIGN_TYPES: dict[str, str] = {
    "diskExtent": _DISK,
    "swap": _REMADE,
    "uwswap": _REMADE,
    "suspend": _RESTORED_OFF,
    "suspendMemory": _RESTORED_OFF,
    "snapshotMemory": _NO_SNAPSHOTS,
    "digestDescriptor": _REMADE,
    "digestExtent": _REMADE,
    "diskReplicationState": "the state of a replication of the source",
    "stat": _REMADE,
    "core": "a dump of the host's own process",
    "ftMetadata": "fault tolerance of the source",
}
"""`layoutEx` types that are left out, with the reason."""

_REDO_NUMBER = re.compile(r"-\d{6}(?=\.vmdk$)")

# First what a VM cannot be built without, last what only helps to understand it: limits drop the last ones.
_FIRST = (".vmx", ".nvram", ".vmxf", ".vmdk", ".vmsd", ".zip")


@dataclass
class WantedFiles:
    """What step 9 is to download, in this order, and what it cannot."""

    wanted: list[VmFile] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)


def left_out(file: VmFile) -> str:
    """Why a file is left out by design; empty when it is wanted. Raises InvalidInputError for a hostile path."""
    name = parse_datastore_path(file.path).name.casefold()
    if file.type in BY_DESIGN_TYPES:
        return BY_DESIGN_TYPES[file.type]
    for end, reason in BY_DESIGN:
        if name.endswith(end):
            return reason
    if name.startswith(".lck-"):
        return "a lock of the host that runs the VM"
    if name.endswith(".vmsn") and file.size_bytes > MAX_FILE_BYTES:
        return _NO_SNAPSHOTS
    if is_log(file) and file.size_bytes > MAX_FILE_BYTES:
        return "a log: kept up to 64 MiB each, while there is room"
    return ""


def is_log(file: VmFile) -> bool:
    """True for the host's logs of the VM: they rotate, and nothing is built from them."""
    return file.type == "log" or file.path.casefold().endswith(".log")


def choose(files: Iterable[VmFile], limit_bytes: int, unread: Iterable[str] = ()) -> WantedFiles:
    """The files to download, most important first, within MAX_FILES, MAX_FILE_BYTES each and `limit_bytes` in all.

    The descriptors of `unread`, the paths of disks that are not in the backup, are left out: the disk itself is told,
    once, with its reason. A log that does not fit is left out by design; any other file that does not is skipped
    with the reason.
    """
    chosen = WantedFiles()
    left_bytes = limit_bytes
    told_as_disks = {_base(path) for path in unread}
    for file in sorted(files, key=_rank):
        try:
            if left_out(file) or _base(file.path) in told_as_disks:
                continue
        except SafehaulError as error:  # its path would leave the datastore: it is never opened, and told
            chosen.skipped.append(skipped(file, str(error)))
            continue
        reason = ""
        if file.size_bytes > MAX_FILE_BYTES:
            reason = f"it has {file.size_bytes:,} bytes; {MAX_FILE_BYTES:,} are the most for one file"
        elif len(chosen.wanted) >= MAX_FILES:
            reason = f"a VM may have {MAX_FILES} files beside its disks"
        elif file.size_bytes > left_bytes:
            reason = (
                f"with it the VM's files would take more than the node's spool_limit_bytes ({limit_bytes:,})"
            )
        if not reason:
            chosen.wanted.append(file)
            left_bytes -= file.size_bytes
        elif not is_log(file):
            chosen.skipped.append(skipped(file, reason))
    return chosen


def skipped(file: VmFile, reason: str) -> SkippedFile:
    """A file that is missing from the backup."""
    return SkippedFile(path=file.path[:1024], type=file.type, reason=reason[:500])


def bounded(items: list[SkippedFile]) -> list[SkippedFile]:
    """At most MAX_SKIPPED files by name, and how many more: messages have a limit."""
    if len(items) <= MAX_SKIPPED:
        return items
    rest = len(items) - MAX_SKIPPED
    return [
        *items[:MAX_SKIPPED],
        SkippedFile(path=f"{rest} more files", reason=f"as {items[MAX_SKIPPED].path!a}"),
    ]


def _base(path: str) -> str:
    """The path of the disk to which a descriptor belongs: each snapshot adds `-NNNNNN` to the name."""
    return _REDO_NUMBER.sub("", path)


def _rank(file: VmFile) -> tuple[int, str]:
    if is_log(file):
        return len(_FIRST) + 1, file.path
    name = file.path.casefold()
    return next((rank for rank, end in enumerate(_FIRST) if name.endswith(end)), len(_FIRST)), file.path
