"""The live table of a running job: nodes × VMs, what each does, how fast, what it waits for.

It fits the terminal whatever the job's size: of a thousand running VMs those with trouble are shown first, the rest
is counted at its node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from safehaul.messages.progress import JobProgress, NodeProgress, VmProgress
from safehaul.messages.vm import VmReport
from workers.cli.job_pace import Measure, span
from workers.cli.output import plain, size
from workers.cli.vm_looks import Looks, VmLook

AROUND = 9
"""Lines that are no rows of nodes or VMs: the head, the bar, the table's own lines, and one to spare."""
MAX_ENDED = 5
MAX_NOTES = 3
MAX_TROUBLES = 3
BAR_COLUMNS = 20
_COLOURS = {"Completed": "green", "Partial": "yellow", "Failed": "red", "Cancelled": "magenta"}


def live_table(
    progress: JobProgress, looks: Looks, measure: Measure, *, height: int, width: int
) -> RenderableType:
    """Everything that `job watch` shows, in `height` lines of `width` columns at most."""
    ended = progress.recent[: -1 - MAX_ENDED : -1]
    notes = [*(f"left out: {item}" for item in progress.left_out[-MAX_NOTES:])]
    notes += [f"rejected: {item}" for item in progress.rejected_signals[-MAX_NOTES:]]
    troubles = _troubles(progress.running, looks, width)
    room = max(4, height - AROUND - len(ended) - len(notes) - len(troubles))
    parts: list[RenderableType] = [*_head(progress, measure)]
    if progress.running or progress.nodes:
        parts.append(_nodes_and_vms(progress, looks, room))
    parts += [_line(trouble, "red") for trouble in troubles]
    parts += [_ended(report) for report in ended]
    parts += [_line(f"  {note}", "yellow") for note in notes]
    return Group(*parts)


def _head(progress: JobProgress, measure: Measure) -> Iterator[RenderableType]:
    totals = progress.totals
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(plain(progress.vm_group), style="bold")
    head.append(f"  {progress.status}: {plain(progress.stage)}")
    if progress.started_at is not None:
        head.append(f", started {span((datetime.now(UTC) - progress.started_at).total_seconds())} ago")
    if progress.coordinator:
        head.append(f"  coordinator {plain(progress.coordinator)}")
    yield head
    count = progress.waiting + len(progress.running) + totals.vms
    counts = f"{count} VMs: {progress.waiting} waiting, {len(progress.running)} running, {totals.vms} ended"
    ends = [
        f"{number} {word}"
        for number, word in (
            (totals.completed, "completed"),
            (totals.partial, "partial"),
            (totals.failed, "failed"),
            (totals.cancelled, "cancelled"),
        )
        if number
    ]
    yield _line(counts + (f" ({', '.join(ends)})" if ends else ""))
    if measure.capacity_bytes:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(measure.capacity_bytes, measure.covered_bytes, width=BAR_COLUMNS)
        percent = f"{100 * min(1.0, measure.covered_bytes / measure.capacity_bytes):.0f} %"
        line.add_row(bar, percent, _line(measure.text()))
        yield line


