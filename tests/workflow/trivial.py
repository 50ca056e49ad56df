"""Trivial steps under the real names, for the real workflows: what a test changes is one method of `World`.

These are fakes, and named so: they stand for vCenter, filer and repository where only the orchestration is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from safehaul.messages.inventory import VmDisk, VmState
from safehaul.messages.job import (
    Admission,
    AdmitInput,
    ChooseInput,
    CloseJobInput,
    CoordinatorChoice,
    DiscoverInput,
    Discovery,
    DistributeInput,
    JobReport,
    JobSettings,
    JobStatus,
    JobTotals,
    Lease,
    LeaseInput,
    NodeAnswer,
    NodeRequest,
    OpenJobInput,
    PingAnswer,
    PingInput,
    PrepareInput,
    RecordJobInput,
    ReportPageInput,
)
from safehaul.messages.plan import (
    PageInput,
    Plan,
    PlanPage,
    PlanQueue,
)
from safehaul.messages.steps import (
    AskInput,
    BackupSession,
    CheckTransportInput,
    CompletionMark,
    CreateSnapshotInput,
    DiskTransport,
    DownloadedFiles,
    DownloadInput,
    FinishInput,
    HoldInput,
    IndexInput,
    IndexWritten,
    InspectInput,
    Inspection,
    LeaveInput,
    LeftUnfinished,
    MarkInput,
    OpenBackupInput,
    ReadingDone,
    Removal,
    RemovalInput,
    SealedBackup,
    SealInput,
    SnapshotRef,
    StoredFile,
    StoredFiles,
    StoreFilesInput,
    TransferInput,
    TransferResult,
    TransportReport,
)
from tests.workflow.world import World

PAGE_VMS = 200


def _disk(number: int, transport: str) -> DiskTransport:
    path, label = f"[ds] vm/vm_{number}.vmdk", f"Hard disk {number + 1}"
    disk = VmDisk(key=2000 + number, label=label, capacity_bytes=1 << 20, path=path)
    reason = "" if transport == "nas" else f"it is {transport}"
    return DiskTransport(disk=disk, transport=transport, reason=reason, format="flat")


def _defn(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return activity.defn(name=name, no_thread_cancel_exception=True)


class TrivialJob:
    """Steps 1–5 and 17."""

    def __init__(self, world: World) -> None:
        self.world = world

    @_defn("open_job")
    def open_job(self, arg: OpenJobInput) -> JobSettings:
        self.world.did("open_job", arg.job_id, arg)
        return JobSettings(
            vm_group=arg.request.group_name,
            vcenter="vc",
            access_nodes=list(self.world.nodes),
            media_agent="ma",
            installation_id="test",
            namespace_id="test",
            distribution=self.world.distribution,
            options=self.world.options,
        )

    @_defn("choose_coordinator")
    def choose_coordinator(self, arg: ChooseInput) -> CoordinatorChoice:
        self.world.did("choose_coordinator", arg.job_id, arg)
        names = [answer.node for answer in arg.answers]
        if not names:
            raise ApplicationError("no access node answers", type="PolicyError", non_retryable=True)
        return CoordinatorChoice(
            coordinator=names[0],
            reason="first",
            silent_nodes=[node for node in arg.asked if node not in names],
        )

    @_defn("discover")
    def discover(self, arg: DiscoverInput) -> Discovery:
        self.world.did("discover", arg.job_id, arg)
        count, failed = self.world.vm_count, self.world.failed
        return Discovery(pages=["vms/0"], vm_count=count, capacity_bytes=0, datastores=["ds"], failed=failed)

    @_defn("take_lease")
    def take_lease(self, arg: LeaseInput) -> Lease:
        self.world.did("take_lease", arg.job_id, arg)
        return Lease(job_id=arg.job_id, coordinator=arg.coordinator, epoch=self.world.calls["take_lease"])

    @_defn("admit_nodes")
    def admit_nodes(self, arg: AdmitInput) -> Admission:
        self.world.did("admit_nodes", arg.job_id, arg)
        return Admission(nodes=arg.answers, left_out=arg.refusals)

    @_defn("distribute")
    def distribute(self, arg: DistributeInput) -> Plan:
        self.world.did("distribute", arg.job_id, arg)
        pages = [f"plan/{number}" for number in range(-(-self.world.vm_count // PAGE_VMS))]
        queues = [PlanQueue(pages=pages, vm_count=self.world.vm_count)] if pages else []
        return Plan(queues=queues, power=self.world.power)

    @_defn("load_page")
    def load_page(self, arg: PageInput) -> PlanPage:
        self.world.did("load_page", arg.name, arg)
        start = int(arg.name.removeprefix("plan/")) * PAGE_VMS
        return PlanPage(vms=self.world.vms()[start : start + PAGE_VMS])

    @_defn("write_reports")
    def write_reports(self, arg: ReportPageInput) -> None:
        self.world.did("write_reports", arg.page, arg)
        self.world.reports[arg.page] = arg.reports

    @_defn("close_job")
    def close_job(self, arg: CloseJobInput) -> JobReport:
        self.world.did("close_job", arg.job_id, arg)
        vms = [report for page in arg.pages for report in self.world.reports[page]]
        totals = JobTotals()
        for report in vms:
            totals = totals.plus(report)
        status = JobStatus.COMPLETED if totals.completed == totals.vms else JobStatus.PARTIAL
        if totals.vms and totals.failed == totals.vms:
            status = JobStatus.FAILED
        if arg.failure:
            status = JobStatus.FAILED
        if arg.cancelled:
            status = JobStatus.CANCELLED
        return JobReport(
            job_id=arg.job_id,
            workflow_id=arg.workflow_id,
            vm_group=arg.vm_group,
            status=status,
            reason=arg.failure,
            coordinator=arg.coordinator,
            totals=totals,
            vms=vms[:200],
            pages=arg.pages,
            left_out=arg.left_out,
            started_at=arg.started_at,
            ended_at=datetime.now(UTC),
        )

    @_defn("record_job")
    def record_job(self, arg: RecordJobInput) -> None:
        self.world.did("record_job", arg.job_id, arg)

    @_defn("report_unled_job")
    def report_unled_job(self, arg: CloseJobInput) -> JobReport:
        self.world.did("report_unled_job", arg.job_id, arg)
        return JobReport(
            job_id=arg.job_id,
            workflow_id=arg.workflow_id,
            vm_group=arg.vm_group,
            status=JobStatus.CANCELLED if arg.cancelled else JobStatus.FAILED,
            reason=arg.failure,
            totals=JobTotals(),
            vms=[],
            pages=[],
            left_out=arg.left_out,
            started_at=arg.started_at,
            ended_at=datetime.now(UTC),
        )

    def all(self) -> list[Callable[..., Any]]:
        """The steps of the CommServe that need no client, and the coordinator's."""
        return [
            self.open_job,
            self.choose_coordinator,
            self.discover,
            self.take_lease,
            self.admit_nodes,
            self.distribute,
            self.load_page,
            self.write_reports,
            self.close_job,
            self.record_job,
            self.report_unled_job,
        ]


