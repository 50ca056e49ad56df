"""The table as text and as Markdown, and the place of the latter in docs/performance.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from tests.bench.contenders import STREAMS, Contender, Step
from tests.bench.figures import Spread, cpu, of, spread, stored, wall
from tests.bench.images import Images
from tests.bench.processes import BenchError
from tests.bench.rounds import Run

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
COLUMNS = (
    *("step", "who", "wall s", "sync s", "CPU s", "CPU s/GiB", "filer CPU s", "peak MiB", "stored MiB"),
    *("open s", "read-back s", "stream MiB"),
)


_LEAST_SHOWN = 0.1
"""Percent."""


def rows(runs: Sequence[Run], contenders: Sequence[Contender], images: Images) -> list[tuple[str, ...]]:
    """A row for each step and contender that ran: medians, and in brackets the least and the most."""
    return [
        _row(step, contender, found, images.size_gib)
        for step in Step
        for contender in contenders
        if (found := of(runs, contender.name, step))
    ]


def _row(step: Step, contender: Contender, runs: Sequence[Run], disk_gib: float) -> tuple[str, ...]:
    seconds = spread(map(cpu, runs))
    disks = STREAMS if step is Step.STREAMS else 1
    kept = step not in {Step.READ, Step.RESTORE, Step.VERIFY}
    filer = contender.nfs and step not in {Step.RESTORE, Step.VERIFY}
    return (
        step.value,
        contender.name,
        _shown(spread(map(wall, runs))),
        _shown(spread(run.cost.flush_s for run in runs if run.cost.flush_s)),
        _shown(seconds),
        f"{seconds.middle / disk_gib / disks:.2f}" if seconds and step is not Step.VERIFY else "",
        _shown(spread(run.filer_cpu_s for run in runs if filer)),
        _middle(spread(run.cost.peak_mib for run in runs)),
        _middle(spread(stored(run) / (1 << 20) for run in runs)) if kept else "",
        _shown(_facts(runs, "open_s")),
        _shown(_facts(runs, "read_back_s")),
        _middle(_facts(runs, "stream_memory_mib")),
    )


def _facts(runs: Sequence[Run], name: str) -> Spread | None:
    return spread(float(run.cost.facts[name]) for run in runs if name in run.cost.facts)


def _shown(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{found.middle:.2f} [{found.least:.2f}–{found.most:.2f}]"


def _middle(found: Spread | None) -> str:
    return "" if found is None else f"{found.middle:,.0f}"


def as_text(table: Sequence[tuple[str, ...]]) -> str:
    """Columns in line, for a terminal."""
    lines = [COLUMNS, *table]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    ]
    return "\n".join(line.rstrip() for line in padded)


def as_markdown(table: Sequence[tuple[str, ...]]) -> str:
    """The same for the document."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def profile_as_markdown(shares: Sequence[tuple[str, float]]) -> str:
    """Parts of the CPU time."""
    lines = [("CPU time of the headline's full backup", "%"), ("---", "---:")]
    lines += [(name, f"{share:.1f}") for name, share in shares if share >= _LEAST_SHOWN]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(images: Images, versions: Sequence[str]) -> str:
    """What it was measured on, without the machine's name."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} CPUs ({model}), {memory_gib:.0f} GiB of memory, Linux {platform.release()}, Python "
        f"{platform.python_version()}; {'; '.join(versions)}. Disks of {images.size_bytes >> 20} MiB, the ext4 one "
        f"with {images.used_bytes >> 20} MiB of files; the second day differs in {images.changed_bytes >> 20} MiB in "
        f"{len(images.changed)} places."
    )


def write_into(document: Path, text: str) -> None:
    """Put the text between the document's markers. Raises BenchError when it has none."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{document} has no {BEGIN} … {END}: the table was printed only")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
