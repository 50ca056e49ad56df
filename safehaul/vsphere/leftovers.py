"""Which files of a VM's directories our snapshot left behind."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from safehaul.messages.inventory import VmState
from safehaul.vsphere.names import parse_datastore_path

# What ESXi makes for a snapshot: redo logs (descriptor, vmfsSparse, seSparse, change tracking), the snapshot's
# state and memory, and VSS's manifests. Other new files (logs, swap, somebody's copy) are never a snapshot's.
_SNAPSHOT_FILE: Final = re.compile(
    r"-\d{6,}(-delta|-sesparse|-ctk)?\.vmdk$|-Snapshot\d+\.(vmsn|vmem)$|vss[_-]manifests?\d*\.(zip|xml)$",
    re.IGNORECASE,
)
# … of which these hold a disk's bytes.
_REDO_LOG: Final = re.compile(r"-\d{6,}(-delta|-sesparse)?\.vmdk$", re.IGNORECASE)
# ESXi's lock files come and go with the power state, and are nobody's to judge.
_LOCK_FILE: Final = re.compile(r"^\.lck-|\.lck$|\.lck/")


class Leftovers(NamedTuple):
    """Files that were not there before our snapshot, by whose they are; datastore paths, sorted."""

    ours: list[str]
    """A snapshot's files that `layoutEx` does not name: what our removal must wait for."""
    named: list[str]
    """Named by `layoutEx`: they belong to the VM as it is now, a later snapshot of somebody included."""
    unexplained: list[str]
    """Neither: logs, copies, other VMs' files."""


def is_snapshot_file(path: str) -> bool:
    """True for what ESXi makes for a snapshot, by its name: redo logs, state, memory, VSS's manifests."""
    return bool(_SNAPSHOT_FILE.search(path))


def is_redo_log(path: str) -> bool:
    """True for a redo log's descriptor and its bytes, by its name."""
    return bool(_REDO_LOG.search(path))


def went_with_it(before: VmState, held: VmState, after: VmState) -> list[str]:
    """Files that our snapshot brought and that went with it; datastore paths, sorted.

    Args:
        before: recorded before it was made, directories listed.
        held: while it stood; its `layoutEx` names them.
        after: when it was gone, directories listed.
    """
    others = {file.path for state in (before, after) for file in (*state.listed, *state.files)}
    return sorted({file.path for file in held.files if is_snapshot_file(file.path)} - others)


def compare(before: VmState, after: VmState) -> Leftovers:
    """Compares two listings of a VM's directories.

    Args:
        before: recorded before our snapshot was made, directories listed.
        after: after its removal, directories listed.
    """
    known = {file.path for file in before.listed} | {file.path for file in before.files}
    named = {file.path for file in after.files}
    appeared = sorted(
        file.path
        for file in after.listed
        if file.path not in known and not _LOCK_FILE.search(parse_datastore_path(file.path).file_name)
    )
    unnamed = [path for path in appeared if path not in named]
    return Leftovers(
        ours=[path for path in unnamed if _SNAPSHOT_FILE.search(path)],
        named=[path for path in appeared if path in named],
        unexplained=[path for path in unnamed if not _SNAPSHOT_FILE.search(path)],
    )