class TrivialNode:
    """Steps 4 and 6–15 on one access node, and the MediaAgent's."""

    def __init__(self, world: World, node: str) -> None:
        self.world = world
        self.node = node

    @_defn("ping")
    def ping(self, arg: PingInput) -> PingAnswer:
        self.world.did("ping", arg.node, arg)
        return PingAnswer(node=self.node, version="1", cores=2, load=0.0, streams=self.world.streams)

    @_defn("prepare_node")
    def prepare_node(self, arg: PrepareInput) -> NodeAnswer:
        self.world.did("prepare_node", arg.node, arg)
        return NodeAnswer(
            node=self.node,
            version="1",
            cores=2,
            load=0.0,
            memory_bytes=1 << 30,
            streams=self.world.streams,
            reachable_datastores=[] if self.world.filer_is_away() else ["ds"],
            may_return=["ds"] if self.world.filer_is_away() else [],
        )

    @_defn("ask_for_vm")
    def ask_for_vm(self, arg: AskInput) -> NodeRequest:
        self.world.did("ask_for_vm", arg.node, arg)
        return NodeRequest(node=self.node, free_streams=1, load=0.0, asked_at=datetime.now(UTC))

    @_defn("inspect_vm")
    def inspect_vm(self, arg: InspectInput) -> Inspection:
        self.world.did("inspect_vm", arg.vm.vc_guid, arg)
        return Inspection(state=VmState(moref=arg.vm.moref, consolidation_needed=False))

    @_defn("watch_snapshot")
    def watch_snapshot(self, arg: HoldInput) -> None:
        self.world.did("watch_snapshot", arg.vm.vc_guid, arg)

    @_defn("create_snapshot")
    def create_snapshot(self, arg: CreateSnapshotInput) -> SnapshotRef:
        self.world.did("create_snapshot", arg.vm.vc_guid, arg)
        with self.world.lock:
            self.world.snapshots[arg.plan.name] = arg.vm.vc_guid
        return SnapshotRef(
            moref=f"snapshot-{arg.vm.moref}",
            name=arg.plan.name,
            description=arg.plan.description,
            created=datetime.now(UTC).isoformat(),
            unheard=activity.info().attempt > 1,
        )

    @_defn("remove_snapshot")
    def remove_snapshot(self, arg: RemovalInput) -> Removal:
        self.world.did("remove_snapshot", arg.vm.vc_guid, arg)
        if self.world.removals is not None:
            return self.world.removals(arg)
        with self.world.lock:
            self.world.snapshots.pop(arg.plan.name, None)
        return Removal(gone=True, moref=arg.moref)

    @_defn("check_transport")
    def check_transport(self, arg: CheckTransportInput) -> TransportReport:
        self.world.did("check_transport", arg.vm.vc_guid, arg)
        disks = [_disk(number, transport) for number, transport in enumerate(self.world.transports)]
        return TransportReport(disks=disks, hardware={"name": arg.vm.name})

    @_defn("download_files")
    def download_files(self, arg: DownloadInput) -> DownloadedFiles:
        self.world.did("download_files", arg.vm.vc_guid, arg)
        return DownloadedFiles(files=[])

    @_defn("open_backup")
    def open_backup(self, arg: OpenBackupInput) -> BackupSession:
        self.world.did("open_backup", arg.vm.vc_guid, arg)
        return BackupSession(session_id=arg.session_id)

    @_defn("store_files")
    def store_files(self, arg: StoreFilesInput) -> StoredFiles:
        self.world.did("store_files", arg.vm.vc_guid, arg)
        return StoredFiles(files=[StoredFile(name="vm.vmx", size_bytes=1)])

    @_defn("transfer_disk")
    def transfer_disk(self, arg: TransferInput) -> TransferResult:
        self.world.did("transfer_disk", arg.vm.vc_guid, arg)
        size = arg.transport.disk.capacity_bytes
        return TransferResult(
            disk_key=2000,
            label="Hard disk 1",
            bytes_capacity=size,
            bytes_read=size,
            bytes_stored=1,
            seconds=0.1,
        )

    @_defn("finish_reading")
    def finish_reading(self, arg: FinishInput) -> ReadingDone:
        self.world.did("finish_reading", arg.vm.vc_guid, arg)
        return ReadingDone(disk_identities={}, snapshot_moref=arg.snapshot.moref)

    @_defn("seal_backup")
    def seal_backup(self, arg: SealInput) -> SealedBackup:
        self.world.did("seal_backup", arg.vm.vc_guid, arg)
        return SealedBackup(backup_id=f"backup-{arg.vm.vc_guid}", packs_verified=1, bytes_verified=1)

    @_defn("leave_unfinished")
    def leave_unfinished(self, arg: LeaveInput) -> LeftUnfinished:
        self.world.did("leave_unfinished", arg.vm.vc_guid, arg)
        return LeftUnfinished()

    @_defn("mark_completed")
    def mark_completed(self, arg: MarkInput) -> CompletionMark:
        self.world.did("mark_completed", arg.vm.vc_guid, arg)
        return CompletionMark(
            node=self.node, marked_at=datetime.now(UTC), snapshot_absent=True, spool_removed=True
        )

    @_defn("write_index")
    def write_index(self, arg: IndexInput) -> IndexWritten:
        self.world.did("write_index", arg.vm.vc_guid, arg)
        return IndexWritten(backup_id=arg.backup_id, name="index")

    def control(self) -> list[Callable[..., Any]]:
        """The steps of the control queue."""
        return [
            self.ping,
            self.prepare_node,
            self.ask_for_vm,
            self.inspect_vm,
            self.watch_snapshot,
            self.create_snapshot,
            self.remove_snapshot,
            self.check_transport,
            self.download_files,
            self.store_files,
            self.finish_reading,
            self.mark_completed,
        ]

    def anyones(self) -> list[Callable[..., Any]]:
        """The steps of the queue that all access nodes serve."""
        return [self.watch_snapshot, self.remove_snapshot, self.mark_completed]

    def media(self) -> list[Callable[..., Any]]:
        """The MediaAgent's steps."""
        return [self.open_backup, self.seal_backup, self.write_index, self.leave_unfinished]
