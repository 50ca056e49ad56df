"""`safehaul backups …`: list backups, show what one holds, verify that it can be restored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupPlace, BackupRow
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from safehaul.media.manifest import (
    BackupIndex,
    BackupRef,
    Manifest,
    list_backups,
    read_index,
    read_manifest,
)
from safehaul.media.repository import Repository
from workers.cli import completion, exits
from workers.cli.backup_sums import show_sums
from workers.cli.backup_verify import check_backups, show_checks
from workers.cli.certificate_view import show_removal
from workers.cli.identifiers import BACKUP_HELP, find_backup, rows_of
from workers.cli.output import Json, of, plain, safe, say, show_json, size, table
from workers.cli.repo import Agent, open_repository
from workers.cli.times import SINCE_HELP, UNTIL_HELP, parse_since

app = typer.Typer(no_args_is_help=True)
MAX_COPIES = 16
"""Of one backup, with as many MediaAgents."""


class BackupStatus(StrEnum):
    """How a backup stands in the catalogue."""

    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    UNINDEXED = "unindexed"


@app.command("list")
def list_(
    context: typer.Context,
    vm: Annotated[
        str | None, typer.Option(help="Only this VM: its name or VC.GUID.", autocompletion=completion.vms)
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only VMs with this in their name, in upper or lower case.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Only this VM group.", autocompletion=completion.vm_groups)
    ] = None,
    status: Annotated[BackupStatus | None, typer.Option(help="Only backups of this status.")] = None,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    until: Annotated[str | None, typer.Option(help=UNTIL_HELP)] = None,
    after: Annotated[
        str | None,
        typer.Option(
            help="The next page: backups that are listed after this one.", autocompletion=completion.backups
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most, newest first.")] = 100,
    *,
    ids: Annotated[bool, typer.Option("--ids", help="Print the backups' ids alone, one a line.")] = False,
    as_json: Json = False,
) -> None:
    """List backups from the catalogue, newest first. Example: `safehaul backups list --vm web-1 --since 7d`.

    A list that is longer than `--limit` goes on with `--after` and the last id of the page before.
    """
    begun, ended = parse_since(since), parse_since(until, option="--until")
    catalog = Catalog(of(context).settings().catalog_url())
    try:
        ask = partial(
            catalog.list_backups,
            vm=vm,
            search=search,
            vm_group=group,
            status=status.capitalize() if status else None,
            since=begun,
            until=ended,
        )
        rows = ask(after=_place(catalog, after), limit=limit)
        if len(rows) == limit:
            # An id means all copies of a backup: a page does not end between them.
            more = ask(after=rows[-1].place, limit=MAX_COPIES)
            rows += [
                row for row in more if (row.vc_guid, row.backup_id) == (rows[-1].vc_guid, rows[-1].backup_id)
            ]
    finally:
        catalog.close()
    if as_json:
        show_json([row.model_dump(mode="json") for row in rows])
        return
    if ids:
        # A backup and its second copy have one id.
        found = dict.fromkeys(plain(f"{row.vc_guid}/{row.backup_id}") for row in rows)
        sys.stdout.writelines(f"{item}\n" for item in found)
        return
    if not rows:
        say(
            "no backup was found: drop a filter, or see `safehaul job list`; a lost catalogue is made again by"
        )
        say("`safehaul catalog rebuild`")
        return
    _show_list(rows, limit)


def _show_list(rows: Sequence[BackupRow], limit: int) -> None:
    several = len({row.media_agent for row in rows}) > 1
    columns = [
        "VM",
        "status",
        "committed",
        "on disk>",
        "stored>",
        "group",
        *(["at"] if several else []),
        "backup",
    ]
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
                *([row.media_agent] if several else []),
                f"{row.vc_guid}/{row.backup_id}",
            )
            for row in rows
        ],
    )
    if len(rows) >= limit:
        last = safe(f"{rows[-1].vc_guid}/{rows[-1].backup_id}")
        say(f"there may be more: --after {last}")


def _place(catalog: Catalog, after: str | None) -> BackupPlace | None:
    """Where a list goes on: after the last copy of a backup. Raises InvalidInputError."""
    if after is None:
        return None
    vc_guid, _, backup_id = after.rpartition("/")
    found = catalog.find_backup(vc_guid, backup_id)
    if found is None:
        raise InvalidInputError(
            f"--after {after[:200]!a}: the catalogue has no such backup; it takes an id as `backups list` shows it"
        )
    return found.place


class SumBy(StrEnum):
    """What a summary has a line for."""

    GROUP = "group"
    STATUS = "status"
    MEDIA_AGENT = "media-agent"


@app.command()
def summary(
    context: typer.Context,
    by: Annotated[SumBy, typer.Option(help="What has a line of its own.")] = SumBy.GROUP,
    group: Annotated[
        str | None, typer.Option(help="Only this VM group.", autocompletion=completion.vm_groups)
    ] = None,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    until: Annotated[str | None, typer.Option(help=UNTIL_HELP)] = None,
    *,
    as_json: Json = False,
) -> None:
    """Count backups and add up their sizes, from the catalogue. Example: `safehaul backups summary --since 7d`.

    `on disk` is what the disks had, `read` what was read of them, `stored` what was new in the repository.
    """
    begun, ended = parse_since(since), parse_since(until, option="--until")
    catalog = Catalog(of(context).settings().catalog_url())
    try:
        found = catalog.sums(vm_group=group, since=begun, until=ended)
    finally:
        catalog.close()
    if as_json:
        show_json([item.model_dump(mode="json") for item in found])
    else:
        show_sums(found, by.value)


@app.command()
def show(
    context: typer.Context,
    backup: Annotated[
        str,
        typer.Argument(help=BACKUP_HELP, autocompletion=completion.backups),
    ],
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Show what a backup holds and how its snapshot went, read from the repository itself.

    Example: `safehaul backups show web-1/latest`, `safehaul backups show GUID/20261123T003839Z-c64f5b959f5192a3`.
    """
    ref = BackupRef(*find_backup(of(context), backup))
    repository = open_repository(of(context).settings(), media_agent)
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
    _show(f"{ref.vc_guid}/{ref.backup_id}", manifest, index)


