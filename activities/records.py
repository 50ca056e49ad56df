"""The job's objects in the repository (pages of VMs, plan, lease, reports) and the catalogue's rows.

Lists travel by reference: what is too large for a workflow's history stands here, a page at a time.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from activities.beat import keep_alive
from activities.catalog_rows import backup_row, job_row, job_vm_rows, parse_report, read_reports
from safehaul.catalog.catalog import Catalog
from safehaul.errors import (
    AlreadyExistsError,
    NotFoundError,
    PermanentError,
    StaleLeaseError,
    TransientError,
)
from safehaul.media import jobs
from safehaul.media.manifest import BackupIndex, Manifest
from safehaul.media.repository import Repository
from safehaul.messages.inventory import VmRecord
from safehaul.messages.job import (
    Admission,
    CloseJobInput,
    DistributeInput,
    Excluded,
    JobReport,
    JobStatus,
    JobTotals,
    Lease,
    LeaseInput,
)
from safehaul.messages.plan import (
    PlannedVm,
)
from safehaul.messages.vm import VmReport

PAGE_VMS = 200
MAX_EPOCHS = 10_000
# A locked SQLite waits half a minute by itself each time; a database that is down needs a person.
CATALOG_TRIES = 3
CATALOG_PAUSE_S = 2.0


def write_vm_pages(repository: Repository, job_id: str, records: Sequence[VmRecord]) -> list[str]:
    """Write discovered VMs in pages under fresh names; returns the names."""
    return _write_pages(repository, job_id, "vms", [record.model_dump(mode="json") for record in records])


def read_vm_pages(repository: Repository, job_id: str, pages: Sequence[str]) -> list[VmRecord]:
    """The discovered VMs of some pages, in order."""
    return [VmRecord.model_validate(item) for page in pages for item in _read_page(repository, job_id, page)]


def write_plan_pages(repository: Repository, lease: Lease, node: str, vms: Sequence[PlannedVm]) -> list[str]:
    """Write one queue of the plan in pages under fresh names; returns the names."""
    folder = f"plan/{lease.epoch:06d}/{node or 'common'}"
    return _write_pages(repository, lease.job_id, folder, [vm.model_dump(mode="json") for vm in vms])


def read_plan_page(repository: Repository, job_id: str, page: str) -> list[PlannedVm]:
    """One page of the plan."""
    return [PlannedVm.model_validate(item) for item in _read_page(repository, job_id, page)]


def no_longer_selected(repository: Repository, arg: DistributeInput, known: set[str]) -> list[Excluded]:
    """VMs of the earlier plan whose VC.GUID is not in `known`: they left the group while the job ran."""
    earlier = (vm for page in arg.earlier_pages for vm in read_plan_page(repository, arg.job_id, page))
    reason = "it was deleted, or its VM group no longer selects it, since the job began"
    return [
        Excluded(name=vm.name, vc_guid=vm.vc_guid, reason=reason) for vm in earlier if vm.vc_guid not in known
    ]


def write_nodes(repository: Repository, lease: Lease, admission: Admission) -> None:
    """Record which nodes take part under this lease; the first record stays."""
    try:
        jobs.put_job_object(
            repository,
            lease.job_id,
            f"nodes/{lease.epoch:06d}",
            admission.model_dump_json().encode(),
        )
    except AlreadyExistsError:
        # The same step was tried twice; the lease says that it was the same coordinator.
        return


def take_lease(repository: Repository, arg: LeaseInput, node: str) -> Lease:
    """Take the job's lease: the next epoch, put-if-absent. The same holder gets the same epoch again."""
    for epoch in range(1, MAX_EPOCHS):
        name = _lease_name(epoch)
        body = json.dumps({"holder": arg.holder, "coordinator": node}).encode()
        try:
            jobs.put_job_object(repository, arg.job_id, name, body)
        except AlreadyExistsError:
            held = json.loads(jobs.get_job_object(repository, arg.job_id, name))
            if held.get("holder") != arg.holder:
                continue
        return Lease(job_id=arg.job_id, coordinator=node, epoch=epoch)
    raise StaleLeaseError(f"job {arg.job_id} has changed its coordinator {MAX_EPOCHS} times: start it again")


