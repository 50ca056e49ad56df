"""How a job looks on a terminal: live while it runs, a report when it has ended."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.table import Table

from safehaul.messages.job import JobProgress, JobReport
from safehaul.messages.vm import VmReport
from workers.cli.output import console, safe, say, size, table


class LiveView:
    """A table that renews itself on a terminal; plain lines, one for each change, elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = Live(console=console(), transient=True) if sys.stdout.isatty() and not quiet else None
        self._rate = _Rate()
        self._last = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: JobProgress) -> None:
        """Show the newest progress."""
        if self._quiet:
            return
        rate = self._rate.update(progress)
        if self._live is not None:
            self._live.update(_running_table(progress, rate))
            return
        text = progress_text(progress)
        if text != self._last:
            say(text)
            self._last = text


class _Rate:
    """Bytes a second over finished VMs, and the time that the waiting ones will take at that rate."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._first: int | None = None

    def update(self, progress: JobProgress) -> str:
        done = progress.totals.bytes_read
        if self._first is None:
            self._first = done
        seconds = time.monotonic() - self._begun
        gained = done - self._first
        if seconds < 1 or gained <= 0:
            return ""
        text = f"{size(gained / seconds)}/s"
        finished, left = progress.totals.vms, progress.waiting + len(progress.running)
        if finished and left:
            text += f", about {left * seconds / finished:,.0f} s left"
        return text


def progress_text(progress: JobProgress) -> str:
    """One line: where the job stands."""
    totals = progress.totals
    parts = [
        f"{safe(progress.vm_group)}: {progress.status}, {progress.stage}",
        f"{len(progress.running)} running, {progress.waiting} waiting",
        f"{totals.completed} completed, {totals.partial} partial, {totals.failed} failed",
        f"{size(totals.bytes_read)} read, {size(totals.bytes_stored)} stored",
    ]
    return " | ".join(parts)


def show_report(report: JobReport) -> None:
    """The report of a job that has ended."""
    reason = f": {report.reason}" if report.reason else ""
    say(f"job {safe(report.workflow_id)} [bold]{report.status}[/bold]{safe(reason)}")
    totals = report.totals
    rows = [_row(vm) for vm in report.vms]
    columns = ["VM", "status", "node", "on disk>", "read>", "stored>", "seconds>", "backup", "remarks"]
    if rows:
        table(columns, rows)
    if totals.vms > len(report.vms):
        say(f"… and {totals.vms - len(report.vms)} more VMs, all without trouble")
    say(
        f"{totals.vms} VMs: {totals.completed} completed, {totals.partial} partial, {totals.failed} failed, "
        f"{totals.cancelled} cancelled; {size(totals.bytes_capacity)} on disk, {size(totals.bytes_read)} read, "
        f"{size(totals.bytes_stored)} stored; {(report.ended_at - report.started_at).total_seconds():,.1f} s, "
        f"coordinator {safe(report.coordinator) or 'none'}"
    )
    for item in report.left_out:
        say(f"left out: {safe(item)}")
    for note in report.noteworthy:
        say(f"note: {safe(note.name)}: {safe(note.reason)}")


def _row(vm: VmReport) -> tuple[object, ...]:
    skipped = [f"{disk.label}: {disk.reason}" for disk in vm.disks if disk.transport != "nas"]
    remarks = "; ".join([vm.reason] if vm.reason else skipped)
    if vm.warnings:
        remarks += f" ({len(vm.warnings)} warnings: {vm.warnings[0]})"
    return (
        vm.name,
        vm.status,
        vm.node,
        size(vm.bytes_capacity),
        size(vm.bytes_read),
        size(vm.bytes_stored),
        f"{sum(vm.step_seconds.values()):,.1f}",
        vm.backup_id,
        remarks,
    )


def _running_table(progress: JobProgress, rate: str) -> Table:
    made = Table(title=f"{progress_text(progress)} {rate}", title_justify="left", header_style="bold")
    for name in ("running VM", "node", "for"):
        made.add_column(name)
    for vm in sorted(progress.running, key=lambda item: (item.node, item.started_at))[:40]:
        seconds = time.time() - vm.started_at.timestamp()
        made.add_row(safe(vm.name), safe(vm.node), f"{seconds:,.0f} s")
    for report in progress.recent:
        made.add_row(safe(report.name), safe(report.node), f"{report.status} {safe(report.reason)[:80]}")
    return made
