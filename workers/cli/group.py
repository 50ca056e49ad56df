"""`safehaul group …`: which VM groups there are, and what one of them selects now."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from activities.peers import Peers
from activities.selection import Forecast, check_not_empty, forecast, survey
from safehaul.config.models import VmGroup
from safehaul.config.settings import Settings
from safehaul.errors import NotFoundError, SafehaulError
from safehaul.groups import Included, Selection, in_order
from safehaul.messages.inventory import NasVolume, VmRecord
from safehaul.nas.definition import match
from safehaul.vsphere.datastores import find_volume
from safehaul.vsphere.inventory import all_nas_volumes
from workers.cli.given_group import looks_whole, whole_group
from workers.cli.output import Json, of, safe, safe_lines, say, show_json, size, table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List the VM groups of the configuration with their rules. Example: `safehaul group list`."""
    settings = of(context).settings()
    groups = [_described(settings, group) for group in settings.vm_groups]
    if as_json:
        show_json(groups)
        return
    table(
        ["group", "vCenter", "media agent", "access nodes", "rules", "exclude", "disks"],
        [
            (
                group["name"],
                group["vcenter"],
                group["media_agent"],
                ", ".join(group["access_nodes"]),
                " or ".join(group["rules"]),
                " or ".join(group["exclude"]),
                "filtered" if group["disk_filters"] else "all",
            )
            for group in groups
        ],
    )


@app.command()
def preview(
    context: typer.Context,
    group: Annotated[str, typer.Argument(help="Name of a VM group, or a whole group as JSON or @FILE.")],
    *,
    as_json: Json = False,
) -> None:
    """Show who is in a VM group now, who is out, and by which rule; nothing is changed.

    Asks the vCenter from here, with the same code as a job, and no filer; a datastore that no export's definition fits
    is noted. Ends with 1 when a job would fail because the group selects no VM.

    Example: `safehaul group preview nightly`.
    """
    settings = of(context).settings()
    chosen = whole_group(settings, group)[1] if looks_whole(group) else settings.vm_group(group)
    peers = Peers(settings)
    try:
        selection = survey(peers, chosen)
        volumes = all_nas_volumes(peers.vcenter(chosen.vcenter))
    finally:
        peers.close()
    included = [
        (item, forecast(item, chosen, volumes)) for item in in_order(selection.included, chosen.order)
    ]
    problems = _export_problems(settings, volumes, [item for item, _ in included])
    if as_json:
        show_json(_as_json(chosen, selection, included) | {"export_problems": problems})
    else:
        _show(chosen, selection, included)
        for problem in problems:
            say(f"note: {safe_lines(problem)}")
    check_not_empty(selection, chosen)


def _export_problems(settings: Settings, volumes: list[NasVolume], included: list[Included]) -> list[str]:
    """For each NAS datastore of the VMs the reason why no export's definition fits it; asks no filer."""
    wanted = {ref.key: ref for item in included for ref in item.wanted.datastore_refs}
    problems = []
    for _, ref in sorted(wanted.items()):
        with suppress(NotFoundError):  # told at each disk
            volume = find_volume(volumes, ref)
            try:
                if volume.is_nas:
                    match(volume, settings.exports)
            except SafehaulError as error:
                problems.append(str(error))
    return problems


def _described(settings: Settings, group: VmGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "vcenter": group.vcenter,
        "media_agent": group.media_agent,
        "access_nodes": [node.name for node in settings.access_nodes_of(group)],
        "rules": [rule.text() for rule in group.rules],
        "exclude": [rule.text() for rule in group.exclude],
        "disk_filters": not group.disk_selection.everything,
    }


def _show(group: VmGroup, selection: Selection, included: list[tuple[Included, Forecast]]) -> None:
    rows: list[tuple[object, ...]] = [
        (
            "fails" if expected.trouble else "in",
            *_place(item.record),
            f"{sum(disk.transport == 'nas' for disk in expected.disks)} of {len(expected.disks)}",
            size(expected.capacity_bytes),
            "; ".join(_reasons(item, expected)),
        )
        for item, expected in included
    ]
    rows += [
        ("fails", *_place(each.record), len(each.record.disks), "", f"{each.rule}; {each.reason}")
        for each in selection.refused
    ]
    rows += [
        ("fails", guid, "", "", "", "listed by its VC.GUID, and no VM has it")
        for guid in selection.missing_guids
    ]
    rows += [
        ("out", *_place(each.record), len(each.record.disks), "", f"{each.reason} (selected by {each.rule})")
        for each in selection.excluded
    ]
    rows += [
        ("out", *_place(record), len(record.disks), "", "no rule matches") for record in selection.unmatched
    ]
    table(["", "VM", "folder", "disks>", "to back up>", "why"], rows)
    for rule in selection.idle_rules:
        say(f"note: {safe(rule)} matches no VM")
    good = [expected for _, expected in included if not expected.trouble]
    failing = selection.seen_count - len(good) - len(selection.excluded) - len(selection.unmatched)
    say(
        f"{safe(group.name)}: {len(good)} of {selection.seen_count} VMs of vCenter {safe(group.vcenter)} are in, "
        f"with {size(sum(expected.capacity_bytes for expected in good))}; "
        f"{failing + len(selection.missing_guids)} would fail, {len(selection.excluded)} are excluded, "
        f"{len(selection.unmatched)} match no rule"
    )


def _reasons(item: Included, expected: Forecast) -> list[str]:
    if expected.trouble:
        return [item.rule, expected.trouble]
    skipped = [
        f"{disk.label}{' would be skipped' if disk.transport == 'none' else ''}: {disk.reason}"
        for disk in expected.disks
        if disk.reason
    ]
    return [item.rule, *item.notes, *skipped]


def _place(record: VmRecord) -> tuple[str, str]:
    return record.name, "/".join(filter(None, (record.datacenter, record.folder)))


def _as_json(
    group: VmGroup, selection: Selection, included: list[tuple[Included, Forecast]]
) -> dict[str, Any]:
    return {
        "vm_group": group.name,
        "vcenter": group.vcenter,
        "included": [
            {
                **_identity(item.record),
                "rule": item.rule,
                "notes": list(item.notes),
                "capacity_bytes": expected.capacity_bytes,
                "disks": [asdict(disk) for disk in expected.disks],
            }
            for item, expected in included
            if not expected.trouble
        ],
        "failing": [
            *(
                {**_identity(item.record), "rule": item.rule, "reason": expected.trouble}
                for item, expected in included
                if expected.trouble
            ),
            *(
                {**_identity(each.record), "rule": each.rule, "reason": each.reason}
                for each in selection.refused
            ),
            *(
                {"vc_guid": guid, "reason": "listed by its VC.GUID, and no VM has it"}
                for guid in selection.missing_guids
            ),
        ],
        "excluded": [
            {**_identity(each.record), "rule": each.rule, "reason": each.reason}
            for each in selection.excluded
        ],
        "unmatched": [_identity(record) for record in selection.unmatched],
        "idle_rules": list(selection.idle_rules),
    }


def _identity(record: VmRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "vc_guid": record.vc_guid,
        "moref": record.moref,
        "datacenter": record.datacenter,
        "folder": record.folder,
    }
