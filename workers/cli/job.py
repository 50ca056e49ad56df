"""`safehaul job …`: start, watch, show and cancel backup jobs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ApplicationError

from safehaul.messages.job import BackupJobRequest, JobProgress, JobReport, JobStatus
from workers.bootstrap import connect
from workers.cli import job_view
from workers.cli.output import Json, of, run, safe, say, show_json
from workflows.policies import COMMSERVE_QUEUE

app = typer.Typer(no_args_is_help=True)
WorkflowId = Annotated[str, typer.Argument(help="The job's workflow id, as `job start` prints it.")]
POLL_S = 1.0
EXIT_CODES = {JobStatus.COMPLETED: 0, JobStatus.FAILED: 1, JobStatus.PARTIAL: 3, JobStatus.CANCELLED: 4}


@app.command()
def start(
    context: typer.Context,
    vm_group: Annotated[str, typer.Argument(help="Name of the VM group.")],
    workflow_id: Annotated[str | None, typer.Option(help="Default: the group's name and the time.")] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Start a job for a VM group. Example: `safehaul job start nightly --wait`."""
    settings = of(context).settings()
    settings.vm_group(vm_group)
    name = workflow_id or f"{vm_group}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"

    async def begin() -> JobReport | None:
        client = await connect(settings)
        await client.start_workflow(
            "BackupJob",
            BackupJobRequest(vm_group=vm_group).model_dump(),
            id=name,
            task_queue=COMMSERVE_QUEUE,
            static_summary=f"Backup of VM group {vm_group}",
        )
        if not as_json:
            say(f"started job {safe(name)}; watch it with: safehaul job watch {safe(name)}")
        return await _follow(client, name, quiet=as_json) if wait else None

    report = run(begin())
    if as_json:
        show_json({"workflow_id": name, "report": report.model_dump(mode="json") if report else None})
    if report is not None:
        if not as_json:
            job_view.show_report(report)
        raise typer.Exit(EXIT_CODES[report.status])


@app.command()
def watch(context: typer.Context, workflow_id: WorkflowId) -> None:
    """Follow a job until it ends; then show its report. Example: `safehaul job watch nightly-1`.

    Exit codes as the job ends: 0 Completed, 1 Failed, 3 Partial, 4 Cancelled.
    """

    async def follow() -> JobReport | None:
        return await _follow(await connect(of(context).settings()), workflow_id, quiet=False)

    report = run(follow())
    if report is None:
        say(f"job {safe(workflow_id)} was cancelled or terminated")
        raise typer.Exit(EXIT_CODES[JobStatus.CANCELLED])
    job_view.show_report(report)
    raise typer.Exit(EXIT_CODES[report.status])


@app.command()
def show(context: typer.Context, workflow_id: WorkflowId, *, as_json: Json = False) -> None:
    """Show a job's report, or where it stands. Example: `safehaul job show nightly-1 --json`."""

    async def look() -> tuple[JobProgress | None, JobReport | None]:
        client = await connect(of(context).settings())
        report = await _report(client, workflow_id)
        return (None if report else await _progress(client, workflow_id)), report

    progress, report = run(look())
    if as_json:
        show_json(
            {
                "progress": progress.model_dump(mode="json") if progress else None,
                "report": report.model_dump(mode="json") if report else None,
            }
        )
    elif report is not None:
        job_view.show_report(report)
    elif progress is not None:
        say(job_view.progress_text(progress))


@app.command()
def cancel(
    context: typer.Context,
    workflow_id: WorkflowId,
    vm: Annotated[str | None, typer.Option(help="Cancel only this VM: its name or VC.GUID.")] = None,
) -> None:
    """Cancel a job, or one of its VMs; snapshots are removed first. Example: `safehaul job cancel nightly-1`."""

    async def ask() -> str:
        client = await connect(of(context).settings())
        handle = client.get_workflow_handle(workflow_id)
        if vm is None:
            return str(await handle.execute_update("request_cancel"))
        return str(await handle.execute_update("request_cancel_vm", {"vm": vm}))

    say(safe(run(ask())))


async def _follow(client: Client, workflow_id: str, *, quiet: bool) -> JobReport | None:
    """Show progress until the job ends; its report, or None when it left none (terminated)."""
    with job_view.LiveView(quiet=quiet) as view:
        while True:
            report = await _report(client, workflow_id)
            if report is not None:
                return report
            if not await _runs(client, workflow_id):
                return None
            view.update(await _progress(client, workflow_id))
            await asyncio.sleep(POLL_S)


async def _runs(client: Client, workflow_id: str) -> bool:
    status = (await client.get_workflow_handle(workflow_id).describe()).status
    return status in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)


async def _progress(client: Client, workflow_id: str) -> JobProgress:
    return JobProgress.model_validate(await client.get_workflow_handle(workflow_id).query("progress"))


async def _report(client: Client, workflow_id: str) -> JobReport | None:
    """The report of a job that has ended: its result, or what its failure carries."""
    if await _runs(client, workflow_id):
        return None
    handle: Any = client.get_workflow_handle(workflow_id)
    try:
        return JobReport.model_validate(await handle.result())
    except WorkflowFailureError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.details:
            return JobReport.model_validate(cause.details[0])
        if isinstance(cause, ApplicationError):
            raise
        return None
