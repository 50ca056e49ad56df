"""How a running job is followed: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from safehaul.messages.progress import JobProgress
from safehaul.messages.vm import VmReport
from workers.cli.job_pace import Pace, span
from workers.cli.job_table import live_table
from workers.cli.output import console, safe, say, size
from workers.cli.vm_looks import Looks

PACE_EVERY_S = 30.0
"""A log of a job is told the pace this often."""


class LiveView:
    """A table that renews itself on a terminal; plain lines, one for each change, elsewhere."""

    def __init__(self, *, quiet: bool, terminal: Console | None = None) -> None:
        """`terminal`: where the table goes; default: stdout, when that is a terminal."""
        self._quiet = quiet
        if terminal is None and sys.stdout.isatty():
            terminal = console()
        self._live: Live | None = None
        if terminal is not None and not quiet:
            self._live = Live(console=terminal, transient=True, refresh_per_second=2)
        self._pace = Pace()
        self._lines = _Lines()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: JobProgress, looks: Looks) -> None:
        """Show the newest progress."""
        if self._quiet:
            return
        measure = self._pace.measure(progress, looks)
        if self._live is not None:
            room = self._live.console.size
            self._live.update(live_table(progress, looks, measure, height=room.height, width=room.width))
        else:
            self._lines.show(progress, looks, measure.text())

    def note(self, text: str) -> None:
        """Say why there is nothing new; foreign text is made harmless here."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(safe(text))
        else:
            self._lines.line(safe(text))


class _Lines:
    """What a log is told: the job's counts when they change, each VM's end, each trouble once, the pace at times."""

    def __init__(self) -> None:
        self._last = ""
        self._ended: set[str] = set()
        self._troubles: set[str] = set()
        self._pace_due = time.monotonic() + PACE_EVERY_S

    def show(self, progress: JobProgress, looks: Looks, pace: str) -> None:
        """Print what is new."""
        for report in progress.recent:
            if report.vc_guid not in self._ended:
                self._ended.add(report.vc_guid)
                say(end_text(report))
        troubled = {vm.child_id: vm for vm in progress.running}
        for child_id, vm in troubled.items():
            look = looks(child_id)
            if look is not None and look.trouble and child_id not in self._troubles:
                self._troubles.add(child_id)
                say(f"{safe(vm.name)} on {safe(vm.node)}: {safe(look.doing)}: {safe(look.trouble)}")
            elif look is not None and not look.trouble:
                self._troubles.discard(child_id)
        self._troubles &= troubled.keys()
        if pace and time.monotonic() >= self._pace_due:
            self._pace_due = time.monotonic() + PACE_EVERY_S
            say(pace)
        self.line(progress_text(progress))

    def line(self, text: str) -> None:
        """Print a line, unless it is the last one again."""
        if text != self._last:
            say(text)
            self._last = text


def end_text(report: VmReport) -> str:
    """One line about a VM that has ended."""
    reason = f": {safe(report.reason)}" if report.reason else ""
    took = ""
    if report.started_at is not None and report.ended_at is not None:
        took = f" after {span((report.ended_at - report.started_at).total_seconds())}"
    return (
        f"{safe(report.name)} on {safe(report.node) or 'no node'}: {report.status}{took}, "
        f"{size(report.bytes_read)} read, {size(report.bytes_stored)} stored{reason}"
    )


def progress_text(progress: JobProgress) -> str:
    """One line: where the job stands."""
    totals = progress.totals
    ends = [f"{totals.completed} completed", f"{totals.partial} partial", f"{totals.failed} failed"]
    if totals.cancelled:
        ends.append(f"{totals.cancelled} cancelled")
    parts = [
        f"{safe(progress.vm_group)}: {progress.status}, {safe(progress.stage)}",
        f"coordinator {safe(progress.coordinator) or 'not chosen'}",
        f"{len(progress.running)} running, {progress.waiting} waiting",
        ", ".join(ends),
        f"{size(totals.bytes_read)} read, {size(totals.bytes_stored)} stored",
    ]
    return " | ".join(parts)
