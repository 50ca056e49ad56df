"""The job's table in the web UI (current details), from the same answer as the query `progress`."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.progress import JobProgress
    from safehaul.messages.vm import VmReport
    from safehaul.sizes import readable
    from workflows.markdown import bounded, cell, link, stamp, table

MAX_RUNNING = 10
MAX_ENDED = 5
MAX_NOTES = 10
MAX_REASON_CHARS = 100


def job_details(progress: JobProgress, namespace: str) -> str:
    """Markdown: totals, running VMs by node, the latest results, what was rejected or left out."""
    totals = progress.totals
    coordinator = f" · coordinator `{progress.coordinator}`" if progress.coordinator else ""
    ends = (
        f"{totals.completed} completed, {totals.partial} partial, {totals.failed} failed, "
        f"{totals.cancelled} cancelled"
    )
    lines = [
        f"**{cell(progress.vm_group)}** — {progress.status}: {progress.stage}{coordinator}",
        "",
        f"{progress.waiting} waiting · {len(progress.running)} running · {totals.vms} ended: {ends}",
        "",
        f"Of the VMs that ended: {readable(totals.bytes_read)} read, {readable(totals.bytes_stored)} stored",
    ]
    if progress.paused_since is not None:
        lines += [
            "",
            f"Paused since {stamp(progress.paused_since)}: no VM is given out, and those that run stop reading",
        ]
    if progress.running:
        running = sorted(progress.running, key=lambda vm: (not vm.waits_for, vm.node, vm.started_at))
        rows = [
            (
                link(vm.name, namespace, vm.child_id),
                vm.node,
                f"{vm.started_at:%H:%M:%S}",
                cell(vm.waits_for[:MAX_REASON_CHARS]),
            )
            for vm in running[:MAX_RUNNING]
        ]
        if len(running) > MAX_RUNNING:
            rows.append((f"… {len(running) - MAX_RUNNING} more", "", "", ""))
        lines += ["", *table(["running", "node", "since (UTC)", "waits for"], rows)]
    if progress.recent:
        ended = [
            (_name(vm, namespace), vm.status, vm.node, cell(vm.reason[:MAX_REASON_CHARS]))
            for vm in progress.recent[: -1 - MAX_ENDED : -1]
        ]
        lines += ["", *table(["ended", "status", "node", "reason"], ended)]
    silent = [f"{node.name}: does not answer and gets no VM" for node in progress.nodes if node.lost]
    for title, items in (
        ("Nodes", silent),
        ("Left out", progress.left_out),
        ("Rejected", progress.rejected_signals),
    ):
        if items:
            lines += ["", f"{title}:", "", *(f"- {cell(item)}" for item in items[:MAX_NOTES])]
    return bounded(lines)


def _name(vm: VmReport, namespace: str) -> str:
    # A VM that failed before it was given to a node never had a workflow.
    return link(vm.name, namespace, vm.child_id) if vm.child_id else cell(vm.name)
