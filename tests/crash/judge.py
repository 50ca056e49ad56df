"""Whether a case was survived: by vCenter's hosts, the datastore's directory, the repository and the histories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from activities.records import read_job_report
from activities.repositories import open_repository
from lab.datacentre import MEDIA_AGENT
from lab.esx.api import FrozenRecord
from lab.proof import Witness, frozen_record
from safehaul.config.loader import load
from safehaul.errors import SafehaulError
from safehaul.media.manifest import BackupRef, read_index, read_manifest
from safehaul.media.reader import BackupReader, Hole
from safehaul.media.repository import Repository
from safehaul.messages.job import JobReport
from safehaul.messages.vm import VmReport
from tests.crash.histories import History
from tests.crash.stage import VMS, Stage

_ENDS = {"Completed": "COMPLETED", "Partial": "COMPLETED", "Failed": "FAILED", "Cancelled": "CANCELED"}


@dataclass
class Verdict:
    """What was found. `statuses` are the VMs' by their names, `status` the job's."""

    violations: list[str] = field(default_factory=list)
    status: str = ""
    statuses: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Before:
    """What was true before the job."""

    witness: Witness
    lab_violations: int


def before(stage: Stage) -> Before:
    """Look at the data centre before a job."""
    return Before(Witness(stage.hosts, stage.datastores), len(stage.hosts.check_frozen()))


def leftovers(stage: Stage, at_first: Before) -> list[str]:
    """Snapshots and files of ours, consolidation that is needed, what is others' and was touched, the lab's errors."""
    found = at_first.witness.problems()
    found += [
        f"task {task.id} ({task.operation} of {task.entity_name}) has not ended"
        for task in stage.hosts.state().tasks
        if task.complete_time is None
    ]
    return found


def judge(stage: Stage, at_first: Before, job: History, *, must_complete: bool) -> Verdict:
    """Everything that does not hold of a job that has ended and come to rest."""
    verdict = Verdict(leftovers(stage, at_first))
    settings = load(stage.lab.config)
    repository = open_repository(settings.media_agent(MEDIA_AGENT), for_writing=False)
    try:
        report, vms = read_job_report(repository, job.run_id)
    except SafehaulError as error:
        verdict.violations.append(f"the job has ended {job.end} and left no report: {error}; {job.failure()}")
        verdict.status = job.end
    else:
        verdict.status = report.status
        verdict.statuses = {vm.name: vm.status for vm in vms}
        verdict.violations += _job(job, report, vms)
        children = {item.workflow_id: item for item in stage.follower.histories() if item.type == "BackupVm"}
        for vm in vms:
            verdict.violations += _vm(stage, repository, children.get(vm.child_id), vm)
        if must_complete:
            verdict.violations += _unfinished(report, vms)
    finally:
        repository.close()
    return verdict


def _unfinished(report: JobReport, vms: list[VmReport]) -> list[str]:
    if not vms:
        return [f"the job is {report.status} before it had a VM, and must be Completed: {report.reason}"]
    return [
        f"{vm.name} is {vm.status}, and must be Completed: {vm.reason}"
        for vm in vms
        if vm.status != "Completed"
    ]


def _job(job: History, report: JobReport, vms: list[VmReport]) -> Iterator[str]:
    """The job's own word against its history and its VMs."""
    planned = bool(vms) or report.status != "Failed"
    if planned and sorted(vm.name for vm in vms) != sorted(VMS):
        yield f"the report tells of {sorted(vm.name for vm in vms)}, the group has {sorted(VMS)}"
    statuses = {str(vm.status) for vm in vms}
    expected = "Completed" if statuses == {"Completed"} else "Failed" if statuses == {"Failed"} else "Partial"
    if planned and report.status != expected:
        yield f"the job is {report.status}: {report.reason}; its VMs are {sorted(statuses)}"
    if job.end != _ENDS[report.status]:
        yield f"the job's report says {report.status}, its workflow has ended {job.end}"
    if report.status != "Completed" and not report.reason:
        yield f"the job is {report.status} without a reason"
    told = job.closing_report()
    if told is None or told.get("status") != report.status:
        yield f"the job's history tells {told and told.get('status')!r}, its report {report.status!r}"


