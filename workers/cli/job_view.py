"""How a running job looks: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.table import Table

from safehaul.messages.progress import JobProgress
from workers.cli.output import console, safe, say, size

MAX_ROWS = 40


class LiveView:
    """A table that renews itself on a terminal; plain lines, one for each change, elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = Live(console=console(), transient=True) if sys.stdout.isatty() and not quiet else None
        self._rate = Rate()
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
            self._live.update(running_table(progress, rate))
        else:
            self._line(progress_text(progress))

    def note(self, text: str) -> None:
        """Say why there is nothing new; foreign text is made harmless here."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(safe(text))
        else:
            self._line(safe(text))

    def _line(self, text: str) -> None:
        if text != self._last:
            say(text)
            self._last = text


class Rate:
    """Bytes a second, and the time that is left at the pace so far. Both count finished VMs only."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._first: tuple[int, int] | None = None

    def update(self, progress: JobProgress) -> str:
        """Rate and time left since the first update; empty while no VM has finished since."""
        totals = progress.totals
        if self._first is None:
            self._first = totals.bytes_read, totals.vms
        seconds = time.monotonic() - self._begun
        gained, finished = totals.bytes_read - self._first[0], totals.vms - self._first[1]
        if seconds < 1 or finished <= 0:
            return ""
        text = f"{size(gained / seconds)}/s"
        left = progress.waiting + len(progress.running)
        if left:
            text += f", about {_duration(left * seconds / finished)} left"
        return text


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


def running_table(progress: JobProgress, rate: str) -> Table:
    """What runs where, and what ended last."""
    title = [f"{progress_text(progress)}{f' | {rate}' if rate else ''}"]
    nodes = Counter(vm.node for vm in progress.running)
    if nodes:
        title.append(", ".join(f"{safe(node)}: {count} running" for node, count in sorted(nodes.items())))
    title += [f"left out: {safe(item)}" for item in progress.left_out]
    title += [f"rejected: {safe(item)}" for item in progress.rejected_signals]
    made = Table(title="\n".join(title), title_justify="left", header_style="bold")
    for name in ("VM", "node", "state"):
        made.add_column(name, overflow="fold")
    running = sorted(progress.running, key=lambda item: (item.node, item.started_at))
    for vm in running[:MAX_ROWS]:
        seconds = max(0.0, time.time() - vm.started_at.timestamp())
        made.add_row(safe(vm.name), safe(vm.node), f"running for {_duration(seconds)}")
    if len(running) > MAX_ROWS:
        made.add_row(f"… and {len(running) - MAX_ROWS} more", "", "")
    for report in progress.recent:
        made.add_row(safe(report.name), safe(report.node), f"{report.status} {safe(report.reason[:80])}")
    return made


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
