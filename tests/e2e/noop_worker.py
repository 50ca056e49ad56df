"""A worker in which one step is replaced by a successful no-op: `python -m tests.e2e.noop_worker STEP ROLE [NAME]`.

Everything else is the real worker. It shows that each step has an effect that the end-to-end check sees.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, get_type_hints

from temporalio import activity

from activities.commserve import CommServe
from activities.coordination import JobCoordination, NodeCoordination
from activities.discovery import Discoverer
from activities.index import AccessNodeIndexing, MediaAgentIndexing
from activities.restore import Restores
from activities.restore_desk import RestoreDesk
from activities.snapshot import Snapshots
from activities.transfer import Transfers
from activities.transport import Transport
from safehaul.config.loader import find_config, load
from safehaul.messages.inventory import VmState
from safehaul.messages.job import (
    Admission,
    CoordinatorChoice,
    Discovery,
    JobReport,
    JobSettings,
    JobStatus,
    JobTotals,
    Lease,
    NodeAnswer,
    NodeRequest,
    PingAnswer,
    Reconciliation,
)
from safehaul.messages.plan import (
    Plan,
    PlanPage,
)
from safehaul.messages.restore import (
    RegisteredVm,
    RestoredDisk,
    RestoredVm,
    RestoreKind,
    RestorePlan,
    RestoreSettings,
)
from safehaul.messages.steps import (
    BackupSession,
    CompletionMark,
    DownloadedFiles,
    IndexWritten,
    Inspection,
    LeftUnfinished,
    ReadingDone,
    Removal,
    SealedBackup,
    SnapshotRef,
    StoredFile,
    StoredFiles,
    TransferResult,
    TransportReport,
)
from workers import access_node, commserve, media_agent

CLASSES: tuple[type, ...] = (
    CommServe,
    NodeCoordination,
    JobCoordination,
    Discoverer,
    Snapshots,
    Transport,
    Transfers,
    AccessNodeIndexing,
    MediaAgentIndexing,
    RestoreDesk,
    Restores,
)


def _now() -> datetime:
    return datetime.now(UTC)


# What each step answers when it has done nothing and claims success.
NOTHING_DONE: dict[str, Callable[[Any], Any]] = {
    "open_job": lambda arg: JobSettings(
        vm_group=arg.request.vm_group,
        vcenter="lab",
        access_nodes=[],
        media_agent="vault",
        installation_id="",
        namespace_id="",
    ),
    "ping": lambda arg: PingAnswer(node=arg.node, version="", cores=0, load=0.0, streams=0),
    "choose_coordinator": lambda _: CoordinatorChoice(coordinator="", reason=""),
    "discover": lambda _: Discovery(pages=[], vm_count=0, capacity_bytes=0),
    "take_lease": lambda arg: Lease(job_id=arg.job_id, coordinator=arg.coordinator, epoch=1),
    "prepare_node": lambda arg: NodeAnswer(
        node=arg.node,
        version=version("safehaul"),
        cores=1,
        load=0.0,
        memory_bytes=0,
        streams=1,
        reachable_datastores=[each.key for each in arg.needed_datastores],
    ),
    "admit_nodes": lambda arg: Admission(nodes=arg.answers),
    "distribute": lambda _: Plan(queues=[]),
    "load_page": lambda _: PlanPage(vms=[]),
    "inspect_vm": lambda arg: Inspection(state=VmState(moref=arg.vm.moref, consolidation_needed=False)),
    "create_snapshot": lambda arg: SnapshotRef(
        moref="snapshot-0",
        name=arg.plan.name,
        description=arg.plan.description,
        created=_now().isoformat(),
    ),
    "watch_snapshot": lambda _: None,
    "check_transport": lambda _: TransportReport(disks=[], hardware={}),
    "download_files": lambda _: DownloadedFiles(files=[]),
    "open_backup": lambda arg: BackupSession(session_id=arg.session_id),
    "store_files": lambda arg: StoredFiles(
        files=[StoredFile(name=file.path, size_bytes=file.size_bytes) for file in arg.files.files]
    ),
    "transfer_disk": lambda arg: TransferResult(
        disk_key=arg.transport.disk.key,
        label=arg.transport.disk.label,
        bytes_capacity=arg.transport.disk.capacity_bytes,
        bytes_read=arg.transport.disk.capacity_bytes,
        bytes_stored=1,
        seconds=0.1,
    ),
    "finish_reading": lambda arg: ReadingDone(disk_identities={}, snapshot_moref=arg.snapshot.moref),
    "seal_backup": lambda _: SealedBackup(backup_id="none", packs_verified=0, bytes_verified=0),
    "remove_snapshot": lambda arg: Removal(gone=True, moref=arg.moref),
    "leave_unfinished": lambda _: LeftUnfinished(),
    "mark_completed": lambda arg: CompletionMark(
        node=arg.vm.node, marked_at=_now(), snapshot_absent=True, spool_removed=True
    ),
    "write_index": lambda arg: IndexWritten(backup_id=arg.backup_id, name="none"),
    "ask_for_vm": lambda _: NodeRequest(node="", free_streams=0, load=0.0, asked_at=_now()),
    "write_reports": lambda _: None,
    "close_job": lambda arg: JobReport(
        job_id=arg.job_id,
        workflow_id=arg.workflow_id,
        vm_group=arg.vm_group,
        status=JobStatus.COMPLETED,
        totals=JobTotals(),
        vms=[],
        pages=arg.pages,
        started_at=arg.started_at,
        ended_at=_now(),
    ),
    "record_job": lambda _: None,
    # What the job is helped by, and reports without a coordinator.
    "request_cancel": lambda _: None,
    "reconcile": lambda _: Reconciliation(closed=[]),
    "report_unled_job": lambda arg: JobReport(
        job_id=arg.job_id,
        workflow_id=arg.workflow_id,
        vm_group=arg.vm_group,
        status=JobStatus.FAILED,
        reason=arg.failure,
        totals=JobTotals(),
        vms=[],
        pages=[],
        started_at=arg.started_at,
        ended_at=_now(),
    ),
    # The restore.
    "open_restore": lambda arg: RestoreSettings(
        kind=RestoreKind.NEW_VM,
        vc_guid="",
        backup_id="",
        name=arg.request.name,
        datastore=arg.request.datastore,
        folder="",
        media_agent="vault",
        vcenter="lab",
        access_nodes=["node-1"],
    ),
    "prepare_restore": lambda arg: RestorePlan(
        directory=f"[{arg.settings.datastore}] {arg.settings.name}", disks=[]
    ),
    "restore_disk": lambda arg: RestoredDisk(
        key=arg.disk.key,
        label=arg.disk.label,
        capacity_bytes=arg.disk.capacity_bytes,
        bytes_written=arg.disk.capacity_bytes,
        bytes_compared=arg.disk.capacity_bytes,
        seconds=0.1,
    ),
    "write_vm_files": lambda _: None,
    "register_vm": lambda arg: RegisteredVm(moref="vm-0", vmx_path=f"{arg.plan.directory}/vm.vmx"),
    "finish_vm": lambda _: RestoredVm(moref="vm-0", vc_guid="noop.vm"),
    "discard_restore": lambda _: None,
}


def replace(name: str) -> None:
    """Put the no-op in the step's place, in the class that has it."""
    owner = next(cls for cls in CLASSES if name in cls.__dict__)
    hints = get_type_hints(getattr(owner.__dict__[name], "__wrapped__", owner.__dict__[name]))
    result = hints.pop("return")
    (argument,) = hints.values()

    def nothing(self: Any, arg: Any) -> Any:
        return NOTHING_DONE[name](arg)

    nothing.__annotations__ = {"arg": argument, "return": result}
    setattr(owner, name, activity.defn(name=name, no_thread_cancel_exception=True)(nothing))


def main() -> None:
    """Replace the step, then be the worker."""
    name, role, *rest = sys.argv[1:]
    replace(name)
    settings = load(find_config(None))
    if role == "commserve":
        asyncio.run(commserve.serve(settings))
    elif role == "media-agent":
        asyncio.run(media_agent.serve(settings, rest[0]))
    else:
        asyncio.run(access_node.serve(settings, rest[0]))


if __name__ == "__main__":
    main()
