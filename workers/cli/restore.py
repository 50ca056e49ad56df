"""`safehaul restore …`: a VM as a new VM or over itself; one disk to a file or into a VM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError
from rich.progress import Progress

from activities.audit_notes import note_reading
from safehaul.errors import InvalidInputError
from safehaul.media.audit import Action
from safehaul.media.reader import BackupReader
from safehaul.messages.restore import MacPolicy, RestoreDiskRequest, RestoreStatus, RestoreVmRequest
from workers.bootstrap import connect
from workers.cli import completion, exits, restore_calls
from workers.cli.disk_image import find_disk, write_image
from workers.cli.identifiers import BACKUP_HELP, find_backup
from workers.cli.output import Json, console, of, run, safe, say, show_json, size, warn
from workers.cli.repo import Agent, open_repository
from workers.cli.restore_calls import Ended
from workers.cli.restore_view import columns, show_report
from workflows.inputs import describe

app = typer.Typer(no_args_is_help=True)
Backup = Annotated[
    str,
    typer.Argument(help=BACKUP_HELP, autocompletion=completion.backups),
]
Node = Annotated[
    str | None,
    typer.Option(
        help="Access node; default: the first that answers.", autocompletion=completion.access_nodes
    ),
]
VCenter = Annotated[str | None, typer.Option(help="Target vCenter; default: the backup's own.")]
WorkflowId = Annotated[str | None, typer.Option(help="Default: made of the time.")]
Wait = Annotated[bool, typer.Option(help="Wait for its end.")]
Mac = Annotated[MacPolicy, typer.Option(help="New addresses, or the recorded ones when no VM has them.")]
Networks = Annotated[
    list[str] | None,
    typer.Option(help='"OLD=NEW": cards that were on network OLD get NEW. May be given again.'),
]
Connect = Annotated[bool, typer.Option("--connect", help="Connect the network cards at power on.")]
PowerOn = Annotated[bool, typer.Option("--power-on", help="Power the VM on once all is verified.")]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Over the VM itself: it must be off, its old disks are kept.")
]
DeleteOld = Annotated[
    bool, typer.Option("--delete-old", help="With --in-place: delete the old disks at the end.")
]


@app.command()
def vm(
    context: typer.Context,
    backup: Backup,
    name: Annotated[str | None, typer.Option(help="Name of the new VM.")] = None,
    datastore: Annotated[
        str | None, typer.Option(help="NAS datastore that takes the new VM's directory.")
    ] = None,
    datacenter: Annotated[
        str, typer.Option(help="The datastore's, where several datacentres have one of that name.")
    ] = "",
    folder: Annotated[str, typer.Option(help="Inventory folder; default: the datacentre's VM folder.")] = "",
    cluster: Annotated[str, typer.Option(help="Default: the first that mounts the datastore.")] = "",
    resource_pool: Annotated[str, typer.Option(help="Default: the cluster's root pool.")] = "",
    host: Annotated[str, typer.Option(help="ESXi host; default: vCenter chooses.")] = "",
    mac: Mac = MacPolicy.NEW,
    network: Networks = None,
    confirm: Annotated[str | None, typer.Option(help="With --in-place: the VM's name, for scripts.")] = None,
    access_node: Node = None,
    media_agent: Agent = None,
    vcenter: VCenter = None,
    workflow_id: WorkflowId = None,
    *,
    connect_cards: Connect = False,
    power_on: PowerOn = False,
    in_place: InPlace = False,
    delete_old: DeleteOld = False,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Restore a VM: as a new one with an identity of its own, or with `--in-place` over itself.

    Every byte is read back and compared before the VM is registered or gets its new disks. Exit codes: 0 restored;
    3 restored, but something is missing (a disk that the backup skipped, the power-on); 1 failed, nothing is left;
    4 cancelled, nothing is left.

    Example: `safehaul restore vm web-1/latest --name "web-1 restored" --datastore nfs-gold`.

    Example: `safehaul restore vm GUID/TIME-ID --in-place --power-on`.
    """
    found = find_backup(of(context), backup)
    try:
        request = RestoreVmRequest(
            backup="/".join(found),
            name=name,
            datastore=datastore,
            datacenter=datacenter,
            folder=folder,
            cluster=cluster,
            resource_pool=resource_pool,
            host=host,
            mac=mac,
            networks=parse_networks(network or []),
            connect=connect_cards,
            power_on=power_on,
            in_place=in_place,
            confirm=_confirmed(confirm) if in_place else confirm or "",
            delete_old_disks=delete_old,
            access_node=access_node,
            media_agent=media_agent,
            vcenter=vcenter,
        )
    except ValidationError as error:
        raise InvalidInputError(describe(error)) from None
    summary = f"Restore {request.confirm} in place" if in_place else f"Restore as {request.name}"
    _restore(context, "RestoreVm", request, workflow_id, summary, wait=wait, as_json=as_json)


