"""What a job's running VMs do right now, from the server alone: which step, how far, what each waits for.

One Describe a VM tells its pending step with heartbeat, try and last failure, and costs no worker anything; a
query would make the CommServe load the VM's workflow again. The calls are bounded: see `VmLooks.renew`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client
from temporalio.exceptions import TemporalError
from temporalio.service import RPCError

from activities.pending import last_failure
from safehaul.messages.progress import TransferBeat, VmProgress

LOOKS_PER_RENEWAL = 20
"""A watch renews every second: so many calls a second, however many VMs run."""
FRESH_S = 2.0
"""Heartbeats come every two seconds: looking more often shows nothing new."""
LOOK_WITHIN = timedelta(seconds=5)
SILENT_S = 8.0
"""Several heartbeats missed: worth saying, before the time-out of 15 s decides."""

# Activity → its step, what it does, and what a started one waits for.
DOING = {
    "inspect_vm": (6, "looking at the VM", "vCenter"),
    "create_snapshot": (6, "making the snapshot", "vCenter"),
    "check_transport": (8, "checking the transport", "filer"),
    "download_files": (9, "downloading its files", "filer"),
    "open_backup": (10, "opening the backup", "MediaAgent"),
    "store_files": (10, "storing its files", "repository"),
    "transfer_disk": (11, "reading a disk", "filer"),
    "finish_reading": (12, "comparing the source", "filer"),
    "seal_backup": (12, "reading back, committing", "MediaAgent"),
    "remove_snapshot": (13, "removing the snapshot", "vCenter"),
    "mark_completed": (14, "marking it completed", "access node"),
    "write_index": (14, "writing the index", "MediaAgent"),
    "leave_unfinished": (15, "keeping what was stored", "MediaAgent"),
    "ask_for_vm": (15, "asking for another VM", "access node"),
}
BESIDE = {"watch_snapshot"}
"""Activities that run beside a VM's step."""


@dataclass(frozen=True)
class VmLook:
    """One look at a VM. `rate` is in bytes a second of its disk, holes included; None when it reads none."""

    step: int = 0
    doing: str = "between two steps"
    waits_for: str = "CommServe"
    trouble: str = ""
    """Why it does not get on, when it does not."""
    beat: TransferBeat | None = None
    beat_at: datetime | None = None
    rate: float | None = None


Looks = Callable[[str], VmLook | None]
"""The newest look at the VM of a workflow id; None when there was none yet."""


class VmLooks:
    """The newest look at each running VM."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looks: dict[str, VmLook] = {}
        self._looked_at: dict[str, float] = {}

    def of(self, child_id: str) -> VmLook | None:
        """The newest look; None when there was none yet."""
        return self._looks.get(child_id)

    async def renew(self, running: Sequence[VmProgress]) -> None:
        """Look at LOOKS_PER_RENEWAL of the VMs at most, those first whose look is the oldest. Raises nothing."""
        now = time.monotonic()
        names = {vm.child_id for vm in running}
        for gone in self._looked_at.keys() - names:
            self._looks.pop(gone, None)
            del self._looked_at[gone]
        due = [name for name in names if now - self._looked_at.get(name, -FRESH_S) >= FRESH_S]
        due.sort(key=lambda name: (self._looked_at.get(name, 0.0), name))
        await asyncio.gather(*(self._look(name) for name in due[:LOOKS_PER_RENEWAL]))

    async def _look(self, child_id: str) -> None:
        self._looked_at[child_id] = time.monotonic()
        handle = self._client.get_workflow_handle(child_id)
        try:
            described = (await handle.describe(rpc_timeout=LOOK_WITHIN)).raw_description
            pending = [item for item in described.pending_activities if item.activity_type.name not in BESIDE]
            beat = await self._beat(pending[0]) if pending else None
        except (RPCError, TemporalError):
            # The older look stays; that the server is gone is told by the job's own call.
            return
        look = look_at(pending[0] if pending else None, beat)
        self._looks[child_id] = _with_rate(look, self._looks.get(child_id))

    async def _beat(self, activity: PendingActivityInfo) -> TransferBeat | None:
        """The transfer's heartbeat; None for other steps, and for one of another version."""
        if activity.activity_type.name != "transfer_disk" or not activity.heartbeat_details.payloads:
            return None
        values = await self._client.data_converter.decode(activity.heartbeat_details.payloads)
        try:
            return TransferBeat.model_validate(values[0])
        except ValidationError:
            return None


def look_at(activity: PendingActivityInfo | None, beat: TransferBeat | None) -> VmLook:
    """What a VM's pending step says; `activity` is None between two steps."""
    if activity is None:
        return VmLook()
    name = activity.activity_type.name
    step, doing, waits_for = DOING.get(name, (0, name, "its worker"))
    if beat is not None:
        doing, waits_for = f"reading {beat.disk}", beat.waits_for or waits_for
    waits_for, trouble = _state(activity, waits_for)
    beat_at = _time(activity.last_heartbeat_time) if activity.HasField("last_heartbeat_time") else None
    return VmLook(step=step, doing=doing, waits_for=waits_for, trouble=trouble, beat=beat, beat_at=beat_at)


def _state(activity: PendingActivityInfo, waits_for: str) -> tuple[str, str]:
    """What the step waits for, and what is wrong with it."""
    trouble = last_failure(activity)
    if activity.paused:
        return "somebody, who paused it in Temporal", trouble
    if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED:
        return "a safe point to stop", trouble
    if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
        seconds = _seconds_until(activity.next_attempt_schedule_time)
        if activity.HasField("next_attempt_schedule_time") and seconds > 0:
            return f"its next try, in {seconds:.0f} s", trouble
        waited = -_seconds_until(activity.scheduled_time)
        return f"a worker to take it, for {max(0.0, waited):.0f} s", trouble
    silent = (
        -_seconds_until(activity.last_heartbeat_time) if activity.HasField("last_heartbeat_time") else 0.0
    )
    if silent > SILENT_S:
        return waits_for, trouble or f"no sign of life for {silent:.0f} s"
    return waits_for, trouble


def _with_rate(look: VmLook, before: VmLook | None) -> VmLook:
    if look.beat is None or look.beat_at is None:
        return look
    if before is None or before.beat is None or before.beat_at is None:
        return look
    seconds = (look.beat_at - before.beat_at).total_seconds()
    if seconds <= 0:
        return replace(look, rate=before.rate)
    gained = look.beat.vm_done_bytes - before.beat.vm_done_bytes
    return replace(look, rate=max(0, gained) / seconds)


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def _seconds_until(stamp: Timestamp) -> float:
    return (_time(stamp) - datetime.now(UTC)).total_seconds()