def _vm(stage: Stage, repository: Repository, child: History | None, vm: VmReport) -> Iterator[str]:
    """A VM's word against its history, the hosts and the repository."""
    yield from _agrees(child, vm)
    if vm.status != "Completed":
        if not vm.reason:
            yield f"{vm.name} is {vm.status} without a reason"
        yield from _claims_nothing(repository, vm)
        return
    if vm.snapshot_pending:
        yield f"{vm.name} is Completed, and its snapshot's removal is pending"
    ref = BackupRef(vm.vc_guid, vm.backup_id)
    try:
        manifest, index = read_manifest(repository, ref), read_index(repository, ref)
    except SafehaulError as error:
        yield f"{vm.name} is Completed, and its backup cannot be read: {error}"
        return
    if index is None or index.status != "Completed":
        yield f"{vm.name} is Completed, its index says {index and index.status}"
    elif not index.removal.get("files_checked") or index.removal.get("consolidation_needed_after"):
        yield f"{vm.name} is Completed, and its index does not prove the snapshot's removal: {index.removal}"
    moref = next(item.moref for item in stage.hosts.state().vms if item.name == vm.name)
    try:
        record = frozen_record(stage.hosts, moref, vm.snapshot_moref)
    except TimeoutError as error:
        yield f"{vm.name} is Completed, but {error}"
        return
    if record.removed_time is None:
        yield f"{vm.name} is Completed, and the hosts never removed its snapshot {record.snapshot}"
    if {disk.key for disk in manifest.disks} != {disk.disk_key for disk in record.disks}:
        yield f"{vm.name}: the backup holds other disks than the snapshot froze"
        return
    yield from _restores_equal(repository, ref, record)


def _agrees(child: History | None, vm: VmReport) -> Iterator[str]:
    if child is None:
        # It was never given to a node; then nothing may be claimed of it.
        if vm.status == "Completed":
            yield f"{vm.name} is Completed, and no workflow of it was followed"
        return
    if vm.status == "Failed" and child.end == "TERMINATED":
        return
    if child.end != _ENDS[vm.status]:
        yield f"{vm.name} is {vm.status} in the job's report, its workflow has ended {child.end}"
    told: dict[str, Any] = child.closing_report() or {}
    if child.end in ("COMPLETED", "FAILED") and told.get("status") != vm.status:
        yield f"{vm.name} is {vm.status} in the job's report, {told.get('status')!r} in its own history"


def _claims_nothing(repository: Repository, vm: VmReport) -> Iterator[str]:
    """A backup that is not Completed must not look as if it were."""
    if not vm.backup_id:
        return
    index = read_index(repository, BackupRef(vm.vc_guid, vm.backup_id))
    if index is not None and index.status == "Completed":
        yield f"{vm.name} is {vm.status}: {vm.reason}; and its index says Completed"


def _restores_equal(repository: Repository, ref: BackupRef, record: FrozenRecord) -> Iterator[str]:
    reader = BackupReader(repository, ref.vc_guid, ref.backup_id)
    try:
        for disk in record.disks:
            digest, length = hashlib.sha256(), 0
            for _, piece in reader.iter_disk(disk.disk_key):
                data = bytes(piece.length_bytes) if isinstance(piece, Hole) else piece
                digest.update(data)
                length += len(data)
            if length != disk.capacity_bytes or digest.hexdigest() != disk.sha256:
                yield f"{record.vm_name}, {disk.label}: the restored bytes are not those of the frozen point in time"
    except SafehaulError as error:
        yield f"{record.vm_name}: its backup cannot be restored: {error}"
    finally:
        reader.close()