@app.command()
def verify(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="BACKUP",
            help=f"{BACKUP_HELP} With --all a VM: its name or VC.GUID.",
            autocompletion=completion.backups,
        ),
    ],
    media_agent: Agent = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Verify all backups of a VM.")] = False,
    as_json: Json = False,
) -> None:
    """Read every chunk of a backup and check it, as a restore would; name damage by disk and offset.

    Exit code 1 when something is damaged. Example: `safehaul backups verify web-1/latest`,
    `safehaul backups verify web-1 --all`.
    """
    settings = of(context).settings()
    repository = open_repository(settings, media_agent)
    try:
        refs = (
            _backups_of(settings, repository, what) if every else [BackupRef(*find_backup(of(context), what))]
        )
        found = check_backups(repository, refs, quiet=as_json)
    finally:
        repository.close()
    if as_json:
        show_json([{**item.model_dump(mode="json"), "sound": item.sound} for item in found])
    else:
        show_checks(found)
    if not all(item.sound for item in found):
        raise typer.Exit(exits.FAILED)


def _backups_of(settings: Settings, repository: Repository, vm: str) -> list[BackupRef]:
    """All backups of a VM in the repository, oldest first. Raises InvalidInputError."""
    refs = list(list_backups(repository, vm)) or list(
        list_backups(repository, rows_of(settings, vm)[0].vc_guid)
    )
    if not refs:
        raise InvalidInputError(
            f"the repository holds no backup of a VM {vm[:100]!r}: its MediaAgent is another, or the catalogue is old, "
            "which `safehaul catalog rebuild` makes again"
        )
    return refs


def _show(backup: str, manifest: Manifest, index: BackupIndex | None) -> None:
    say(f"[bold]{safe(manifest.vm_name)}[/bold] {safe(backup)}")
    say(
        f"status {index.status if index else 'Unindexed: step 14 was not reached'}, job {safe(manifest.job_id)}"
    )
    origin = manifest.copied_from
    if origin is not None:
        say(
            f"a copy of the backup of MediaAgent {safe(origin.media_agent)}, committed there {safe(origin.committed)}"
        )
    say(f"snapshot {safe(manifest.snapshot.moref)} of {safe(manifest.snapshot.created)}")
    disks = [
        (disk.key, disk.label, disk.transport, size(disk.capacity_bytes), size(disk.stats.bytes_stored), "")
        for disk in manifest.disks
    ]
    skipped = [
        (item.key or "", item.label, "deselected" if item.deselected else "none", "", "", item.reason)
        for item in manifest.skipped
        if item.kind == "disk"
    ]
    table(["key>", "disk", "transport", "on disk>", "stored>", "remark"], [*disks, *skipped])
    table(["file", "type", "bytes>"], [(file.name, file.type, file.size_bytes) for file in manifest.files])
    for item in manifest.skipped:
        if item.kind != "disk":
            say(f"{safe(item.kind)} not in the backup: {safe(item.label)}: {safe(item.reason)}")
    if index is not None:
        show_removal(index)
    for warning in dict.fromkeys([*manifest.warnings, *(index.warnings if index else [])]):
        say(f"warning: {safe(warning)}")