def _nodes_and_vms(progress: JobProgress, looks: Looks, room: int) -> Table:
    made = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, expand=True)
    for name, widest in (("node", 24), ("VM", 30), ("step", 30), ("done", 20), ("rate>", 12)):
        made.add_column(
            name.rstrip(">"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=widest,
        )
    # Only this one shrinks when a reason is long: a name that is cut to nothing helps nobody.
    made.add_column("waits for", no_wrap=True, overflow="ellipsis", ratio=1, min_width=10)
    by_node: dict[str, list[VmProgress]] = defaultdict(list)
    for vm in progress.running:
        by_node[vm.node].append(vm)
    known = {node.name: node for node in progress.nodes}
    names = sorted({*known, *by_node}, key=lambda name: (not _lost(known.get(name)), name))
    # At least half of the rows are for VMs.
    shown_nodes = names[: max(1, room // 2)]
    hidden = len(names) - len(shown_nodes)
    shown = _most_telling(progress.running, looks, room - len(shown_nodes) - bool(hidden), set(shown_nodes))
    for name in shown_nodes:
        running = by_node[name]
        visible = [vm for vm in running if vm.child_id in shown]
        made.add_row(*_node_row(name, known.get(name), running, len(running) - len(visible), looks))
        for vm in sorted(visible, key=lambda item: (item.started_at, item.name)):
            made.add_row(*_vm_row(vm, _paused(looks(vm.child_id), progress)))
    if hidden:
        rest = sum(len(by_node[name]) for name in names[len(shown_nodes) :])
        made.add_row(f"… {hidden} more nodes", f"{rest} VMs", "", "", "", "")
    return made


def _most_telling(running: list[VmProgress], looks: Looks, room: int, nodes: set[str]) -> set[str]:
    """Which VMs get a row: those with trouble, then those that have been running for longest."""

    def key(vm: VmProgress) -> tuple[bool, float, str]:
        look = looks(vm.child_id)
        return (not (look and look.trouble), vm.started_at.timestamp(), vm.child_id)

    candidates = [vm for vm in running if vm.node in nodes]
    return {vm.child_id for vm in sorted(candidates, key=key)[: max(0, room)]}


def _node_row(
    name: str, node: NodeProgress | None, running: list[VmProgress], hidden: int, looks: Looks
) -> tuple[Text, ...]:
    rates = [look.rate for vm in running if (look := looks(vm.child_id)) and look.rate is not None]
    streams = f"{len(running)} running" + (f" of {node.streams} streams" if node else "")
    more = f"{hidden} of them not shown" if hidden else ""
    silent = "it does not answer, and gets no VM" if _lost(node) else ""
    return (
        Text(plain(name), style="bold"),
        Text(streams, style="bold"),
        Text(more, style="dim"),
        Text(),
        Text(f"{size(sum(rates))}/s" if rates else "", style="bold"),
        Text(silent, style="red"),
    )


def _paused(look: VmLook | None, progress: JobProgress) -> VmLook | None:
    """A VM of a paused job that has no step under way waits for the resume."""
    if look is None or look.step or progress.paused_since is None:
        return look
    return replace(look, doing="paused", waits_for="the job's resume")


def _vm_row(vm: VmProgress, look: VmLook | None) -> tuple[Text, ...]:
    if look is None:
        return Text(), Text(plain(vm.name)), Text("not looked at yet", style="dim"), Text(), Text(), Text()
    step = f"{look.step} {plain(look.doing)}" if look.step else plain(look.doing)
    done = rate = ""
    if look.beat is not None and look.beat.capacity_bytes:
        percent = 100 * look.beat.done_bytes / look.beat.capacity_bytes
        done = f"{percent:.0f} % of {size(look.beat.capacity_bytes)}"
    if look.rate is not None:
        rate = f"{size(look.rate)}/s"
    waits = Text(plain(look.waits_for), style="red" if look.trouble else "")
    return Text(), Text(plain(vm.name)), Text(step), Text(done), Text(rate), waits


def _troubles(running: list[VmProgress], looks: Looks, width: int) -> list[str]:
    """Why VMs do not get on: two lines for each at most, as long as the terminal, for a reason needs room."""
    found = [(vm, look) for vm in running if (look := looks(vm.child_id)) is not None and look.trouble]
    shown = found if len(found) <= MAX_TROUBLES else found[: MAX_TROUBLES - 1]
    lines = []
    for vm, look in shown:
        text = " ".join(plain(f"{vm.name}: {look.trouble}").split())
        lines += wrap(
            text, width, initial_indent="  ", subsequent_indent="    ", max_lines=2, placeholder=" …"
        )
    if len(found) > len(shown):
        lines.append(f"  … and {len(found) - len(shown)} more VMs with trouble")
    return lines


def _ended(report: VmReport) -> Text:
    line = Text("  ", no_wrap=True, overflow="ellipsis")
    line.append(f"{report.status:<10}", style=_COLOURS.get(report.status, ""))
    line.append(f"{plain(report.name)} on {plain(report.node) or 'no node'}")
    if report.reason:
        line.append(f": {' '.join(plain(report.reason).split())}", style="dim")
    return line


def _line(text: str, style: str = "") -> Text:
    return Text(" ".join(plain(text).split("\n")), style=style, no_wrap=True, overflow="ellipsis")


def _lost(node: NodeProgress | None) -> bool:
    return node is not None and node.lost
