"""`safehaul repo repair`: makes again what can be made, tells what is lost, and drops it when told to."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from activities import repositories
from safehaul.catalog.catalog import Catalog
from safehaul.config.media_agent import MediaAgent
from safehaul.config.settings import Settings
from safehaul.errors import ConfigError, InvalidInputError, TransientError
from safehaul.media import audit
from safehaul.media.forgotten import forget
from safehaul.media.holds import is_held
from safehaul.media.manifest import BackupRef
from safehaul.media.object_store import DeletingStore
from safehaul.media.repair import repair_index
from safehaul.media.repair_plan import (
    Fate,
    Healing,
    LostBackup,
    RepairPlan,
    clear_manifest,
    clear_useless,
    plan_repair,
)
from safehaul.media.repair_plan import drop_lost as drop_lost_backups
from safehaul.media.repository import Repository
from safehaul.media.verify import verify
from safehaul.media.verify_generations import read_noted
from workers.cli import exits
from workers.cli.output import Json, of, plain, safe, say, show_json, size, table
from workers.cli.repo import Agent, choose

_HEALING = {
    Healing.LIKELY: "likely, by the VM's next backup",
    Healing.POSSIBLE: "only if the same content comes by again",
    Healing.NO: "no",
}
_FATES = {
    Fate.KEPT: "",
    Fate.FORGOTTEN: "forgotten",
    Fate.HELD: "stays: it is held",
    Fate.REBUILT: "its manifest was made again",
    Fate.DELETED: "its damaged manifest was deleted",
    Fate.UNREADABLE: "stays: it is of a newer safehaul",
}


def repair(
    context: typer.Context,
    media_agent: Agent = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Read every byte first: to be sure.")] = False,
    drop_lost: Annotated[
        bool,
        typer.Option(
            "--drop-lost",
            help="Forget the backups that are not whole: recoverable for 7 days; delete damaged objects that are of "
            "no use any more. Needs keys that may delete.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --drop-lost: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """List packs again that no index names, then tell which backups have lost data, and what can be done.

    Takes nothing away without `--drop-lost`. Exit codes: 0 every backup in the list is whole, and nothing else is left
    to do; 1 something is lost and still listed, or a damaged object is left.

    Example: `safehaul repo repair --full`, then `safehaul repo repair --drop-lost`.
    """
    if yes and not drop_lost:
        raise InvalidInputError("--yes goes with --drop-lost")
    settings = of(context).settings()
    agent = choose(settings, media_agent)
    repository = repositories.open_repository(agent)
    try:
        # A damaged object of `gc/` says of nobody knows which packs that they must not be relied on: nothing is listed.
        listable = not read_noted(repository).broken
        listed = repair_index(repository) if listable else 0
        report = verify(repository, full=full, note_damage=True)
        plan = plan_repair(repository, report, listed)
        if not listable:
            # What a damaged list named has not been listed again.
            kept = [name for name in plan.useless if not name.startswith("idx/")]
            plan = plan.model_copy(update={"useless": kept})
        drops = drop_lost and bool(plan.backups or plan.useless)
        if not as_json:
            _show(plan)
        if drops:
            plan = _drop(repository, agent, plan, yes=yes)
            _take_off_the_catalogue(settings, agent, plan)
    finally:
        repository.close()
    if as_json:
        show_json(plan.model_dump(mode="json"))
    elif drops:
        _show_dropped(plan)
    if not plan.settled:
        raise typer.Exit(exits.FAILED)


def _drop(repository: Repository, agent: MediaAgent, plan: RepairPlan, *, yes: bool) -> RepairPlan:
    """Drop what is lost, once it is confirmed. Raises InvalidInputError, PermissionRefusedError."""
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInputError("--drop-lost takes backups off the list: confirm it with --yes")
        question = (
            f"Take {len(plan.backups)} backups of {len(plan.vms)} VMs off the list, and delete {len(plan.useless)} "
            "damaged objects that are of no use?"
        )
        if not typer.confirm(question, err=True):
            raise InvalidInputError("not confirmed: nothing was dropped")
    with repositories.deleting(agent) as store:
        return _drop_with(repository, store, plan)


def _drop_with(repository: Repository, store: DeletingStore, plan: RepairPlan) -> RepairPlan:
    def note(ref: BackupRef, reason: str) -> None:
        details = {"reason": reason, "by": "repo repair --drop-lost"}
        audit.append(repository, audit.Action.FORGET, f"{ref.vc_guid}/{ref.backup_id}", details)

    def forget_noted(ref: BackupRef, reason: str) -> None:
        note(ref, reason)
        forget(repository, store, ref, reason)

    def clear_noted(ref: BackupRef) -> Fate:
        note(ref, "repair: its manifest is damaged")
        return clear_manifest(repository, store, ref)

    plan = drop_lost_backups(plan, forget_noted, clear_noted, lambda ref: is_held(repository, ref))
    cleared = []
    for name in plan.useless:
        audit.append(repository, audit.Action.REPAIR, name, {"reason": "damaged, and of no use any more"})
        if clear_useless(repository, store, name):
            cleared.append(name)
    return plan.model_copy(update={"cleared": cleared})


def _take_off_the_catalogue(settings: Settings, agent: MediaAgent, plan: RepairPlan) -> None:
    """The catalogue lists what can be restored. It is never the truth: when it cannot be written, that is only told."""
    gone = [item for item in plan.backups if item.fate in {Fate.FORGOTTEN, Fate.DELETED}]
    try:
        catalog = Catalog(settings.catalog_url())
        try:
            for vc_guid in sorted({item.vc_guid for item in gone}):
                catalog.remove_backups(
                    agent.name, vc_guid, [item.backup_id for item in gone if item.vc_guid == vc_guid]
                )
        finally:
            catalog.close()
    except (ConfigError, TransientError) as error:
        sys.stderr.write(
            f"safehaul: the catalogue still lists them ({plain(str(error))}): `safehaul catalog rebuild`\n"
        )


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


def _show_dropped(plan: RepairPlan) -> None:
    if plan.backups:
        rows = [
            (item.vm_name, f"{item.vc_guid}/{item.backup_id}", _FATES[item.fate]) for item in plan.backups
        ]
        table(["VM", "backup", "is now"], rows, title="what became of them")
    for name in plan.cleared:
        say(f"deleted {safe(name)}")


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
