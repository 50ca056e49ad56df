"""`safehaul retention …`: what is kept and why, legal holds, and backups that were forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from activities import repositories
from activities.forgotten_backups import bring_back, list_again
from activities.retention_plan import VmPlan, plans
from safehaul.catalog.catalog import Catalog
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError, NotFoundError, SafehaulError
from safehaul.media import audit, forgotten, holds
from safehaul.media.audit import Action
from safehaul.media.manifest import BackupRef, manifest_name
from safehaul.media.repository import Repository
from safehaul.retention import Decision
from workers.cli import completion
from workers.cli.identifiers import BACKUP_HELP, find_backup, rows_of
from workers.cli.output import Json, of, safe, say, show_json, table
from workers.cli.repo import Agent, choose, open_repository

app = typer.Typer(no_args_is_help=True)
Backup = Annotated[str, typer.Argument(help=BACKUP_HELP, autocompletion=completion.backups)]
Vm = Annotated[
    str | None, typer.Option(help="Only this VM: its name or VC.GUID.", autocompletion=completion.vms)
]
RECOVERED = "recovered"


@app.command()
def show(context: typer.Context, media_agent: Agent = None, *, as_json: Json = False) -> None:
    """Show each VM group's rules, and the backups that are held. Example: `safehaul retention show`."""
    settings = of(context).settings()
    agent = choose(settings, media_agent)
    repository = repositories.open_repository(agent, for_writing=False)
    held = [holds.read_hold(repository, ref) for ref in holds.held_backups(repository)]
    repository.close()
    groups = [group for group in settings.vm_groups if group.media_agent == agent.name]
    if as_json:
        rules = {group.name: group.retention.model_dump() for group in groups}
        show_json({"rules": rules, "holds": [_hold_as_json(item) for item in held]})
        return
    table(["VM group", "keeps"], [(group.name, str(group.retention)) for group in groups])
    if held:
        columns = ["held backup", "since", "by", "reason"]
        table(columns, [_hold_as_json(item).values() for item in held])
    else:
        say("no backup is held")


