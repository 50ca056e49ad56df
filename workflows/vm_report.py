"""The story of one VM as its workflow tells it: steps and seconds, warnings, and the report at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    TimeoutType,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as StepTimeout

with workflow.unsafe.imports_passed_through():
    from safehaul.errors import SnapshotLostError, VmMovedError
    from safehaul.messages.plan import PlannedVm
    from safehaul.messages.steps import (
        DownloadedFiles,
        IndexWritten,
        Removal,
        SealedBackup,
        SnapshotRef,
        TransferResult,
        TransportReport,
    )
    from safehaul.messages.vm import (
        BackupVmInput,
        DiskReport,
        SkippedFile,
        VmProgressDetail,
        VmReport,
        VmStatus,
    )
    from workflows.markdown import cell as table_cell
    from workflows.markdown import stamp
    from workflows.vm_details import VmScene, vm_details

__all__ = ["VmStory", "explain", "table_cell", "unstarted_report"]

MAX_WARNINGS = 50
# Of skipped files the first ones stand in the VM's reason; all are in its report and in the manifest.
MAX_REASONS = 5
MAX_REJECTED = 5
SNAPSHOT_LOST = (SnapshotLostError.__name__, VmMovedError.__name__)


def explain(error: BaseException) -> str:
    """The reason of a failure as a person should read it: the step's own message, and what a time-out means.

    Only Temporal's wrappers are taken off. What lies below our own message (a peer's fault, the time-out of an
    earlier try) stays in the history for those who look there.
    """
    reason: BaseException = error
    while isinstance(reason, ActivityError | ChildWorkflowError) and reason.cause is not None:
        reason = reason.cause
    if isinstance(reason, StepTimeout):
        where = error.activity_type if isinstance(error, ActivityError) else "a step"
        queue = "its worker"
        if reason.type is TimeoutType.SCHEDULE_TO_START:
            return f"nobody took {where}: {queue} does not answer; see whether that worker runs"
        return f"{where} did not end in time ({reason.type.name if reason.type else 'TIMEOUT'})"
    if isinstance(reason, ApplicationError):
        return reason.message
    return str(reason) or type(reason).__name__


def nothing_readable(vm_name: str, transport: TransportReport) -> str:
    """Why no disk of a VM can be backed up: they cannot go, or the VM group wants none of those that could."""
    reasons = "; ".join(f"{item.disk.label}: {item.reason}" for item in transport.disks)
    if transport.deselected and not transport.skipped:
        return f"the VM group's disk filters leave none of the disks of VM {vm_name!r}: {reasons}"
    return f"no disk of VM {vm_name!r} can go through the NAS transport: {reasons or 'no disks'}"


class VmStory:
    """Collects what happened to one VM; pure, but for the markdown shown in the web UI."""

    def __init__(self) -> None:
        self._vm: BackupVmInput | None = None
        self._node = ""
        self._child_id = ""
        self._started_at: datetime | None = None
        self._step = 0
        self._stopped_at = 0
        self._stage = "starting"
        self._seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.skipped_files: list[SkippedFile] = []
        self._disks: dict[int, DiskReport] = {}
        self._snapshot_moref = ""
        self._removal: Removal | None = None
        self._backup_id = ""
        self._indexed = False
        self._read: set[int] = set()
        self._report: VmReport | None = None
        self._rejected: list[str] = []
        self._paused_since: datetime | None = None
        self._paused = ""

    def begin(self, vm: BackupVmInput, child_id: str, now: datetime) -> None:
        """The VM's backup starts."""
        self._vm, self._node, self._child_id, self._started_at = vm, vm.node, child_id, now
        self._show()

    @contextmanager
    def step(self, number: int, stage: str) -> Iterator[None]:
        """A stage of step `number`: its seconds are added up, and it is shown in the web UI."""
        self._step, self._stage = number, stage
        self._show()
        before = workflow.time()
        try:
            yield
        except (FailureError, asyncio.CancelledError):
            # Not `finally`: see BackupVm; nothing of a dropped run may ask for the workflow's time.
            self._add_seconds(number, before)
            raise
        self._add_seconds(number, before)

    @contextmanager
    def waiting(self, stage: str) -> Iterator[None]:
        """Something is waited for between two tries of the same step, and shown in the web UI."""
        before, self._stage = self._stage, stage
        self._show()
        yield
        self._stage = before

    def moved(self, lost: str, node: str, reason: str) -> None:
        """The VM's node died, and it goes on on another one."""
        self.warn(
            [f"access node {lost} stopped answering in step {self._step} ({reason}): went on on {node}"]
        )
        self._node = node
        self._show()

    def _add_seconds(self, number: int, before: float) -> None:
        key = str(number)
        self._seconds[key] = round(self._seconds.get(key, 0.0) + workflow.time() - before, 3)

    def stopped(self) -> None:
        """Something interrupted the steps: what follows (the removal) is clean-up, and not where it went wrong."""
        self._stopped_at = self._step

    @property
    def was_stopped(self) -> bool:
        """True when steps 6 to 12 were interrupted."""
        return bool(self._stopped_at)

    def may_begin_anew(self, error: BaseException) -> bool:
        """True when only the snapshot was lost, and it is gone for certain: a new one may be read to its end."""
        cause = error.cause if isinstance(error, ActivityError) else None
        lost = isinstance(cause, ApplicationError) and cause.type in SNAPSHOT_LOST
        return lost and self.snapshot_is_gone

    def begin_anew(self, error: BaseException) -> None:
        """The VM is backed up from a new snapshot: of the try that failed only the reason and its seconds stay."""
        self.warn([f"backed up anew from another snapshot; step {self._stopped_at}: {explain(error)}"])
        self._stopped_at, self._snapshot_moref, self._removal = 0, "", None
        self._disks, self._read, self.skipped_files = {}, set(), []

    @property
    def snapshot_is_gone(self) -> bool:
        """True when step 13 has removed the snapshot, for certain."""
        return self._removal is not None and self._removal.gone

    def warn(self, warnings: list[str]) -> None:
        """Add warnings to the report, each once, bounded: a step may have been done again."""
        self.warnings = list(dict.fromkeys([*self.warnings, *warnings]))[:MAX_WARNINGS]

    def paused(self, since: datetime | None, text: str) -> None:
        """Somebody has paused the VM (None: resumed it); `text` says what becomes of its snapshot."""
        self._paused_since, self._paused = since, text
        if self._vm is not None:
            self._show()

    def reject(self, message: str) -> None:
        """A signal that could not be followed: shown in the web UI, bounded."""
        self._rejected = [*self._rejected, message][-MAX_REJECTED:]
        if self._vm is not None:
            self._show()

    def snapshot(self, snapshot: SnapshotRef) -> None:
        """Step 7 is done."""
        self._snapshot_moref = snapshot.moref
        self.warn(snapshot.warnings)

    def transport(self, report: TransportReport) -> None:
        """Step 8 is done."""
        for item in report.disks:
            self._disks[item.disk.key] = DiskReport(
                key=item.disk.key,
                label=item.disk.label,
                transport=item.transport,
                reason=item.reason,
                format=item.format,
                bytes_capacity=item.disk.capacity_bytes,
            )
            self.warn(item.warnings)

    def downloaded(self, files: DownloadedFiles) -> None:
        """Step 9 is done."""
        self.warn(files.skipped)
        self.skipped_files = files.skipped_files

    def transferred(self, result: TransferResult) -> None:
        """A disk of step 11 is done."""
        self._read.add(result.disk_key)
        self._disks[result.disk_key] = self._disks[result.disk_key].model_copy(
            update={
                "bytes_read": result.bytes_read,
                "bytes_zero": result.bytes_zero,
                "bytes_deduplicated": result.bytes_deduplicated,
                "bytes_stored": result.bytes_stored,
                "seconds": result.seconds,
            }
        )

    def sealed(self, sealed: SealedBackup) -> None:
        """Step 12 is done: the backup is restorable."""
        self._backup_id = sealed.backup_id

    def removed(self, removal: Removal) -> None:
        """Step 13 is done, or handed over."""
        self._removal = removal

    def indexed(self, written: IndexWritten) -> None:
        """Step 14 is done."""
        self.warn(written.warnings)
        self._indexed = True
        self._stage = "done"
        self._show()

    def end(self, ending: BaseException | None, now: datetime) -> VmReport:
        """The VM's report; `ending` is what interrupted the steps, if anything did."""
        assert self._vm is not None
        status, reason = self._verdict(ending)
        disks = list(self._disks.values())
        return VmReport(
            vc_guid=self._vm.vc_guid,
            name=self._vm.name,
            status=status,
            reason=reason,
            node=self._node,
            given_by=self._vm.given_by,
            backup_id=self._backup_id,
            child_id=self._child_id,
            snapshot_moref=self._snapshot_moref,
            snapshot_pending=bool(self._removal and self._removal.pending),
            disks=disks,
            skipped_files=self.skipped_files,
            warnings=self.warnings,
            step_seconds=self._seconds,
            bytes_capacity=sum(disk.bytes_capacity for disk in disks if disk.transport != "deselected"),
            bytes_read=sum(disk.bytes_read for disk in disks),
            bytes_stored=sum(disk.bytes_stored for disk in disks),
            started_at=self._started_at,
            ended_at=now,
        )

    def tell(self, report: VmReport) -> None:
        """The end, for those who look in the web UI."""
        self._report = report
        self._stage = "done"
        self._show()

    def progress(self) -> VmProgressDetail:
        """Answer of the query `progress`."""
        return VmProgressDetail(
            vc_guid=self._vm.vc_guid if self._vm else "",
            name=self._vm.name if self._vm else "",
            node=self._node,
            step=self._step,
            stage=self._stage,
            snapshot_moref=self._snapshot_moref,
            disks_done=len(self._read),
            disks=len(self._disks),
            paused_since=self._paused_since,
        )

    def _verdict(self, ending: BaseException | None) -> tuple[VmStatus, str]:
        if ending is None:
            # A disk that the VM group does not want is told among the disks, and lacks nobody.
            skipped = [disk for disk in self._disks.values() if disk.transport not in ("nas", "deselected")]
            reasons = [f"{disk.label}: {disk.reason}" for disk in skipped]
            reasons += [f"{file.path}: {file.reason}" for file in self.skipped_files[:MAX_REASONS]]
            if len(self.skipped_files) > MAX_REASONS:
                reasons.append(f"and {len(self.skipped_files) - MAX_REASONS} more files")
            if reasons:
                return VmStatus.PARTIAL, "; ".join(reasons)
            return VmStatus.COMPLETED, ""
        if isinstance(ending, asyncio.CancelledError) or is_cancelled_exception(ending):
            reason = "cancelled"
            if isinstance(ending, asyncio.CancelledError) and ending.__cause__ is not None:
                failed = explain(ending.__cause__)
                reason += f"; step {self._stopped_at or self._step}, which was to stop, failed: {failed}"
            if self._backup_id:
                reason += f" after the backup {self._backup_id} was stored"
            if self._removal and self._removal.pending:
                reason += f"; the snapshot's removal is pending: {self._removal.reason}"
            return VmStatus.CANCELLED, reason
        reason = explain(ending)
        if self._removal and self._removal.pending and self._removal.reason not in reason:
            reason += f"; the snapshot's removal is pending: {self._removal.reason}"
        return VmStatus.FAILED, f"step {self._stopped_at or self._step}: {reason}"

    def _show(self) -> None:
        assert self._vm is not None
        workflow.set_current_details(
            vm_details(
                VmScene(
                    name=self._vm.name,
                    node=self._node,
                    step=self._step,
                    stage=self._stage,
                    snapshot=self._snapshot_text(),
                    disks=list(self._disks.values()),
                    read=frozenset(self._read),
                    seconds=self._seconds,
                    warnings=self.warnings,
                    rejected=self._rejected,
                    report=self._report,
                    paused=self._paused_text(),
                )
            )
        )

    def _paused_text(self) -> str:
        return f"Paused since {stamp(self._paused_since)}: {self._paused}" if self._paused_since else ""

    def _snapshot_text(self) -> str:
        if self._removal is not None and self._removal.pending:
            return f"`{self._snapshot_moref}`: its removal is pending: {table_cell(self._removal.reason)}"
        if not self._snapshot_moref:
            return ""
        return f"`{self._snapshot_moref}`: {'held' if self._removal is None else 'removed'}"


def unstarted_report(vm: PlannedVm, status: VmStatus, reason: str) -> VmReport:
    """The report of a VM that was never given to a node."""
    return VmReport(vc_guid=vm.vc_guid, name=vm.name, status=status, reason=reason, ended_at=workflow.now())