@app.command()
def disk(
    context: typer.Context,
    backup: Backup,
    which: Annotated[str, typer.Argument(metavar="DISK", help="The disk's key or label, e.g. 2000.")],
    to: Annotated[Path | None, typer.Option(help="Raw image to write; must not exist.")] = None,
    to_vm: Annotated[
        str | None,
        typer.Option(
            help="VM that gets it as a new disk: its name or VC.GUID.", autocompletion=completion.vms
        ),
    ] = None,
    datastore: Annotated[
        str | None, typer.Option(help="With --to-vm: NAS datastore; default: the VM's own.")
    ] = None,
    access_node: Node = None,
    media_agent: Agent = None,
    vcenter: VCenter = None,
    workflow_id: WorkflowId = None,
    *,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Restore one disk of a backup: to a raw file, or into a VM as one more disk. Nothing is ever overwritten.

    Example: `safehaul restore disk web-1/latest 2000 --to web-1.raw`.

    Example: `safehaul restore disk GUID/TIME-ID "Hard disk 1" --to-vm web-2`.
    """
    if (to is None) == (to_vm is None):
        raise InvalidInputError("say where the disk goes: either --to FILE or --to-vm NAME")
    if to is not None:
        given = {"--datastore": datastore, "--access-node": access_node, "--vcenter": vcenter}
        misplaced = [name for name, value in given.items() if value is not None]
        if misplaced:
            raise InvalidInputError(f"{', '.join(misplaced)} goes with --to-vm, not with --to")
        _to_file(context, backup, which, to, media_agent, as_json=as_json)
        return
    found = find_backup(of(context), backup)
    try:
        request = RestoreDiskRequest(
            backup="/".join(found),
            disk=which,
            to_vm=to_vm or "",
            datastore=datastore,
            access_node=access_node,
            media_agent=media_agent,
            vcenter=vcenter,
        )
    except ValidationError as error:
        raise InvalidInputError(describe(error)) from None
    summary = f"Restore disk {which} into {to_vm}"
    _restore(context, "RestoreDisk", request, workflow_id, summary, wait=wait, as_json=as_json)


def parse_networks(pairs: list[str]) -> dict[str, str]:
    """`OLD=NEW`, each, as a mapping. Raises InvalidInputError."""
    found: dict[str, str] = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not (old and new) or "=" in new:
            raise InvalidInputError(f'--network {pair[:100]!a} is not of the form "OLD=NEW"')
        if found.setdefault(old, new) != new:
            raise InvalidInputError(f"--network: {old!a} is mapped to {found[old]!a} and to {new!a}")
    return found


def _confirmed(given: str | None) -> str:
    """The VM's name as a sign that this VM is meant; a person is asked for it."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "--in-place replaces the VM's disks: confirm it with --confirm and the VM's name"
        )
    answer: str = typer.prompt(
        "This gives the VM other disks. Type the VM's name to go on", err=True, default="", show_default=False
    )
    if not answer:
        raise InvalidInputError("not confirmed: nothing was changed")
    return answer


def _restore(
    context: typer.Context,
    kind: str,
    request: BaseModel,
    workflow_id: str | None,
    summary: str,
    *,
    wait: bool,
    as_json: bool,
) -> None:
    settings = of(context).settings()

    async def restore() -> Ended:
        client = await connect(settings)
        name = await restore_calls.start(client, kind, request, workflow_id, summary)
        if not as_json:
            say(f"started {safe(name)}")
        return await restore_calls.follow(client, name, quiet=as_json) if wait else Ended(workflow_id=name)

    ended = run(restore())
    if as_json:
        report = ended.report.model_dump(mode="json") if ended.report is not None else None
        show_json({"workflow_id": ended.workflow_id, "report": report})
    elif ended.report is not None and ended.error is None:
        show_report(ended.report)
    if ended.error is not None:
        raise ended.error
    if ended.report is not None and ended.report.status is RestoreStatus.PARTIAL:
        raise typer.Exit(exits.PARTIAL)


def _to_file(
    context: typer.Context, backup: str, which: str, to: Path, media_agent: str | None, *, as_json: bool
) -> None:
    vc_guid, backup_id = find_backup(of(context), backup)
    repository = open_repository(of(context).settings(), media_agent)
    try:
        reader = BackupReader(repository, vc_guid, backup_id)
        try:
            found = find_disk(reader.manifest.disks, which)
            details = {"disk": found.key, "to_file": str(to)}
            warn(note_reading(repository, Action.READ, f"{vc_guid}/{backup_id}", details))
            with Progress(*columns(), console=console(), transient=True, disable=as_json) as bar:
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
        show_json(
            {"backup": f"{vc_guid}/{backup_id}", "disk": what, "file": str(to), "written_bytes": written}
        )
    else:
        sizes = f"{size(found.capacity_bytes)}, {size(written)} of it data"
        say(f"wrote {safe(found.label)} ({sizes}) to {safe(str(to))}")
