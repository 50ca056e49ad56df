"""`safehaul repo repair`: makes again what can be made, tells what is lost, and drops it when told to."""

from __future__ import annotations

from typing import Annotated

import typer

from safehaul.media.repair import repair_index
from safehaul.media.repair_plan import Fate, Healing, LostBackup, RepairPlan, plan_repair
from safehaul.media.verify import verify
from safehaul.media.verify_generations import read_noted
from workers.cli import exits
from workers.cli.output import Json, of, say, show_json, size, table
from workers.cli.repo import Agent, open_repository

_HEALING = {
    Healing.LIKELY: "likely, by the VM's next backup",
    Healing.POSSIBLE: "only if the same content comes by again",
    Healing.NO: "no",
}
_FATES = {
    Fate.KEPT: "",
    Fate.FORGOTTEN: "forgotten",
    Fate.HELD: "stays: it is held",
    Fate.UNREADABLE: "stays: its manifest is damaged",
}


def repair(
    context: typer.Context,
    media_agent: Agent = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Read every byte first: to be sure.")] = False,
    as_json: Json = False,
) -> None:
    """List packs again that no index names, then tell which backups have lost data, and what can be done.

    Takes nothing away. Exit codes: 0 every backup is whole; 1 something is lost.

    Example: `safehaul repo repair --full`.
    """
    repository = open_repository(of(context).settings(), media_agent, for_writing=True)
    try:
        # A damaged object of `gc/` says of nobody knows which packs that they must not be relied on: nothing is listed.
        listed = 0 if read_noted(repository).broken else repair_index(repository)
        report = verify(repository, full=full, note_damage=True)
        plan = plan_repair(repository, report, listed)
    finally:
        repository.close()
    if as_json:
        show_json(plan.model_dump(mode="json"))
    else:
        _show(plan)
    if plan.remaining:
        raise typer.Exit(exits.FAILED)


def _show(plan: RepairPlan) -> None:
    report = plan.report
    say(f"{plan.packs_listed} packs were listed again")
    how = (
        "every byte was read" if report.full else "packs were judged by their lists (--full reads every byte)"
    )
    say(f"{report.backups} backups checked, {report.packs_total} packs; {how}")
    others = [item for item in report.damage if not item.object_name.startswith("packs/")]
    if others:
        rows = [(item.object_name, item.problem, item.advice) for item in others]
        table(["damaged object", "problem", "what to do"], rows)
    if report.leftovers:
        say(f"{len(report.leftovers)} damaged packs are needed by no backup: a collection removes them")
    if not plan.backups:
        say("every backup is whole")
        return
    table(
        ["VM", "backup", "lost>", "may heal", "where", ""],
        [_row(item) for item in plan.backups],
        title="backups that cannot be restored whole",
    )
    if report.damaged_backups_omitted:
        say(f"… and {report.damaged_backups_omitted} more: run it again when these are dealt with")
    costs = [
        (vm.vm_name or vm.vc_guid, str(vm.lost), str(vm.left), vm.newest_left or "none") for vm in plan.vms
    ]
    table(["VM", "lost>", "left>", "newest whole backup"], costs, title="what dropping them costs")


def _row(item: LostBackup) -> tuple[str, ...]:
    where = item.problem or "; ".join(f"{part.part}: {size(part.bytes_lost)}" for part in item.parts)
    return (
        item.vm_name,
        f"{item.vc_guid}/{item.backup_id}",
        size(item.bytes_lost),
        _HEALING[item.healing],
        where,
        _FATES[item.fate],
    )
