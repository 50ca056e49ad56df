"""What the rules of retention decide on a repository's backups: read and judged VM by VM, without changing anything."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from safehaul.config.settings import Settings
from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.holds import held_backups
from safehaul.media.manifest import BackupRef, Manifest, read_index, read_manifest
from safehaul.media.names import decode_segment, encode_segment
from safehaul.media.object_store import ObjectInfo
from safehaul.media.repository import Repository
from safehaul.retention import UNREADABLE, Decision, KnownBackup, Retention, plan

_MANIFESTS = "manifests/"
_READERS = 8
_OPENED = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class VmPlan:
    """What becomes of the backups of one VM."""

    vc_guid: str
    vm_name: str
    """As the newest readable backup calls it."""
    decisions: list[Decision]
    """Newest first."""
    problems: list[str]
    """Which backups could not be read, and why."""


def plans(
    repository: Repository,
    settings: Settings,
    *,
    after: str = "",
    vc_guid: str | None = None,
    now: datetime | None = None,
) -> Iterator[VmPlan]:
    """Judge the backups of each VM, in the order of their folders, which is not that of the VC.GUIDs.

    `after`: go on behind the folder of that VC.GUID. `vc_guid`: of one VM only. A backup that cannot be read is kept.
    """
    rules = {group.name: group.retention for group in settings.vm_groups}
    held: dict[str, set[str]] = {}
    for ref in held_backups(repository, vc_guid):
        held.setdefault(ref.vc_guid, set()).add(ref.backup_id)
    first = f"{_folder(after)}/" if after else ""
    prefix = _MANIFESTS if vc_guid is None else f"{_MANIFESTS}{_folder(vc_guid)}/"
    with ThreadPoolExecutor(_READERS, thread_name_prefix="retention") as threads:
        # Whatever else somebody has put there must not divide a VM's backups.
        backups = (info for info in repository.store.list(prefix) if _folder_of(info))
        for folder, infos in groupby(backups, _folder_of):
            if f"{folder}/" > first:
                guid = decode_segment(folder)
                yield _plan_vm(repository, threads, guid, list(infos), rules, held.get(guid, set()), now)


def _folder(vc_guid: str) -> str:
    return encode_segment(vc_guid, what="VC.GUID", reversible=True)


def _folder_of(info: ObjectInfo) -> str:
    """The folder of a VM; empty for what is not named like a manifest."""
    folder, _, backup_id = info.name.removeprefix(_MANIFESTS).partition("/")
    return folder if backup_id and "/" not in backup_id else ""


def _plan_vm(
    repository: Repository,
    threads: ThreadPoolExecutor,
    vc_guid: str,
    infos: list[ObjectInfo],
    rules: dict[str, Retention],
    held: set[str],
    now: datetime | None,
) -> VmPlan:
    read = [found for found in threads.map(lambda info: _read(repository, vc_guid, info), infos) if found]
    decisions = plan([known for known, _, _ in read], rules, held, now or datetime.now(UTC))
    names = {known.backup_id: name for known, name, _ in read if name}
    newest = next((names[item.backup.backup_id] for item in decisions if item.backup.backup_id in names), "")
    return VmPlan(vc_guid, newest, decisions, [problem for _, _, problem in read if problem])


def _read(repository: Repository, vc_guid: str, info: ObjectInfo) -> tuple[KnownBackup, str, str] | None:
    """A backup as the rules know it, its VM's name, and what was wrong; None when it is gone meanwhile."""
    ref = BackupRef(vc_guid, decode_segment(info.name.rpartition("/")[2]))
    stored = datetime.fromtimestamp(info.modified, UTC)
    manifest: Manifest | None = None
    try:
        manifest = read_manifest(repository, ref)
        index = read_index(repository, ref)
        taken = datetime.strptime(manifest.opened, _OPENED).replace(tzinfo=UTC)
    except NotFoundError:
        return None
    except (IntegrityError, UnsupportedError, ValueError) as error:
        group = manifest.vm_group if manifest else ""
        unknown = KnownBackup(ref.backup_id, group, UNREADABLE, None, stored)
        return unknown, "", f"backup {vc_guid}/{ref.backup_id} was kept, because it cannot be read: {error}"
    status = index.status if index else "Unindexed"
    known = KnownBackup(ref.backup_id, manifest.vm_group, status, taken, stored)
    return known, manifest.vm_name, ""
