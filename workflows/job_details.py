"""The job's table in the web UI (current details), from the same answer as the query `progress`."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.job import JobProgress
    from workflows.vm_report import table_cell

MAX_ROWS = 20


def job_details(progress: JobProgress) -> str:
    """Markdown: totals, running VMs by node, the latest results, what was rejected or left out."""
    totals = progress.totals
    coordinator = f", coordinator `{progress.coordinator}`" if progress.coordinator else ""
    counts = (
        f"{progress.waiting} waiting · {len(progress.running)} running · {totals.completed} completed · "
        f"{totals.partial} partial · {totals.failed} failed · {totals.cancelled} cancelled · "
        f"{totals.bytes_read:,} bytes read · {totals.bytes_stored:,} stored"
    )
    lines = [f"**{progress.vm_group}** — {progress.status}: {progress.stage}{coordinator}", "", counts]
    if progress.running:
        lines += ["", "| running | node |", "|---|---|"]
        lines += [f"| {table_cell(vm.name)} | {vm.node} |" for vm in progress.running[:MAX_ROWS]]
        if len(progress.running) > MAX_ROWS:
            lines.append(f"| … {len(progress.running) - MAX_ROWS} more | |")
    if progress.recent:
        lines += ["", "| ended | status | reason |", "|---|---|---|"]
        lines += [
            f"| {table_cell(vm.name)} | {vm.status} | {table_cell(vm.reason)} |" for vm in progress.recent
        ]
    for title, items in (("Left out", progress.left_out), ("Rejected", progress.rejected_signals)):
        if items:
            lines += ["", f"{title}:", *(f"- {table_cell(item)}" for item in items[:MAX_ROWS])]
    return "\n".join(lines)
