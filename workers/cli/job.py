"""`safehaul job …`: start, list, watch, show, pause, resume and cancel backup jobs."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from temporalio.client import Client
from temporalio.service import RPCError

from safehaul.catalog.catalog import Catalog
from safehaul.config.settings import Settings
from safehaul.errors import ConnectionLostError, InvalidInputError
from safehaul.messages.requests import BackupJobRequest
from workers.bootstrap import connect
from workers.cli import completion, exits, job_calls, job_list, job_report, job_view
from workers.cli.given_group import whole_group
from workers.cli.job_calls import Standing
from workers.cli.job_list import ListedJob, ListedStatus, Wanted, catalogued, merged
from workers.cli.output import Json, of, run, safe, say, show_json
from workers.cli.times import SINCE_HELP, parse_since
from workers.cli.vm_looks import VmLooks

app = typer.Typer(no_args_is_help=True)
WorkflowId = Annotated[
    str,
    typer.Argument(help="The job's workflow id, as `job start` prints it.", autocompletion=completion.jobs),
]
POLL_S = 1.0
SILENCE_S = 300.0
"""So long a watch bears that nobody answers: a CommServe or Temporal may be started anew while a job runs."""


@app.command()
def start(
    context: typer.Context,
    vm_group: Annotated[
        str | None, typer.Argument(help="Name of the VM group.", autocompletion=completion.vm_groups)
    ] = None,
    group_json: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE",
            help="A whole group in place of a name: an object with the keys of [[vm_groups]], or a file that holds it.",
        ),
    ] = None,
    workflow_id: Annotated[str | None, typer.Option(help="Default: the group's name and the time.")] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Start a job for a VM group. Example: `safehaul job start nightly --wait`.

    A group that is given whole is checked here first, with the same words as in the workflow. Example:
    `safehaul job start --group-json '{"vcenter": "main", "media_agent": "vault", "rules": [{"name": "web-*"}]}'`.

    With `--wait` the exit code says how the job ended: 0 Completed, 1 Failed, 3 Partial, 4 Cancelled.
    """
    settings = of(context).settings()
    request = _request(settings, vm_group, group_json)
    name = workflow_id or f"{request.group_name}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"

    async def begin() -> Standing | None:
        client = await connect(settings)
        await job_calls.start_job(client, name, request)
        if not as_json:
            say(f"started job {safe(name)}; watch it with: safehaul job watch {safe(name)}")
        return await _follow(client, name, quiet=as_json) if wait else None

    ended = run(begin())
    if ended is not None:
        _show_end(ended, as_json=as_json)
        raise typer.Exit(ended.exit_code)
    if as_json:
        show_json({"workflow_id": name, "status": "RUNNING", "progress": None, "report": None})


def _request(settings: Settings, name: str | None, group_json: str | None) -> BackupJobRequest:
    """The job's input, checked against this machine's configuration. Raises InvalidInputError."""
    if (name is None) == (group_json is None):
        raise InvalidInputError(
            "say which VMs: either the name of a VM group, or --group-json and a whole group"
        )
    if group_json is not None:
        return whole_group(settings, group_json)[0]
    assert name is not None
    return BackupJobRequest(vm_group=settings.vm_group(name).name)


