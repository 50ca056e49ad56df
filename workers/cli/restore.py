"""`safehaul restore …`: a VM as a new VM, or one disk to a file."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from safehaul.errors import InvalidInputError
from safehaul.media.reader import BackupReader
from safehaul.messages.restore import RestoreReport, RestoreVmRequest
from workers.bootstrap import connect
from workers.cli.disk_image import find_disk, write_image
from workers.cli.identifiers import parse_backup
from workers.cli.output import Json, console, of, run, safe, say, show_json, size
from workers.cli.repo import Agent, open_repository
from workflows.inputs import describe
from workflows.policies import COMMSERVE_QUEUE

app = typer.Typer(no_args_is_help=True)
Backup = Annotated[str, typer.Argument(help="VC.GUID/TIME-ID, as `backups list` shows it.")]


@app.command()
def vm(
    context: typer.Context,
    backup: Backup,
    name: Annotated[str, typer.Option(help="Name of the new VM.")],
    datastore: Annotated[str, typer.Option(help="NAS datastore that takes the new VM's directory.")],
    folder: Annotated[str, typer.Option(help="Inventory folder; default: the datacentre's VM folder.")] = "",
    access_node: Annotated[str | None, typer.Option(help="Default: the first that answers.")] = None,
    media_agent: Agent = None,
    *,
    keep_mac: Annotated[bool, typer.Option("--keep-mac", help="Keep the network cards' addresses.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait for its end.")] = True,
    as_json: Json = False,
) -> None:
    """Restore a VM as a new one: registered, powered off, with an identity of its own.

    Example: `safehaul restore vm GUID/TIME-ID --name "web-1 restored" --datastore nfs-gold`.
    """
    settings = of(context).settings()
    try:
        request = RestoreVmRequest(
            backup="/".join(parse_backup(backup)),
            name=name,
            datastore=datastore,
            folder=folder,
            access_node=access_node,
            media_agent=media_agent,
            keep_mac=keep_mac,
        )
    except ValidationError as error:
        raise InvalidInputError(describe(error)) from None
    workflow_id = f"restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"

    async def restore() -> RestoreReport | None:
        client = await connect(settings)
        handle = await client.start_workflow(
            "RestoreVm",
            request.model_dump(),
            id=workflow_id,
            task_queue=COMMSERVE_QUEUE,
            static_summary=f"Restore as {name}",
            result_type=RestoreReport,
        )
        if not as_json:
            say(f"started {workflow_id}")
        if not wait:
            return None
        try:
            report: RestoreReport = await handle.result()
        except asyncio.CancelledError:
            # Ctrl-C ends the waiting, not the restore. Stdout may be for JSON only.
            sys.stderr.write(f"safehaul: {workflow_id} goes on: see the web UI\n")
            raise
        return report

    report = run(restore())
    if as_json:
        show_json({"workflow_id": workflow_id, "report": report.model_dump(mode="json") if report else None})
    elif report is not None:
        written = sum(disk.bytes_compared for disk in report.disks)
        say(
            f"restored {safe(report.name)} ({safe(report.moref)}) in {safe(report.directory)}: "
            f"{len(report.disks)} disks, {size(written)} written and compared"
        )
        for item in report.missing_disks:
            say(f"not in the backup: {safe(item)}")
        for item in report.warnings:
            say(f"warning: {safe(item)}")


@app.command()
def disk(
    context: typer.Context,
    backup: Backup,
    which: Annotated[str, typer.Argument(metavar="DISK", help="The disk's key or label, e.g. 2000.")],
    to: Annotated[Path, typer.Option(help="Raw image to write; must not exist.")],
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Write one disk of a backup to a raw file, every chunk verified; holes stay sparse.

    Example: `safehaul restore disk GUID/TIME-ID 2000 --to web-1.raw`.
    """
    vc_guid, backup_id = parse_backup(backup)
    repository = open_repository(of(context).settings(), media_agent)
    try:
        reader = BackupReader(repository, vc_guid, backup_id)
        try:
            found = find_disk(reader.manifest.disks, which)
            with Progress(*_columns(), console=console(), transient=True, disable=as_json) as bar:
                task = bar.add_task(safe(found.label), total=found.capacity_bytes)
                written = write_image(
                    reader, found, to, progress=lambda done: bar.update(task, completed=done)
                )
        finally:
            reader.close()
    finally:
        repository.close()
    if as_json:
        what = {"key": found.key, "label": found.label, "capacity_bytes": found.capacity_bytes}
        show_json({"backup": backup, "disk": what, "file": str(to), "written_bytes": written})
    else:
        sizes = f"{size(found.capacity_bytes)}, {size(written)} of it data"
        say(f"wrote {safe(found.label)} ({sizes}) to {safe(str(to))}")


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
