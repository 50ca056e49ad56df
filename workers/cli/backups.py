"""`safehaul backups …`: list backups and show what one holds."""

from __future__ import annotations

from typing import Annotated

import typer

from safehaul.catalog.catalog import Catalog
from safehaul.media.manifest import BackupIndex, BackupRef, Manifest, read_index, read_manifest
from workers.cli.identifiers import parse_backup
from workers.cli.output import Json, of, safe, say, show_json, size, table
from workers.cli.repo import Agent, open_repository

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_(
    context: typer.Context,
    vm: Annotated[str | None, typer.Option(help="Only this VM: its name or VC.GUID.")] = None,
    group: Annotated[str | None, typer.Option(help="Only this VM group.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most, newest first.")] = 100,
    *,
    as_json: Json = False,
) -> None:
    """List backups from the catalogue, newest first. Example: `safehaul backups list --vm web-1`."""
    catalog = Catalog(of(context).settings().catalog_url())
    rows = catalog.list_backups(vm=vm, vm_group=group, limit=limit)
    catalog.close()
    if as_json:
        show_json([row.model_dump(mode="json") for row in rows])
        return
    columns = ["VM", "status", "committed", "on disk>", "stored>", "group", "backup"]
    table(
        columns,
        [
            (
                row.vm_name,
                row.status,
                row.committed,
                size(row.capacity_bytes),
                size(row.stored_bytes),
                row.vm_group,
                f"{row.vc_guid}/{row.backup_id}",
            )
            for row in rows
        ],
    )


@app.command()
def show(
    context: typer.Context,
    backup: Annotated[str, typer.Argument(help="VC.GUID/TIME-ID, as `backups list` shows it.")],
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Show what a backup holds and how its snapshot went, read from the repository itself.

    Example: `safehaul backups show GUID/20261123T003839Z-c64f5b959f5192a3`.
    """
    vc_guid, backup_id = parse_backup(backup)
    repository = open_repository(of(context).settings(), media_agent)
    ref = BackupRef(vc_guid, backup_id)
    manifest, index = read_manifest(repository, ref), read_index(repository, ref)
    repository.close()
    if as_json:
        show_json(
            {
                "manifest": manifest.model_dump(mode="json"),
                "index": index.model_dump(mode="json") if index else None,
            }
        )
        return
    _show(backup, manifest, index)


def _show(backup: str, manifest: Manifest, index: BackupIndex | None) -> None:
    say(f"[bold]{safe(manifest.vm_name)}[/bold] {safe(backup)}")
    say(
        f"status {index.status if index else 'Unindexed: step 14 was not reached'}, job {safe(manifest.job_id)}"
    )
    say(f"snapshot {safe(manifest.snapshot.moref)} of {safe(manifest.snapshot.created)}")
    disks = [
        (disk.key, disk.label, disk.transport, size(disk.capacity_bytes), size(disk.stats.bytes_stored), "")
        for disk in manifest.disks
    ]
    skipped = [
        (item.key or "", item.label, "deselected" if item.deselected else "none", "", "", item.reason)
        for item in manifest.skipped
    ]
    table(["key>", "disk", "transport", "on disk>", "stored>", "remark"], [*disks, *skipped])
    table(["file", "type", "bytes>"], [(file.name, file.type, file.size_bytes) for file in manifest.files])
    if index is not None:
        removal = index.removal
        say(
            f"snapshot removed: from {safe(str(removal.get('started_at', '?')))} to "
            f"{safe(str(removal.get('finished_at', '?')))}, consolidation needed afterwards: "
            f"{safe(str(removal.get('consolidation_needed_after', '?')))}"
        )
    for warning in [*manifest.warnings, *(index.warnings if index else [])]:
        say(f"warning: {safe(warning)}")
