"""The catalogue's rows, made from what the repository holds: the same rows now and after a rebuild."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from pydantic import ValidationError

from safehaul.catalog.rows import BackupRow, DiskRow, JobRow, JobVmRow
from safehaul.errors import IntegrityError
from safehaul.media.jobs import get_job_object
from safehaul.media.manifest import BackupIndex, Manifest
from safehaul.media.repository import Repository
from safehaul.messages.job import JobReport, JobTotals
from safehaul.messages.vm import VmReport


def backup_row(manifest: Manifest, index: BackupIndex | None, media_agent: str) -> BackupRow:
    """A backup as the catalogue lists it. Without an index the backup is restorable, but not Completed."""
    return BackupRow(
        vc_guid=manifest.vc_guid,
        backup_id=manifest.backup_id,
        vm_name=manifest.vm_name,
        vm_group=manifest.vm_group,
        job_id=manifest.job_id,
        media_agent=media_agent,
        status=index.status if index else "Unindexed",
        reason=index.reason if index else "",
        access_node=str(manifest.snapshot.details.get("access_node", "")),
        vcenter=str(manifest.snapshot.details.get("vcenter", "")),
        snapshot_created=manifest.snapshot.created,
        committed=manifest.committed,
        capacity_bytes=sum(disk.capacity_bytes for disk in manifest.disks),
        read_bytes=sum(disk.stats.bytes_read for disk in manifest.disks),
        stored_bytes=sum(disk.stats.bytes_stored for disk in manifest.disks),
        disks=[
            DiskRow(
                key=disk.key,
                label=disk.label,
                transport=disk.transport,
                capacity_bytes=disk.capacity_bytes,
                read_bytes=disk.stats.bytes_read,
                stored_bytes=disk.stats.bytes_stored,
            )
            for disk in manifest.disks
        ]
        + [
            DiskRow(
                key=item.key or 0,
                label=item.label,
                transport="deselected" if item.deselected else "none",
                reason=item.reason,
            )
            for item in manifest.skipped
            if item.kind == "disk"
        ],
        warnings=list(dict.fromkeys([*manifest.warnings, *(index.warnings if index else [])])),
    )


def job_row(report: JobReport) -> JobRow:
    """A job as the catalogue lists it."""
    return JobRow(
        job_id=report.job_id,
        workflow_id=report.workflow_id,
        vm_group=report.vm_group,
        status=report.status,
        reason=report.reason,
        coordinator=report.coordinator,
        started=report.started_at.isoformat(),
        ended=report.ended_at.isoformat(),
        vms=report.totals.vms,
        completed=report.totals.completed,
        partial=report.totals.partial,
        failed=report.totals.failed,
        cancelled=report.totals.cancelled,
        read_bytes=report.totals.bytes_read,
        stored_bytes=report.totals.bytes_stored,
    )


def job_vm_rows(report: JobReport, vms: Sequence[VmReport]) -> list[JobVmRow]:
    """A job's VMs as the catalogue lists them.

    VMs that failed for want of a VC.GUID of their own have none or share one: their rows are numbered.
    """
    met: Counter[str] = Counter(vm.vc_guid for vm in vms)
    shared = {guid: count(1) for guid, number in met.items() if number > 1 or not guid}
    return [
        JobVmRow(
            job_id=report.job_id,
            vc_guid=f"{vm.vc_guid}#{next(shared[vm.vc_guid])}" if vm.vc_guid in shared else vm.vc_guid,
            vm_name=vm.name,
            status=vm.status,
            reason=vm.reason,
            access_node=vm.node,
            backup_id=vm.backup_id,
            read_bytes=vm.bytes_read,
            stored_bytes=vm.bytes_stored,
        )
        for vm in vms
    ]


@dataclass(frozen=True)
class JobRows:
    """A job and its VMs as the catalogue lists them."""

    job: JobRow
    vms: list[JobVmRow]


def parse_report(data: bytes, job: str) -> JobReport:
    """A job's report from its object. Raises IntegrityError when it is not one."""
    try:
        return JobReport.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"the report of job {job} is damaged: {error.error_count()} fields") from None


def read_reports(
    repository: Repository, job_id: str, pages: Sequence[str]
) -> tuple[list[VmReport], JobTotals]:
    """All VM reports of a job and their sums."""
    reports: list[VmReport] = []
    totals = JobTotals()
    for page in pages:
        for item in json.loads(get_job_object(repository, job_id, page)):
            reports.append(VmReport.model_validate(item))
            totals = totals.plus(reports[-1])
    return reports, totals
