"""`safehaul restore …`: a VM as a new VM, or one disk to a file."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from safehaul.errors import AlreadyExistsError, InvalidInputError
from safehaul.media.manifest import ManifestDisk
from safehaul.media.reader import BackupReader, Hole
from safehaul.messages.restore import RestoreReport, RestoreVmRequest
from workers.bootstrap import connect
from workers.cli.identifiers import parse_backup
from workers.cli.output import Json, console, of, run, safe, say, show_json, size
from workers.cli.repo import Agent, open_repository
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
    request = RestoreVmRequest(
        backup="/".join(parse_backup(backup)),
        name=name,
        datastore=datastore,
        folder=folder,
        access_node=access_node,
        media_agent=media_agent,
        keep_mac=keep_mac,
    )
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
            # Ctrl-C ends the waiting, not the restore.
            say(f"{workflow_id} goes on: see the web UI")
            raise
        return report

    report = run(restore())
    if as_json:
        show_json({"workflow_id": workflow_id, "report": report.model_dump(mode="json") if report else None})
    elif report is not None:
        written = sum(disk.bytes_compared for disk in report.disks)
        say(
            f"restored {safe(report.name)} ({report.moref}) in {safe(report.directory)}: "
            f"{len(report.disks)} disks, {size(written)} written and compared"
        )
        for item in report.missing_disks:
            say(f"not in the backup: {safe(item)}")


@app.command()
def disk(
    context: typer.Context,
    backup: Backup,
    which: Annotated[str, typer.Argument(metavar="DISK", help="The disk's key or label, e.g. 2000.")],
    to: Annotated[Path, typer.Option(help="Raw image to write; must not exist.")],
    media_agent: Agent = None,
) -> None:
    """Write one disk of a backup to a raw file, every chunk verified; holes stay sparse.

    Example: `safehaul restore disk GUID/TIME-ID 2000 --to web-1.raw`.
    """
    repository = open_repository(of(context).settings(), media_agent)
    reader = BackupReader(repository, *parse_backup(backup))
    try:
        found = _find(reader.manifest.disks, which)
        _write(reader, found, to)
    finally:
        reader.close()
        repository.close()
    say(f"wrote {safe(found.label)} ({size(found.capacity_bytes)}) to {safe(str(to))}")


def _find(disks: list[ManifestDisk], which: str) -> ManifestDisk:
    for item in disks:
        if which in (str(item.key), item.label):
            return item
    names = ", ".join(f"{item.key} ({item.label})" for item in disks)
    raise InvalidInputError(f"the backup holds no disk {which!r}; it holds: {names or 'none'}")


def _write(reader: BackupReader, item: ManifestDisk, to: Path) -> None:
    """Write beside the target and rename at the end, so that a broken restore never looks whole."""
    partial = to.with_name(f".{to.name}.partial")
    if to.exists():
        raise AlreadyExistsError(f"{to} exists: choose another file, it is never overwritten")
    try:
        with partial.open("xb") as file, Progress(console=console(), transient=True) as progress:
            task = progress.add_task(safe(item.label), total=item.capacity_bytes)
            for offset, piece in reader.iter_disk(item.key):
                if not isinstance(piece, Hole):
                    file.seek(offset)
                    file.write(piece)
                progress.update(task, completed=offset)
            file.truncate(item.capacity_bytes)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, to)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{error.filename} exists: remove it or choose another file") from None
    except OSError as error:
        raise InvalidInputError(f"{to} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