def check_lease(repository: Repository, lease: Lease) -> None:
    """Raise StaleLeaseError unless this is the job's newest lease."""
    try:
        held = json.loads(jobs.get_job_object(repository, lease.job_id, _lease_name(lease.epoch)))
    except NotFoundError:
        raise StaleLeaseError(f"job {lease.job_id}: no coordinator holds lease {lease.epoch}") from None
    if held.get("coordinator") != lease.coordinator:
        raise StaleLeaseError(f"job {lease.job_id}: lease {lease.epoch} is {held.get('coordinator')}'s")
    try:
        jobs.get_job_object(repository, lease.job_id, _lease_name(lease.epoch + 1))
    except NotFoundError:
        return
    raise StaleLeaseError(
        f"job {lease.job_id}: {lease.coordinator} held lease {lease.epoch}, but another coordinator has taken over"
    )


def write_report_page(repository: Repository, job_id: str, page: str, reports: Sequence[VmReport]) -> None:
    """Make a page of VM reports durable; a page that is there already stays."""
    body = _encode([report.model_dump(mode="json") for report in reports])
    try:
        jobs.put_job_object(repository, job_id, page, body)
    except AlreadyExistsError:
        # The same page, tried twice: its name was made once by the job.
        return


def reported_guids(repository: Repository, job_id: str, pages: Sequence[str]) -> set[str]:
    """VC.GUIDs of the VMs whose reports are durable."""
    vms, _ = read_reports(repository, job_id, pages)
    return {vm.vc_guid for vm in vms}


def write_job_report(repository: Repository, report: JobReport) -> JobReport:
    """Write the job's report; returns the one that stands, which is the first."""
    try:
        jobs.put_job_object(repository, report.job_id, "report", report.model_dump_json().encode())
    except AlreadyExistsError:
        return parse_report(jobs.get_job_object(repository, report.job_id, "report"), report.job_id)
    return report


def read_job_report(repository: Repository, job_id: str) -> tuple[JobReport, list[VmReport]]:
    """A job's report and all its VM reports. Raises NotFoundError when step 17 has left none."""
    report = parse_report(jobs.get_job_object(repository, job_id, "report"), job_id)
    vms, _ = read_reports(repository, job_id, report.pages)
    return report, vms


def status_of(close: CloseJobInput, totals: JobTotals) -> tuple[JobStatus, str]:
    """A job's status and reason from its VMs: Failed only when nothing was achieved."""
    rest = f"; {close.not_started} VMs were not started" if close.not_started else ""
    if close.cancelled:
        return JobStatus.CANCELLED, f"cancelled{rest}"
    if close.failure:
        return JobStatus.FAILED, f"{close.failure}{rest}"
    bad = totals.failed + totals.cancelled
    if not bad and not totals.partial:
        return JobStatus.COMPLETED, ""
    counts = (
        f"{totals.partial} partial, {totals.failed} failed, {totals.cancelled} cancelled of {totals.vms} VMs"
    )
    if bad == totals.vms:
        return JobStatus.FAILED, f"no VM was backed up: {counts}"
    return JobStatus.PARTIAL, counts


def tolerated(write: Callable[[], None]) -> str:
    """Write to the catalogue, which is never the truth: tried a few times. Returns why it could not be, or nothing."""
    problem = ""
    for attempt in range(CATALOG_TRIES):
        if attempt:
            time.sleep(CATALOG_PAUSE_S)
        keep_alive("catalogue")
        try:
            write()
        except TransientError as error:
            problem = str(error)
        except PermanentError as error:  # another try finds the same
            return str(error)
        else:
            return ""
    return problem


def catalog_job(catalog: Catalog, report: JobReport, vms: Sequence[VmReport]) -> None:
    """Write a job and its VMs to the catalogue; a second time replaces the same rows."""
    catalog.record_job(job_row(report), job_vm_rows(report, vms))


def catalog_backup(catalog: Catalog, manifest: Manifest, index: BackupIndex | None, media_agent: str) -> None:
    """Write a backup to the catalogue; a second time replaces the same rows."""
    catalog.record_backup(backup_row(manifest, index, media_agent))


def _write_pages(repository: Repository, job_id: str, folder: str, items: list[object]) -> list[str]:
    batch = uuid.uuid4().hex
    names = []
    for number, page in enumerate(_batched(items, PAGE_VMS)):
        name = f"{folder}/{batch}/{number:06d}"
        jobs.put_job_object(repository, job_id, name, _encode(page))
        names.append(name)
    return names


def _read_page(repository: Repository, job_id: str, name: str) -> list[object]:
    items = json.loads(jobs.get_job_object(repository, job_id, name))
    return list(items)


def _encode(items: Sequence[object]) -> bytes:
    return json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _batched(items: Sequence[object], size: int) -> Iterator[list[object]]:
    iterator = iter(items)
    while page := list(islice(iterator, size)):
        yield page


def _lease_name(epoch: int) -> str:
    return f"lease/{epoch:06d}"
