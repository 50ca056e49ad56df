"""`safehaul copy …`: a second copy of the backups, in another MediaAgent's repository."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer
from pydantic import ValidationError
from temporalio.client import WorkflowFailureError

from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from safehaul.messages.copy import CopyBackupsRequest, CopyProgress, CopyReport
from workers.bootstrap import connect
from workers.cli import completion, exits, upkeep_calls
from workers.cli.output import Json, of, run, safe, say, show_json, size, table
from workers.cli.times import SINCE_HELP, parse_since
from workflows.inputs import describe

app = typer.Typer(no_args_is_help=True)
KIND = "CopyBackups"
LISTED = 20
_EXITS = {"RUNNING": exits.OK, "COMPLETED": exits.OK, "CANCELED": exits.CANCELLED}
Source = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="MediaAgent that has the backups; default: the only one with copy_to.",
        autocompletion=completion.media_agents,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--to", help="MediaAgent that gets them; default: copy_to.", autocompletion=completion.media_agents
    ),
]


@app.command()
def start(
    context: typer.Context,
    group: Annotated[
        str | None,
        typer.Argument(help="Only backups of this VM group.", autocompletion=completion.vm_groups),
    ] = None,
    source: Source = None,
    target: Target = None,
    vm: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this VM: its name or VC.GUID. May be given again.", autocompletion=completion.vms
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    workflow_id: Annotated[str | None, typer.Option(help="Default: made of the names.")] = None,
    *,
    latest_only: Annotated[bool, typer.Option("--latest-only", help="Only each VM's newest backup.")] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="Also backups older than the newest one that the target has of their VM."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Copy the backups that the second repository lacks. What is there is not copied again, nor read.

    With `--wait` exit code 1 when a backup could not be copied; the report names it.

    Example: `safehaul copy start nightly --wait`.
    """
    settings = of(context).settings()
    request = _request(
        settings,
        group,
        source,
        target,
        {"vms": vm or [], "since": parse_since(since), "latest_only": latest_only, "all": every},
    )
    parts = ["copy", request.source, request.target, *([group] if group else [])]
    name = workflow_id or "-".join(parts)
    ended = run(_start(settings, request, name, wait=wait, quiet=as_json))
    if as_json:
        report = ended.report.model_dump(mode="json") if ended.report is not None else None
        show_json({"workflow_id": name, "report": report})
    elif ended.report is not None:
        _show(ended.report)
    if ended.error is not None:
        raise ended.error


class _Ended(NamedTuple):
    """How a copy ended; nothing of both: it was not waited for."""

    report: CopyReport | None = None
    error: WorkflowFailureError | None = None


def _request(
    settings: Settings, group: str | None, source: str | None, target: str | None, more: dict[str, object]
) -> CopyBackupsRequest:
    """What is to be copied, its names looked up. Raises InvalidInputError."""
    if group is not None:
        settings.vm_group(group)
    chosen = settings.media_agent(source or _only_source(settings))
    to = target or chosen.copy_to
    if not to:
        raise InvalidInputError(
            f"MediaAgent {chosen.name!r} has no copy_to in the configuration: name a target with --to"
        )
    settings.media_agent(to)
    names = {"source": chosen.name, "target": to, "vm_group": group or ""}
    try:
        return CopyBackupsRequest.model_validate(names | more)
    except ValidationError as error:
        raise InvalidInputError(describe(error)) from None


async def _start(
    settings: Settings, request: CopyBackupsRequest, name: str, *, wait: bool, quiet: bool
) -> _Ended:
    client = await connect(settings)
    summary = f"Copy of backups from {request.source} to {request.target}"
    await upkeep_calls.start(client, KIND, request, name, summary)
    if not quiet:
        say(f"started {safe(name)}")
    if not wait:
        return _Ended()
    last = ""

    def tell(progress: CopyProgress) -> None:
        nonlocal last
        line = _line(progress)
        if not quiet and line != last:
            say(line)
        last = line

    error = await upkeep_calls.follow(client, name, CopyProgress, tell)
    if error is not None:
        return _Ended(upkeep_calls.report_in(error, CopyReport), error)
    return _Ended(await upkeep_calls.result_of(client, name, CopyReport))


@app.command()
def status(
    context: typer.Context,
    workflow_id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="As `copy start` told it; default: list the newest ones."),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Show how a copy stands, or list the newest ones. Exit code 1 for one that failed, 4 for a cancelled one.

    Example: `safehaul copy status`, `safehaul copy status copy-vault-offsite`.
    """
    settings = of(context).settings()
    if workflow_id is None:
        _list(settings, as_json=as_json)
        return

    async def look() -> tuple[upkeep_calls.Upkeep, CopyProgress | None]:
        return await upkeep_calls.standing(await connect(settings), KIND, workflow_id, CopyProgress)

    what, progress = run(look())
    if as_json:
        told = progress.model_dump(mode="json") if progress else None
        show_json({"workflow_id": what.workflow_id, "status": what.status, "progress": told})
    else:
        say(f"{safe(what.workflow_id)}: {what.status.lower()}")
        if progress is None:
            say("no CommServe answers for it; it goes on when `safehaul worker commserve` runs")
        else:
            say(_line(progress))
            _show(progress.report)
    code = _EXITS.get(what.status, exits.FAILED)
    if code:
        raise typer.Exit(code)


def _list(settings: Settings, *, as_json: bool) -> None:
    async def look() -> list[upkeep_calls.Upkeep]:
        return await upkeep_calls.latest(await connect(settings), KIND, LISTED)

    found = run(look())
    if as_json:
        show_json([vars(item) for item in found])
        return
    if not found:
        say("no copy is known: start one with `safehaul copy start`")
        return
    rows = [(item.status.lower(), item.started or "", item.closed or "", item.workflow_id) for item in found]
    table(["status", "started", "ended", "copy"], rows)


def _only_source(settings: Settings) -> str:
    names = [agent.name for agent in settings.media_agents if agent.copy_to]
    if len(names) != 1:
        told = ", ".join(names) or "none"
        raise InvalidInputError(
            f"there is not exactly one MediaAgent with copy_to ({told}): name the source with --from"
        )
    return names[0]


def _line(progress: CopyProgress) -> str:
    report, now = progress.report, progress.current
    what = f": {safe(now.vm_name or now.vc_guid)} {safe(now.backup_id)}" if now is not None else ""
    return f"{safe(progress.stage)}{what} ({report.copied} copied, {report.failed} failed)"


def _show(report: CopyReport) -> None:
    say(
        f"{report.copied} backups copied from {safe(report.source)} to {safe(report.target)}: "
        f"{size(report.bytes_capacity)} of disks, {size(report.bytes_read)} read, {size(report.bytes_stored)} stored"
    )
    if report.failures:
        rows = [
            (item.vm_name or item.vc_guid, f"{item.vc_guid}/{item.backup_id}", item.reason)
            for item in report.failures
        ]
        table(["VM", "backup", "why it is not copied"], rows)
    if report.failed > len(report.failures):
        say(f"… and {report.failed - len(report.failures)} more")
    for warning in report.warnings:
        say(f"warning: {safe(warning)}")
