"""The verification of backups as a person sees it: a bar while it reads, then one line a backup and the damage."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.backup_check import BackupCheck, BackupChecker
from safehaul.media.manifest import BackupRef, read_manifest
from safehaul.media.repository import Repository
from workers.cli.output import console, safe, say, size, table


def check_backups(repository: Repository, refs: Sequence[BackupRef], *, quiet: bool) -> list[BackupCheck]:
    """Check the backups one after the other. Raises NotFoundError."""
    columns = [
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    ]
    found = []
    with Progress(*columns, console=console(), transient=True, disable=quiet) as bar:
        task = bar.add_task("")
        checker = BackupChecker(repository, lambda length: bar.advance(task, length))
        for number, ref in enumerate(refs, start=1):
            told = f"{number} of {len(refs)} {safe(ref.backup_id)}"
            bar.reset(task, description=told, total=_capacity(repository, ref))
            found.append(checker.check(ref))
    return found


def _capacity(repository: Repository, ref: BackupRef) -> int | None:
    """Bytes of the backup's disks; None when its manifest does not tell, which the check reports."""
    try:
        return sum(disk.capacity_bytes for disk in read_manifest(repository, ref).disks)
    except (IntegrityError, NotFoundError, UnsupportedError):
        return None


def show_checks(found: Sequence[BackupCheck]) -> None:
    """One line a backup, then where it is damaged."""
    for check in found:
        where = f"{safe(check.vm_name)} {safe(f'{check.vc_guid}/{check.backup_id}')}".strip()
        known = f", {size(check.bytes_known)} shared with what was read before" if check.bytes_known else ""
        verdict = "[green]sound[/green]" if check.sound else "[red]DAMAGED[/red]"
        say(
            f"{verdict} {where}: {check.disks} disks of {size(check.bytes_capacity)} and {check.files} files, "
            f"{size(check.bytes_read)} read and compared{known}"
        )
        if check.sound:
            continue
        rows = [
            (item.part, f"{item.offset_bytes:,}", f"{item.length_bytes:,}", item.problem)
            for item in check.damage
        ]
        table(["damaged", "offset>", "bytes>", "problem"], rows)
        if check.damage_omitted:
            say(f"… and {check.damage_omitted} more damaged ranges")
    damaged = sum(not check.sound for check in found)
    if damaged:
        say(
            f"{damaged} of {len(found)} backups are damaged: everything else in them can be restored; back the VM up "
            "again, which stores lost chunks anew; damaged ones after `safehaul repo verify --full --note-damage`"
        )
