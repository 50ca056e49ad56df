"""`safehaul repo prune` and `safehaul repo audit`: start a prune and show its report; read the audit log."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import Annotated, Any

import typer
from temporalio.client import Client, WorkflowFailureError

from activities.upkeep_prune import rules_of
from safehaul.media.audit import Logged, entries
from safehaul.messages.prune import PruneReport, PruneRequest
from workers.bootstrap import connect
from workers.cli import upkeep_calls
from workers.cli.output import Json, of, run, safe, say, show_json, size, table, warn
from workers.cli.repo import Agent, choose, open_repository
from workers.cli.times import SINCE_HELP, parse_since
from workflows.policies import prune_id

PRUNE_TYPE = "PruneRepository"
MAX_DETAIL_CHARS = 200


def prune(
    context: typer.Context,
    media_agent: Agent = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be done, and do nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for its end, and show its report.")] = True,
    as_json: Json = False,
) -> None:
    """Forget backups by the rules, purge what was forgotten 7 days ago, free what nobody needs.

    Runs on the MediaAgent, as a workflow that goes on when this command is interrupted.
    Example: `safehaul repo prune --dry-run`.
    """
    settings = of(context).settings()
    agent = choose(settings, media_agent)
    request, workflow_id = PruneRequest(media_agent=agent.name, dry_run=dry_run), prune_id(agent.name)

    async def begin() -> PruneReport | None:
        client = await connect(settings)
        what = f"Prune of {agent.name}{' (only look)' if dry_run else ''}"
        await upkeep_calls.start(client, PRUNE_TYPE, request, workflow_id, what)
        if not as_json:
            say(f"started {safe(workflow_id)}")
        return await _wait(client, workflow_id) if wait else None

    try:
        report = run(begin())
    except WorkflowFailureError as error:
        report = upkeep_calls.report_in(error, PruneReport)
        if report is not None and as_json:
            show_json({"workflow_id": workflow_id, "report": report.model_dump(mode="json")})
        elif report is not None:
            show_report(report)
        raise
    if as_json:
        show_json({"workflow_id": workflow_id, "report": report.model_dump(mode="json") if report else None})
    elif report is not None:
        show_report(report)
    if report is not None and report.forgetting.rules != rules_of(settings, agent.name):
        warn(
            f"MediaAgent {agent.name} was started with other rules of retention than this configuration has: start its "
            "worker again"
        )


def audit_(
    context: typer.Context,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Show the audit log: restores, holds, what was forgotten and deleted, keys.

    Entries that cannot be read are shown too: somebody else may have put them there.
    Example: `safehaul repo audit --since 7d`.
    """
    begun: datetime | None = parse_since(since)
    repository = open_repository(of(context).settings(), media_agent)
    try:
        found = list(entries(repository, begun))
    finally:
        repository.close()
    if as_json:
        show_json([_logged_as_json(item) for item in found])
        return
    if not found:
        say("the audit log has no entry" + (" since then" if since else ""))
        return
    table(["time (UTC)", "who", "what", "to what", "details"], [_row(item) for item in found])


async def _wait(client: Client, workflow_id: str) -> PruneReport:
    try:
        return await upkeep_calls.result_of(client, workflow_id, PruneReport)
    except asyncio.CancelledError:
        sys.stderr.write(
            f"safehaul: {workflow_id} goes on: see the web UI; `temporal workflow cancel --workflow-id {workflow_id}` "
            "ends it\n"
        )
        raise


def show_report(report: PruneReport) -> None:
    """Show a prune's report to a person."""
    forgetting, purging, collection = report.forgetting, report.purging, report.collection
    would = "would be " if report.dry_run else ""
    for group, rules in forgetting.rules.items():
        say(safe(f"{group} keeps: {rules}"))
    rows = [
        (vm.vm_name or "?", f"{vm.vc_guid}/{item.backup_id}", item.reason)
        for vm in forgetting.told
        for item in vm.forgotten
    ]
    if rows:
        table(
            ["VM", "backup", "why"], rows, title=f"what {'would be' if report.dry_run else 'was'} forgotten"
        )
    kept = [
        (vm.vm_name or "?", vm.kept_count, ", ".join(f"{kind}: {n}" for kind, n in vm.kept_for.items()))
        for vm in forgetting.told
    ]
    if kept:
        table(["VM", "kept>", "for"], kept, title="what was kept")
    say(
        f"{forgetting.backups} backups of {forgetting.vms} VMs: {forgetting.forgotten} {would}forgotten, "
        f"{forgetting.held} held"
    )
    say(
        f"{purging.purged} purged, {purging.recovered} brought back because they are held, "
        f"{purging.waiting} can be recovered"
    )
    numbers = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in collection.numbers.items()
        if value and name.startswith(("packs_", "pages_", "sessions_fenced", "lists_", "objects_"))
    ]
    say(f"{size(collection.freed_bytes)} {would}freed{_in_brackets(numbers)}")
    if lost := collection.numbers.get("chunks_lost"):
        say(f"{lost} chunks that backups need are in no pack: `safehaul repo verify` names the backups")
    for problem in [*forgetting.problems, *purging.problems]:
        say(safe(problem))


def _logged_as_json(item: Logged) -> dict[str, Any]:
    entry = item.entry.model_dump(exclude={"version"}) if item.entry else None
    return {"name": item.name, "entry": entry, "problem": item.problem}


def _row(item: Logged) -> tuple[str, str, str, str, str]:
    if item.entry is None:
        return "?", "?", "?", item.name, item.problem
    details = [f"{key}: {_short(value)}" for key, value in item.entry.details.items() if value]
    told = "; ".join(part for part in (item.problem, *details) if part)
    return item.entry.time, item.entry.actor, item.entry.action, item.entry.object_name, told


def _short(value: Any) -> str:
    """A detail in one line; `--json` has it whole."""
    text = ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]} …"


def _in_brackets(items: list[str]) -> str:
    return f" ({', '.join(items)})" if items else ""