@app.command("list")
def list_(
    context: typer.Context,
    group: Annotated[
        str | None, typer.Option(help="Only this VM group.", autocompletion=completion.vm_groups)
    ] = None,
    status: Annotated[ListedStatus | None, typer.Option(help="Only jobs of this status.")] = None,
    since: Annotated[str | None, typer.Option(help=SINCE_HELP)] = None,
    node: Annotated[
        str | None,
        typer.Option(
            help="Only jobs in which this access node had a VM.", autocompletion=completion.access_nodes
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, newest first.")] = 50,
    *,
    running: Annotated[bool, typer.Option("--running", help="Only jobs that run now.")] = False,
    past: Annotated[
        bool, typer.Option("--past", help="Only the catalogue's ended jobs; asks no Temporal server.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List jobs, running ones first. Example: `safehaul job list --group nightly --since 7d`.

    Running and recent jobs are Temporal's, the others stand in the catalogue.
    """
    if running:
        status = ListedStatus.RUNNING
    wanted = Wanted(vm_group=group, status=status, since=parse_since(since), node=node, limit=limit)
    settings = of(context).settings()
    catalog = Catalog(settings.catalog_url())

    async def ask() -> list[ListedJob]:
        try:
            return await job_list.visible(await connect(settings), catalog, wanted)
        except (ConnectionLostError, RPCError) as error:
            if not exits.no_answer(error):
                raise
            raise ConnectionLostError(
                f"{exits.message_of(error)}; ended jobs stand in the catalogue: safehaul job list --past"
            ) from None

    try:
        found = merged([catalogued(catalog, wanted), [] if past else run(ask())], limit)
    finally:
        catalog.close()
    if as_json:
        show_json([job.model_dump(mode="json") for job in found])
    else:
        job_report.show_list(found)


@app.command()
def watch(context: typer.Context, workflow_id: WorkflowId, *, as_json: Json = False) -> None:
    """Follow a job until it ends; then show its report. Example: `safehaul job watch nightly-1`.

    Exit codes as the job ends: 0 Completed, 1 Failed or terminated, 3 Partial, 4 Cancelled. Ctrl-C ends the watching,
    not the job. With `--json` only the end is printed.
    """

    async def follow() -> Standing:
        return await _follow(await connect(of(context).settings()), workflow_id, quiet=as_json)

    ended = run(follow())
    _show_end(ended, as_json=as_json)
    raise typer.Exit(ended.exit_code)


@app.command()
def show(
    context: typer.Context,
    workflow_id: WorkflowId,
    vm: Annotated[str | None, typer.Option(help="Only this VM, in detail: its name or VC.GUID.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Show a job's report, or where it stands. Example: `safehaul job show nightly-1 --json`.

    The exit code is 0 whenever the job can be shown, however it ended.
    """

    async def look() -> Standing:
        return await job_calls.standing(await connect(of(context).settings()), workflow_id)

    found = run(look())
    if found.report is not None and vm is not None:
        found = job_report.only(found, found.report, vm)
    _show_end(found, as_json=as_json)


@app.command()
def cancel(
    context: typer.Context,
    workflow_id: WorkflowId,
    vm: Annotated[str | None, typer.Option(help="Cancel only this VM: its name or VC.GUID.")] = None,
    *,
    forget: Annotated[
        bool, typer.Option("--forget", help="Give up what is stored of unfinished backups.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cancel a job, or one of its VMs; snapshots are removed first. Example: `safehaul job cancel nightly-1`.

    What an unfinished backup has stored serves the next one, unless you say `--forget`.
    """

    async def ask() -> str:
        client = await connect(of(context).settings())
        return await job_calls.cancel_job(client, workflow_id, vm, keep=not forget)

    answer = run(ask())
    if as_json:
        show_json({"workflow_id": workflow_id, "vm": vm, "answer": answer})
    else:
        say(safe(answer))


@app.command()
def pause(context: typer.Context, workflow_id: WorkflowId, *, as_json: Json = False) -> None:
    """Pause a job: no VM is given out, running ones stop reading. Example: `safehaul job pause nightly-1`.

    A VM holds its snapshot for `pause_hold_s` of its group at most, then begins anew when the job is resumed.
    """

    async def ask() -> str:
        return await job_calls.pause_job(await connect(of(context).settings()), workflow_id)

    _show_answer(workflow_id, run(ask()), as_json=as_json)


@app.command()
def resume(context: typer.Context, workflow_id: WorkflowId, *, as_json: Json = False) -> None:
    """Let a paused job go on, with all its VMs. Example: `safehaul job resume nightly-1`."""

    async def ask() -> str:
        return await job_calls.resume_job(await connect(of(context).settings()), workflow_id)

    _show_answer(workflow_id, run(ask()), as_json=as_json)


def _show_answer(workflow_id: str, answer: str, *, as_json: bool) -> None:
    if as_json:
        show_json({"workflow_id": workflow_id, "answer": answer})
    else:
        say(safe(answer))


async def _follow(client: Client, workflow_id: str, *, quiet: bool) -> Standing:
    """Show progress until the job ends. Raises what `job_calls.standing` does, silence only after SILENCE_S."""
    heard = time.monotonic()
    looks = VmLooks(client)
    with job_view.LiveView(quiet=quiet) as view:
        while True:
            try:
                found = await job_calls.standing(client, workflow_id)
            except (ConnectionLostError, RPCError) as error:
                if not exits.no_answer(error) or time.monotonic() - heard > SILENCE_S:
                    raise
                view.note(exits.message_of(error))
            else:
                heard = time.monotonic()
                if not found.runs:
                    return found
                if found.progress is not None and not quiet:
                    await looks.renew(found.progress.running)
                    view.update(found.progress, looks.of)
            await asyncio.sleep(POLL_S)


def _show_end(found: Standing, *, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "workflow_id": found.workflow_id,
                "status": found.status,
                "progress": found.progress.model_dump(mode="json") if found.progress else None,
                "report": found.report.model_dump(mode="json") if found.report else None,
            }
        )
    elif found.report is not None:
        job_report.show_report(found.report)
    else:
        job_report.show_unreported(found)
