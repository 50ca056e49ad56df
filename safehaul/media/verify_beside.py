"""Checks what stands beside the backups: holds, the audit log, and forgotten backups that can be recovered."""

from __future__ import annotations

from collections.abc import Callable

from safehaul.media.audit import entries
from safehaul.media.disk_map import page_name
from safehaul.media.forgotten import list_forgotten, read_forgotten
from safehaul.media.holds import held_backups, hold_name, read_hold
from safehaul.media.manifest import Manifest, forgotten_name
from safehaul.media.repository import Repository
from safehaul.media.verified import FindingsBuilder
from safehaul.media.verify_packs import BROKEN

_FORGOTTEN_ADVICE = "this backup cannot be recovered; a prune deletes the object when its time has come"
_HOLD_ADVICE = (
    "release it and hold the backup anew (`safehaul retention release`, `hold`): who held it and why is lost"
)
_AUDIT_ADVICE = "what it said is lost; the entries before and after it say when that was"


def check_beside_backups(
    repository: Repository, findings: FindingsBuilder, doing: Callable[[str], None]
) -> None:
    """Read each of these objects, and the maps of forgotten backups."""
    for ref in held_backups(repository):
        if repository.store.exists(hold_name(ref)) and read_hold(repository, ref).hold is None:
            findings.damage(hold_name(ref), "the hold cannot be read; it holds all the same", _HOLD_ADVICE)
    for entry in entries(repository):
        if entry.entry is None:
            findings.damage(entry.name, entry.problem, _AUDIT_ADVICE)
    seen: set[str] = set()
    for ref, _ in list_forgotten(repository):
        doing(f"looking at the forgotten backup {ref.backup_id} of VM {ref.vc_guid}")
        try:
            _check_maps(repository, read_forgotten(repository, ref).manifest, seen, findings)
        except BROKEN as error:
            if repository.store.exists(forgotten_name(ref)):
                findings.damage(forgotten_name(ref), str(error), _FORGOTTEN_ADVICE)


def _check_maps(
    repository: Repository, manifest: Manifest, seen: set[str], findings: FindingsBuilder
) -> None:
    """Read the map pages of a forgotten backup that are not in `seen`."""
    for disk in manifest.disks:
        disk_map = manifest.disk_map(repository, disk.key)
        for number, root in enumerate(disk.page_roots):
            if root in seen:
                continue
            seen.add(root)
            try:
                disk_map.page(number)
            except BROKEN as error:
                findings.damage(page_name(root), str(error), _FORGOTTEN_ADVICE)
