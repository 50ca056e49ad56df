"""A VM's table in the web UI (current details): the step, its snapshot, its disks, the seconds, the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.vm import DiskReport, VmReport
    from workflows.markdown import bounded, cell, size, table

MAX_WARNINGS = 10


@dataclass(frozen=True)
class VmScene:
    """What there is to show of a VM."""

    name: str
    node: str
    step: int
    stage: str
    snapshot: str
    """Empty before there is one."""
    disks: Sequence[DiskReport]
    read: frozenset[int]
    """Keys of the disks that have been read to their end."""
    seconds: dict[str, float]
    warnings: Sequence[str]
    rejected: Sequence[str]
    """Signals that could not be followed."""
    report: VmReport | None
    """At the end."""
    paused: str = ""
    """Since when it is paused, and what becomes of its snapshot; empty when it is not."""


def vm_details(scene: VmScene) -> str:
    """Markdown for the web UI."""
    name, report = cell(scene.name), scene.report
    if report is None:
        lines = [f"**{name}** on `{scene.node}` — step {scene.step}: {cell(scene.stage)}"]
        if scene.paused:
            lines += ["", scene.paused]
    else:
        reason = f": {cell(report.reason)}" if report.reason else ""
        lines = [f"**{name}** on `{scene.node}` — **{report.status}**{reason}"]
        if report.backup_id:
            lines += ["", f"Backup `{report.vc_guid}/{report.backup_id}`"]
    if scene.snapshot:
        lines += ["", f"Snapshot {scene.snapshot}"]
    if scene.disks:
        rows = [_disk(disk, scene) for disk in scene.disks]
        lines += ["", *table(["disk", "size>", "read>", "stored>", "state"], rows)]
        if scene.step == 11 and report is None:
            lines += ["", "How far the disk is: see the tab Pending Activities"]
    if scene.seconds:
        spent = " · ".join(f"step {number}: {seconds:,.1f}" for number, seconds in scene.seconds.items())
        lines += ["", f"Seconds: {spent}"]
    if scene.warnings:
        lines += ["", "Warnings:", "", *(f"- {cell(text)}" for text in scene.warnings[:MAX_WARNINGS])]
    if scene.rejected:
        lines += ["", "Rejected:", "", *(f"- {cell(text)}" for text in scene.rejected)]
    return bounded(lines)


def _disk(disk: DiskReport, scene: VmScene) -> tuple[str, str, str, str, str]:
    label, capacity = cell(disk.label).replace(" ", "\N{NO-BREAK SPACE}"), size(disk.bytes_capacity)
    if disk.transport != "nas":
        return label, capacity, "–", "–", f"skipped: {cell(disk.reason)}"
    if disk.key in scene.read:
        return label, capacity, size(disk.bytes_read), size(disk.bytes_stored), "read"
    now = scene.step == 11 and scene.report is None and scene.stage.endswith(disk.label)
    return label, capacity, "–", "–", "reading" if now else "waits" if scene.report is None else "not read"
