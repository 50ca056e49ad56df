"""How a job that has ended looks: its VMs, their disks and steps, the totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from safehaul.errors import InvalidInputError
from safehaul.messages.job import JobReport
from safehaul.messages.vm import VmReport
from workers.cli.job_calls import Standing
from workers.cli.job_list import ListedJob
from workers.cli.job_pace import span
from workers.cli.job_view import progress_text
from workers.cli.output import safe, safe_lines, say, size, table


def only(found: Standing, report: JobReport, vm: str) -> Standing:
    """The same, with one VM's report only. Raises InvalidInputError."""
    chosen = [item for item in report.vms if vm in (item.name, item.vc_guid)]
    if not chosen:
        raise InvalidInputError(
            f"the report of job {report.workflow_id} lists no VM {vm!r} (it lists {len(report.vms)} of "
            f"{report.totals.vms}, those with trouble first; `safehaul backups list --vm` finds the others' backups)"
        )
    return replace(found, report=report.model_copy(update={"vms": chosen}))


def show_unreported(found: Standing) -> None:
    """A job that runs, or that ended without a report."""
    if found.progress is not None:
        say(progress_text(found.progress))
    if found.runs:
        return
    say(f"job {safe(found.workflow_id)} ended as {found.status}: such an end carries no report")
    if found.status not in {"CANCELED", "CONTINUED_AS_NEW"}:
        say("Temporal runs no clean-up then: look at its VMs for snapshots that it has left")


def show_list(jobs: Sequence[ListedJob]) -> None:
    """Jobs, one a line."""
    columns = [
        "job",
        "group",
        "status",
        "started (UTC)",
        "took>",
        "VMs>",
        "partial>",
        "failed>",
        "read>",
        "stored>",
    ]
    rows = []
    for job in jobs:
        took = ((job.ended or datetime.now(UTC)) - job.started).total_seconds()
        vms = f"{job.vms} + {job.running} running" if job.running else f"{job.vms}"
        known = job.read_bytes or job.stored_bytes
        rows.append(
            (
                *(job.workflow_id, job.vm_group, job.status, f"{job.started:%Y-%m-%d %H:%M:%S}", span(took)),
                *(vms, job.partial or "", job.failed or ""),
                *(size(job.read_bytes) if known else "", size(job.stored_bytes) if known else "", job.reason),
            )
        )
    if rows:
        table([*columns, "reason"], rows)
    else:
        say("no job was found: start one with `safehaul job start GROUP`, or drop a filter")


def show_report(report: JobReport) -> None:
    """The report of a job that has ended."""
    reason = f": {report.reason}" if report.reason else ""
    say(f"job {safe(report.workflow_id)} [bold]{report.status}[/bold]{safe(reason)}")
    columns = ["VM", "status", "node", "transport", "on disk>", "read>", "stored>", "seconds>", "remarks"]
    if report.vms:
        table(columns, [_row(vm) for vm in report.vms])
    if len(report.vms) == 1:
        _show_details(report.vms[0])
    elif report.vms:
        say(f"a VM's disks, steps and backup: safehaul job show {safe(report.workflow_id)} --vm NAME")
    _show_totals(report)


def _show_totals(report: JobReport) -> None:
    totals = report.totals
    if totals.vms > len(report.vms):
        say(f"{len(report.vms)} of {totals.vms} VMs are shown; those with trouble come first")
    say(
        f"{totals.vms} VMs: {totals.completed} completed, {totals.partial} partial, {totals.failed} failed, "
        f"{totals.cancelled} cancelled; {size(totals.bytes_capacity)} on disk, {size(totals.bytes_read)} read, "
        f"{size(totals.bytes_stored)} stored; {(report.ended_at - report.started_at).total_seconds():,.1f} s, "
        f"coordinator {safe(report.coordinator) or 'none'}"
    )
    for item in report.left_out:
        say(f"left out: {safe_lines(item)}")
    for note in report.noteworthy:
        say(f"note: {safe(note.name)}: {safe(note.reason)}")


def _row(vm: VmReport) -> tuple[object, ...]:
    transports = sorted({disk.transport for disk in vm.disks})
    skipped = [f"{disk.label}: {disk.reason}" for disk in vm.disks if disk.transport != "nas"]
    # Of a reason with lines to copy the first one: they stand once below the table, with the nodes that are left out.
    first, *more = vm.reason.splitlines() or [""]
    remarks = [first + (" …" if more else "")] if first else skipped
    if vm.warnings:
        remarks = [*remarks, f"{len(vm.warnings)} warnings"]
    if vm.snapshot_pending:
        remarks = [*remarks, "its snapshot is still being removed"]
    return (
        vm.name,
        vm.status,
        vm.node,
        ", ".join(transports),
        size(vm.bytes_capacity),
        size(vm.bytes_read),
        size(vm.bytes_stored),
        f"{sum(vm.step_seconds.values()):,.1f}",
        "; ".join(remarks),
    )


def _show_details(vm: VmReport) -> None:
    disks = [
        (
            f"{disk.key} ({disk.label})",
            disk.transport,
            disk.format,
            size(disk.bytes_capacity),
            size(disk.bytes_read),
            size(disk.bytes_stored),
            f"{disk.seconds:,.1f}",
            disk.reason,
        )
        for disk in vm.disks
    ]
    if disks:
        columns = ["disk", "transport", "format", "on disk>", "read>", "stored>", "seconds>", "remark"]
        table(columns, disks)
    steps = ", ".join(f"{name}: {seconds:,.1f}" for name, seconds in vm.step_seconds.items())
    if steps:
        say(f"seconds of each step: {safe(steps)}")
    for file in vm.skipped_files:
        say(f"not in the backup: {safe(file.path)}: {safe(file.reason)}")
    for warning in vm.warnings:
        say(f"warning: {safe(warning)}")
    if vm.backup_id:
        say(f"backup: {safe(f'{vm.vc_guid}/{vm.backup_id}')}")
