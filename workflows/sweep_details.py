"""A sweep as markdown for the web UI, and its verdict in a line."""

from __future__ import annotations

from collections.abc import Sequence

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.sweep import SweepReport, Verdict
    from workflows.markdown import bounded, cell, table

MAX_SHOWN = 20
_NAMED = 3


def verdict_of(report: SweepReport) -> str:
    """What a failed sweep says: what went wrong, the first of it."""
    more = f"; and {len(report.problems) - _NAMED} more" if len(report.problems) > _NAMED else ""
    return f"something could not be looked at or removed: {'; '.join(report.problems[:_NAMED])}{more}"


def details(report: SweepReport, stage: str, rejected: Sequence[str]) -> str:
    """Markdown: numbers, the snapshots that somebody should know of, findings, problems."""
    only = " (nothing is changed)" if report.dry_run else ""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items()) or "none"
    lines = [
        f"**Sweep of {cell(', '.join(report.vcenters))}**{only} — {cell(stage)}",
        "",
        f"{report.vms:,} VMs with {report.snapshots_seen:,} snapshots. Ours: {counts}.",
    ]
    if report.adopt:
        lines += ["", f"Snapshots of the lost namespace {cell(report.adopt)} are taken for orphans."]
    told = [item for item in report.snapshots if item.verdict is not Verdict.HELD][:MAX_SHOWN]
    if told:
        rows = [
            (cell(item.vm_name), cell(item.moref), item.verdict.value, cell(item.reason)) for item in told
        ]
        lines += ["", *table(["VM", "snapshot", "", "why"], rows)]
    if report.cancelled:
        would = "would be " if report.dry_run else ""
        jobless = [(cell(item.vm_name), cell(item.job)) for item in report.cancelled[:MAX_SHOWN]]
        lines += ["", f"VMs without their job, {would}cancelled:", "", *table(["VM", "why"], jobless)]
    if report.findings:
        findings = [
            (item.kind.value, cell(item.vm_name), cell(item.what)) for item in report.findings[:MAX_SHOWN]
        ]
        total = sum(report.finding_counts.values())
        lines += ["", f"{total} findings, which are never touched:", ""]
        lines += table(["finding", "VM", ""], findings)
    problems = [*report.problems, *rejected]
    if problems:
        lines += ["", "Problems:", "", *(f"- {cell(item)}" for item in problems[:MAX_SHOWN])]
    return bounded(lines)