@app.command()
def preview(
    context: typer.Context,
    group: Annotated[
        str | None,
        typer.Argument(metavar="GROUP", help="Only this VM group.", autocompletion=completion.vm_groups),
    ] = None,
    vm: Vm = None,
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Show what the next prune forgets, what it keeps, and why. Changes nothing.

    Reads the repository. Example: `safehaul retention preview nightly`.
    """
    settings = of(context).settings()
    if group is not None:
        media_agent = media_agent or settings.vm_group(group).media_agent
    repository = open_repository(settings, media_agent)
    try:
        found = list(plans(repository, settings, vc_guid=_guid_of(settings, vm)))
    finally:
        repository.close()
    rows = [
        (plan, decision)
        for plan in found
        for decision in plan.decisions
        if group is None or decision.backup.vm_group == group
    ]
    if as_json:
        show_json([_decision_as_json(plan, decision) for plan, decision in rows])
        return
    table(
        ["VM", "backup", "status", "group", "what becomes of it"],
        [
            (
                plan.vm_name or "?",
                f"{plan.vc_guid}/{decision.backup.backup_id}",
                decision.backup.status,
                decision.backup.vm_group,
                str(decision),
            )
            for plan, decision in rows
        ],
    )
    for problem in [line for plan in found for line in plan.problems]:
        say(safe(problem))
    gone = sum(1 for _, decision in rows if not decision.keep)
    say(f"{len(rows)} backups: the next prune forgets {gone} and keeps {len(rows) - gone}")


@app.command()
def hold(
    context: typer.Context,
    backup: Backup,
    reason: Annotated[str, typer.Option(help="Why, for whoever wants to release it.")],
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Hold a backup: no rule forgets it until it is released, by an identity that may delete.

    Example: `safehaul retention hold web-1/latest --reason "case 2026/17"`.
    """
    ref = BackupRef(*find_backup(of(context), backup))
    repository = open_repository(of(context).settings(), media_agent, for_writing=True)
    try:
        name = f"{ref.vc_guid}/{ref.backup_id}"
        if not repository.store.exists(manifest_name(ref)):
            forgotten.read_forgotten(repository, ref)
        placed = holds.place_hold(repository, ref, audit.actor(), reason)
        audit.append(repository, Action.HOLD, name, {"reason": placed.reason})
        gone = not repository.store.exists(manifest_name(ref))
    finally:
        repository.close()
    if as_json:
        show_json({**placed.model_dump(exclude={"version"}), "forgotten": gone})
        return
    say(safe(f"backup {name} is held: {placed.reason}"))
    if gone:
        say(
            f"it is forgotten: the next prune brings it back, or `safehaul retention recover {safe(name)}` now"
        )


@app.command()
def release(
    context: typer.Context, backup: Backup, media_agent: Agent = None, *, as_json: Json = False
) -> None:
    """Take a hold away: the rules decide on the backup again. Needs the identity that may delete.

    Example: `safehaul retention release web-1/latest`.
    """
    ref = BackupRef(*find_backup(of(context), backup))
    agent = choose(of(context).settings(), media_agent)
    repository = repositories.open_repository(agent)
    try:
        held = holds.read_hold(repository, ref)
        with repositories.deleting(agent) as store:
            shown = _hold_as_json(held)
            audit.append(repository, Action.RELEASE, shown.pop("backup"), shown)
            holds.release_hold(store, ref)
    finally:
        repository.close()
    if as_json:
        show_json({"released": _hold_as_json(held)})
    else:
        say(
            safe(
                f"backup {ref.vc_guid}/{ref.backup_id} is held no more: the next prune judges it by its rules"
            )
        )


@app.command("forgotten")
def forgotten_(
    context: typer.Context, vm: Vm = None, media_agent: Agent = None, *, as_json: Json = False
) -> None:
    """List the backups that were forgotten and can be recovered, and until when.

    Example: `safehaul retention forgotten --vm web-1`.
    """
    settings = of(context).settings()
    repository = open_repository(settings, media_agent)
    try:
        rows = [
            _forgotten_as_json(repository, item)
            for item in forgotten.list_forgotten(repository, _guid_of(settings, vm))
        ]
    finally:
        repository.close()
    if as_json:
        show_json(rows)
        return
    if not rows:
        say("no forgotten backup can be recovered")
        return
    table(
        ["VM", "backup", "until (UTC)", "why it was forgotten"],
        [(row["vm_name"], row["backup"], row["recoverable_until"], row["reason"]) for row in rows],
    )


@app.command()
def recover(
    context: typer.Context,
    backup: Annotated[
        str, typer.Argument(help="VC.GUID/TIME-ID, as `safehaul retention forgotten` shows it.")
    ],
    media_agent: Agent = None,
    *,
    hold_it: Annotated[
        bool,
        typer.Option("--hold/--no-hold", help="Hold it, so that the next prune does not forget it again."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Bring a forgotten backup back, with its row in the catalogue. Needs the identity that may delete.

    Example: `safehaul retention recover GUID/20261123T003839Z-c64f5b959f5192a3`.
    """
    vc_guid, slash, backup_id = backup.rpartition("/")
    if not (vc_guid and slash and backup_id) or "/" in vc_guid:
        raise InvalidInputError(
            f"backup {backup[:200]!a} is not of the form VC.GUID/TIME-ID; see `safehaul retention forgotten`"
        )
    ref, settings = BackupRef(vc_guid, backup_id), of(context).settings()
    agent = choose(settings, media_agent)
    repository, catalog = repositories.open_repository(agent), Catalog(settings.catalog_url())
    try:
        with repositories.deleting(agent) as store:
            manifest = bring_back(repository, store, ref, "asked for by command")
        if hold_it and not holds.is_held(repository, ref):
            holds.place_hold(repository, ref, audit.actor(), RECOVERED)
            audit.append(repository, Action.HOLD, backup, {"reason": RECOVERED})
        list_again(repository, catalog, manifest, agent.name)
    finally:
        repository.close()
        catalog.close()
    if as_json:
        show_json({"backup": backup, "vm_name": manifest.vm_name, "held": hold_it})
        return
    say(safe(f"backup {backup} of VM {manifest.vm_name} is back: restore it as before"))
    if hold_it:
        say(f"it is held until `safehaul retention release {safe(backup)}`")


def _guid_of(settings: Settings, vm: str | None) -> str | None:
    """The VC.GUID of a VM by its name or VC.GUID; the catalogue has the names. Raises InvalidInputError."""
    if vm is None:
        return None
    try:
        return rows_of(settings, vm)[0].vc_guid
    except InvalidInputError:
        # All of its backups may be forgotten; a VC.GUID says by itself which VM is meant.
        if "." in vm:
            return vm
        raise


def _hold_as_json(held: holds.Held) -> dict[str, Any]:
    name, hold = f"{held.ref.vc_guid}/{held.ref.backup_id}", held.hold
    if hold is None:
        return {
            "backup": name,
            "placed": "?",
            "actor": "?",
            "reason": "the hold's object is damaged; it holds",
        }
    return {"backup": name, "placed": hold.placed, "actor": hold.actor, "reason": hold.reason}


def _decision_as_json(plan: VmPlan, decision: Decision) -> dict[str, Any]:
    return {
        "vc_guid": plan.vc_guid,
        "vm_name": plan.vm_name,
        "backup_id": decision.backup.backup_id,
        "vm_group": decision.backup.vm_group,
        "status": decision.backup.status,
        "keep": decision.keep,
        "reasons": [str(reason) for reason in decision.reasons],
    }


def _forgotten_as_json(repository: Repository, item: forgotten.ForgottenBackup) -> dict[str, Any]:
    until = datetime.fromtimestamp(item.forgotten_at, UTC) + timedelta(seconds=forgotten.RECOVERABLE_S)
    row = {
        "backup": f"{item.ref.vc_guid}/{item.ref.backup_id}",
        "vm_name": "?",
        "recoverable_until": until.strftime("%Y-%m-%d %H:%M"),
        "reason": "",
    }
    try:
        content = forgotten.read_forgotten(repository, item.ref)
    except NotFoundError:
        return {**row, "reason": "it has just been purged or recovered"}
    except SafehaulError as error:  # one that is damaged must not hide the others
        return {**row, "reason": f"it cannot be read: {error}"}
    return {**row, "vm_name": content.manifest.vm_name, "reason": content.reason}
