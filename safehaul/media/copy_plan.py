"""Which backups a copy has to bring: those of one repository that another one does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.manifest import (
    BackupRef,
    forgotten_name,
    index_name,
    list_backups,
    manifest_name,
    read_manifest,
)
from safehaul.media.repository import Repository

UNINDEXED_FOR = timedelta(days=1)
"""A backup whose run has not written its index yet waits this long for it, so that the copy has it too."""
_TIME = "%Y%m%dT%H%M%SZ"


class CopySelection(NamedTuple):
    """What is to be copied."""

    vm_group: str = ""
    """Empty: of every VM group."""
    vms: frozenset[str] = frozenset()
    """Names or VC.GUIDs; empty: all."""
    since: datetime | None = None
    """Backups that were begun before are left out."""
    latest_only: bool = False
    """Of each VM only its newest backup."""
    everything: bool = False
    """Also what is older than the newest backup that the target has of the VM: it may have given that up."""


class MissingBackup(NamedTuple):
    """A backup that is to be copied."""

    ref: BackupRef
    vm_name: str
    capacity_bytes: int


def missing_backups(
    source: Repository,
    target: Repository,
    selection: CopySelection,
    after: str = "",
    heartbeat: Callable[[str], None] = lambda _: None,
) -> Iterator[MissingBackup]:
    """Yield the backups that the target lacks, by VM and then by time, after the manifest's name `after`.

    Costs a listing of both repositories' manifests, and each missing one's manifest. A manifest that cannot be read is
    yielded too, without name and size: its copy says what is wrong.
    """
    now = datetime.now(UTC)
    for vc_guid, refs, there in _side_by_side(source, target):
        heartbeat(f"looking at VM {vc_guid}")
        if manifest_name(refs[-1]) <= after:
            continue
        newest = max(there, default="")
        wanted = refs[-1:] if selection.latest_only else refs
        for ref in wanted:
            if manifest_name(ref) <= after or ref.backup_id in there:
                continue
            if not selection.everything and ref.backup_id < newest:
                continue
            if selection.since is not None and ref.backup_id < selection.since.astimezone(UTC).strftime(
                _TIME
            ):
                continue
            found = _judged(source, target, ref, selection, now)
            if found is not None:
                yield found


def _judged(
    source: Repository, target: Repository, ref: BackupRef, selection: CopySelection, now: datetime
) -> MissingBackup | None:
    if target.store.exists(forgotten_name(ref)):
        # The target's retention has given it up.
        return None
    try:
        manifest = read_manifest(source, ref)
    except (IntegrityError, NotFoundError, UnsupportedError):
        # One that was forgotten since the listing is no concern of ours.
        return MissingBackup(ref, "", 0) if source.store.exists(manifest_name(ref)) else None
    if selection.vm_group and manifest.vm_group != selection.vm_group:
        return None
    if selection.vms and not selection.vms & {manifest.vm_name, manifest.vc_guid}:
        return None
    young = manifest.committed > (now - UNINDEXED_FOR).strftime(_TIME)
    if young and not source.store.exists(index_name(ref)):
        return None
    return MissingBackup(ref, manifest.vm_name, sum(disk.capacity_bytes for disk in manifest.disks))


def _side_by_side(
    source: Repository, target: Repository
) -> Iterator[tuple[str, list[BackupRef], frozenset[str]]]:
    """Yield (VC.GUID, the source's backups, the target's ids of the same VM), holding one VM's at a time."""
    others = _by_vm(target)
    other = next(others, None)
    for folder, refs in _by_vm(source):
        while other is not None and other[0] < folder:
            other = next(others, None)
        same = other[1] if other is not None and other[0] == folder else []
        yield refs[0].vc_guid, refs, frozenset(ref.backup_id for ref in same)


def _by_vm(repository: Repository) -> Iterator[tuple[str, list[BackupRef]]]:
    """Yield (folder, backups) of each VM, in the order of the folders' names, which is the stores'."""
    for folder, refs in groupby(list_backups(repository), lambda ref: manifest_name(ref).rpartition("/")[0]):
        yield folder, list(refs)
