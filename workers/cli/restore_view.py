"""How a restore looks: a bar with rate and time left on a terminal, plain lines elsewhere, and its report."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from safehaul.messages.restore import RestoreKind, RestoreProgress, RestoreReport
from workers.cli.output import console, safe, say, size, table


def columns() -> list[ProgressColumn]:
    """What a bar of bytes shows."""
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]


class RestoreView:
    """A bar that renews itself on a terminal; a line for each change elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        live = sys.stdout.isatty() and not quiet
        self._bar = Progress(*columns(), console=console(), transient=True) if live else None
        self._task = self._bar.add_task("starting", total=None) if self._bar is not None else None
        self._last = ""

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: RestoreProgress | None, disk_bytes: int) -> None:
        """Show the newest progress; None: nobody answers for it now."""
        if self._quiet:
            return
        text = stage_text(progress)
        if self._bar is not None and self._task is not None:
            if progress is None:
                self._bar.update(self._task, description=text)
            else:
                done = progress.bytes_done + disk_bytes
                self._bar.update(
                    self._task, description=text, total=progress.bytes_total or None, completed=done
                )
        elif text != self._last:
            say(text)
        self._last = text


def stage_text(progress: RestoreProgress | None) -> str:
    """One line: where the restore stands."""
    if progress is None:
        return "no CommServe answers for it; it goes on when `safehaul worker commserve` runs"
    disk = f": {safe(progress.disk)}" if progress.disk else ""
    count = f" ({progress.disks_done} of {progress.disks} disks done)" if progress.disks else ""
    node = f" on {safe(progress.node)}" if progress.node else ""
    return f"{safe(progress.name)}{node}: {safe(progress.stage)}{disk}{count}"


def show_report(report: RestoreReport) -> None:
    """How a restore ended."""
    what = {
        RestoreKind.NEW_VM: "a new VM",
        RestoreKind.IN_PLACE: "in place",
        RestoreKind.DISK: "one more disk",
    }[report.kind]
    reason = f": {safe(report.reason)}" if report.reason else ""
    where = f" ({safe(report.moref)})" if report.moref else ""
    say(f"{safe(report.name)}{where}, {what}: [bold]{report.status.value}[/bold]{reason}")
    if report.disks:
        table(
            ["disk", "on disk>", "written>", "compared>", "seconds>", "file"],
            [
                (
                    f"{disk.key} ({disk.label})",
                    size(disk.capacity_bytes),
                    size(disk.bytes_written),
                    size(disk.bytes_compared),
                    f"{disk.seconds:,.1f}",
                    disk.path,
                )
                for disk in report.disks
            ],
        )
    if report.cards and report.kind is RestoreKind.NEW_VM:
        rows = [
            (card.label, card.network, card.mac or "by vCenter, later", "yes" if card.connected else "no")
            for card in report.cards
        ]
        table(["network card", "network", "MAC address", "connected at power on"], rows)
    for old in report.old_disks:
        say(f"old disk {safe(old.path)}: {'deleted' if old.removed else safe(old.reason)}")
    for item in report.warnings:
        say(f"warning: {safe(item)}")
    seconds = (report.ended_at - report.started_at).total_seconds()
    compared = sum(disk.bytes_compared for disk in report.disks)
    power = ", powered on" if report.powered_on else ""
    say(
        f"{len(report.disks)} disks, {size(compared)} written, read back and compared in {seconds:,.1f} s"
        f"{f' on {safe(report.node)}' if report.node else ''}{power}"
    )
