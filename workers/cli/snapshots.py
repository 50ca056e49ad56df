"""`safehaul snapshots …`: start a sweep, and show what it found, removed and left alone."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated
from uuid import UUID

import typer
from temporalio.client import Client, WorkflowFailureError

from safehaul.messages.sweep import SweepReport, SweepRequest, Verdict
from workers.bootstrap import connect
from workers.cli import upkeep_calls
from workers.cli.certificate_view import certificate_lines
from workers.cli.output import Json, of, run, safe, say, show_json, table
from workflows.policies import SWEEP_ID

app = typer.Typer(no_args_is_help=True)
SWEEP_TYPE = "SweepSnapshots"


@app.callback()
def snapshots() -> None:
    """Look after the snapshots that backups make."""


@app.command()
def sweep(
    context: typer.Context,
    vcenter: Annotated[str | None, typer.Option(help="Only this vCenter, by its name; default: all.")] = None,
    adopt: Annotated[
        UUID | None,
        typer.Option(help="UUID of a Temporal namespace that is lost for good: its snapshots are orphans."),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be removed, and do nothing.")
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Search the directories of all VMs for phantom deltas.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for its end, and show its report.")] = True,
    as_json: Json = False,
) -> None:
    """Remove snapshots of ours whose owner is gone; cancel VMs whose job is gone; list what else is left over.

    Runs as a workflow that goes on when this command is interrupted. Snapshots that are not provably ours are only
    listed. Exit code 1 when something could not be looked at or removed.
    Example: `safehaul snapshots sweep --dry-run`.
    """
    settings = of(context).settings()
    name = settings.vcenter(vcenter).name if vcenter else ""
    request = SweepRequest(vcenter=name, dry_run=dry_run, adopt=adopt, thorough=thorough)

    async def begin() -> SweepReport | None:
        client = await connect(settings)
        what = f"Sweep of snapshots{' (only look)' if dry_run else ''}"
        await upkeep_calls.start(client, SWEEP_TYPE, request, SWEEP_ID, what)
        if not as_json:
            say(f"started {safe(SWEEP_ID)}")
        return await _wait(client) if wait else None

    try:
        report = run(begin())
    except WorkflowFailureError as error:
        _show(upkeep_calls.report_in(error, SweepReport), as_json=as_json)
        raise
    _show(report, as_json=as_json)


async def _wait(client: Client) -> SweepReport:
    try:
        return await upkeep_calls.result_of(client, SWEEP_ID, SweepReport)
    except asyncio.CancelledError:
        sys.stderr.write(
            f"safehaul: {SWEEP_ID} goes on: see the web UI; `temporal workflow cancel --workflow-id {SWEEP_ID}` "
            "ends it\n"
        )
        raise


def _show(report: SweepReport | None, *, as_json: bool) -> None:
    if as_json:
        show_json({"workflow_id": SWEEP_ID, "report": report.model_dump(mode="json") if report else None})
    elif report is not None:
        show_report(report)


def show_report(report: SweepReport) -> None:
    """Show a sweep's report to a person."""
    if report.snapshots:
        table(
            ["VM", "vCenter", "snapshot", "is", "owner", "why"],
            [
                (item.vm_name, item.vcenter, item.moref, item.verdict.value, item.owner, item.reason)
                for item in report.snapshots
            ],
            title="snapshots of ours",
        )
    for item in report.snapshots:
        if item.certificate is not None:
            for line in certificate_lines(item.certificate):
                say(line)
    if report.cancelled:
        done = "would be cancelled" if report.dry_run else "cancelled"
        rows = [(vm.vm_name, vm.workflow_id, vm.job) for vm in report.cancelled]
        table(["VM", "workflow", "why"], rows, title=f"VMs without their job, {done}")
    if report.findings:
        table(
            ["finding", "vCenter", "VM", "what"],
            [(item.kind.value, item.vcenter, item.vm_name, item.what) for item in report.findings],
            title="findings, which are never touched",
        )
    ours = _sums({verdict.value: report.counts.get(verdict.value, 0) for verdict in Verdict})
    say(f"{report.vms} VMs with {report.snapshots_seen} snapshots; ours: {ours}")
    say(
        f"findings: {_sums(report.finding_counts)}; directories of {report.directories_searched} VMs were searched"
    )
    if report.dry_run:
        say("nothing was changed")
    for problem in report.problems:
        say(f"problem: {safe(problem)}")


def _sums(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"
