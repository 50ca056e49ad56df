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
    from safehaul.messages.steps import Removal, SealedBackup, SnapshotRef, TransferResult, TransportReport
    from safehaul.messages.vm import BackupVmInput, DiskReport, VmProgressDetail, VmReport, VmStatus

MAX_WARNINGS = 50
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


class VmStory:
    """Collects what happened to one VM; pure, but for the markdown shown in the web UI."""

    def __init__(self) -> None:
        self._vm: BackupVmInput | None = None
        self._child_id = ""
        self._started_at: datetime | None = None
        self._step = 0
        self._stopped_at = 0
        self._stage = "starting"
        self._seconds: dict[str, float] = {}
        self._warnings: list[str] = []
        self._disks: dict[int, DiskReport] = {}
        self._snapshot_moref = ""
        self._removal: Removal | None = None
        self._backup_id = ""
        self._indexed = False
        self._rejected: list[str] = []

    def begin(self, vm: BackupVmInput, child_id: str, now: datetime) -> None:
        """The VM's backup starts."""
        self._vm, self._child_id, self._started_at = vm, child_id, now
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

    def _add_seconds(self, number: int, before: float) -> None:
        key = str(number)
        self._seconds[key] = round(self._seconds.get(key, 0.0) + workflow.time() - before, 3)

    def stopped(self) -> None:
        """Something interrupted the steps: what follows (the removal) is clean-up, and not where it went wrong."""
        self._stopped_at = self._step

    def may_begin_anew(self, error: BaseException) -> bool:
        """True when only the snapshot was lost, and it is gone for certain: a new one may be read to its end."""
        cause = error.cause if isinstance(error, ActivityError) else None
        lost = isinstance(cause, ApplicationError) and cause.type in SNAPSHOT_LOST
        return lost and self._removal is not None and self._removal.gone

    def begin_anew(self, error: BaseException) -> None:
        """The VM is backed up from a new snapshot: of the try that failed only the reason and its seconds stay."""
        self.warn([f"backed up anew from another snapshot; step {self._stopped_at}: {explain(error)}"])
        self._stopped_at, self._snapshot_moref, self._removal = 0, "", None
        self._disks = {}

    def warn(self, warnings: list[str]) -> None:
        """Add warnings to the report, bounded."""
        self._warnings = [*self._warnings, *warnings][:MAX_WARNINGS]

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

    def transferred(self, result: TransferResult) -> None:
        """A disk of step 11 is done."""
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

    def indexed(self) -> None:
        """Step 14 is done."""
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
            node=self._vm.node,
            given_by=self._vm.given_by,
            backup_id=self._backup_id,
            child_id=self._child_id,
            snapshot_moref=self._snapshot_moref,
            snapshot_pending=bool(self._removal and self._removal.pending),
            disks=disks,
            warnings=self._warnings,
            step_seconds=self._seconds,
            bytes_capacity=sum(disk.bytes_capacity for disk in disks),
            bytes_read=sum(disk.bytes_read for disk in disks),
            bytes_stored=sum(disk.bytes_stored for disk in disks),
            started_at=self._started_at,
            ended_at=now,
        )

    def progress(self) -> VmProgressDetail:
        """Answer of the query `progress`."""
        return VmProgressDetail(
            vc_guid=self._vm.vc_guid if self._vm else "",
            name=self._vm.name if self._vm else "",
            node=self._vm.node if self._vm else "",
            step=self._step,
            stage=self._stage,
            snapshot_moref=self._snapshot_moref,
            disks_done=sum(disk.seconds > 0 for disk in self._disks.values()),
            disks=len(self._disks),
        )

    def _verdict(self, ending: BaseException | None) -> tuple[VmStatus, str]:
        if ending is None:
            skipped = [disk for disk in self._disks.values() if disk.transport != "nas"]
            if skipped:
                return VmStatus.PARTIAL, "; ".join(f"{disk.label}: {disk.reason}" for disk in skipped)
            return VmStatus.COMPLETED, ""
        if isinstance(ending, asyncio.CancelledError) or is_cancelled_exception(ending):
            reason = "cancelled"
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
        lines = [
            f"**{table_cell(self._vm.name)}** on `{self._vm.node}` — step {self._step}: {self._stage}",
            "",
            "| disk | transport | read | stored |",
            "|---|---|---:|---:|",
        ]
        lines += [
            f"| {table_cell(disk.label)} | {disk.transport} {table_cell(disk.reason)} | {disk.bytes_read:,} |"
            f" {disk.bytes_stored:,} |"
            for disk in self._disks.values()
        ]
        lines += [f"\n{table_cell(message)}" for message in self._rejected]
        workflow.set_current_details("\n".join(lines))


def table_cell(text: str) -> str:
    """Untrusted text inside a markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("`", "'")[:200]
