"""RemoveSnapshot: a removal that got stuck, tried without limit and loudly, beside the jobs that go on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as StepTimeout

with workflow.unsafe.imports_passed_through():
    from activities.snapshot import Snapshots
    from safehaul.messages.steps import Removal, RemoveSnapshotInput
    from workflows import policies
    from workflows.inputs import parse_input
    from workflows.snapshot_guard import uninterrupted
    from workflows.steps import run_step, shown
    from workflows.vm_report import explain, table_cell

EXAMPLE = "the input that BackupVm gives it"
MAX_REJECTED = 5
LOOKING_AGAIN = "nothing of it is there; one more look when no creation can be under way any more"
ADVICE = {
    "RemovalPending": "It is tried again by itself; `retry_now` does not wait for that.",
    "RemovalBlocked": "Somebody must put right what is said below; then it goes by itself, at once with `retry_now`.",
    "Removed": "Nothing of it is left.",
    "VmGone": "Its VM was deleted, and the snapshot with it.",
    "VmLost": "Its VM left the inventory, and nobody recorded where its files are.",
}


# It may take weeks and must outlive the build that began it.
@workflow.defn(name="RemoveSnapshot", versioning_behavior=policies.outlives_its_build())
class RemoveSnapshot:
    """One per snapshot; ends when the snapshot is gone from the VM and from the datastore.

    `BackupStatus` says how it stands: `RemovalPending` is tried again by itself, `RemovalBlocked` needs somebody (a
    privilege, a password, a name), `Removed` and `VmGone` are its ends, and `VmLost` when nobody could tell.
    """

    def __init__(self) -> None:
        self._request: RemoveSnapshotInput | None = None
        self._since = datetime.fromtimestamp(0, UTC)
        self._tried_at = self._since
        self._tries = 0
        self._reason = ""
        self._status = "RemovalPending"
        self._now_please = False
        self._rejected: list[str] = []

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> Removal:
        """Step 13 again, on any access node, until it is done."""
        request = parse_input(RemoveSnapshotInput, raw, more, EXAMPLE)
        self._request = request
        self._since = request.since or workflow.now()
        self._tries, self._reason = request.tries, request.reason
        self._show()
        # Whoever cancels this does not want the snapshot to stay: it goes on, and says so.
        removal = await uninterrupted(self._until_gone(request), on_cancel=self._show)
        if removal is None:
            progress = {"tries": self._tries, "reason": self._reason, "since": self._since}
            workflow.continue_as_new(request.model_copy(update=progress))
        self._reason = removal.reason
        self._tell("Removed" if not removal.vm_gone else "VmGone" if removal.gone else "VmLost")
        return removal

    @workflow.signal(name="retry_now")
    def retry_now(self, *_: Any) -> None:
        """Try at once, because the cause has been put right. Takes no input; what is given is ignored."""
        self._now_please = True

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, _args: Sequence[RawValue]) -> None:
        """An unknown signal is shown, and changes nothing."""
        message = f"signal {name[:100]!r} is not known: there is `retry_now`"
        self._rejected = [*self._rejected, message][-MAX_REJECTED:]
        self._show()

    async def _until_gone(self, request: RemoveSnapshotInput) -> Removal | None:
        """The removal that ends this; None when the history has grown so long that another run must go on."""
        while True:
            removal, error = await self._try(request)
            if removal is not None and self._settles(request, removal):
                return removal
            if error is not None:
                if not workflow.patched("removal-without-limit"):
                    raise error
                self._reason = explain(error)
                workflow.logger.warning(
                    "try %d: snapshot %r is not gone: %s",
                    self._tries,
                    request.removal.plan.name,
                    self._reason,
                )
            elif removal is not None:
                self._reason = removal.reason or LOOKING_AGAIN
            self._tell("RemovalBlocked" if error is not None and _needs_somebody(error) else "RemovalPending")
            await self._pause(removal)
            if workflow.info().is_continue_as_new_suggested():
                return None

    async def _try(self, request: RemoveSnapshotInput) -> tuple[Removal | None, ActivityError | None]:
        self._now_please = False
        self._tried_at = workflow.now()
        self._tries += 1
        try:
            removal = await run_step(
                Snapshots.remove_snapshot,
                request.removal.model_copy(update={"within_s": policies.CLEAN_UP_TRY.total_seconds()}),
                summary=f"Step 13 · remove the snapshot (without limit, try {self._tries})",
                queue=policies.ACCESS_NODES_QUEUE,
                policy=policies.CLEAN_UP,
            )
        except ActivityError as error:
            return None, error
        return removal, None

    def _settles(self, request: RemoveSnapshotInput, removal: Removal) -> bool:
        """Whether nothing can be left, or come, after what a try has seen."""
        if removal.vm_gone:
            return removal.gone or self._tried_at - self._since >= policies.VM_LOST_AFTER
        if not removal.gone or request.removal.moref or self._late:
            return removal.gone
        # Nobody knows whether the snapshot was made, and a try of its creation may still be under way.
        return not workflow.patched("look-for-late-creation")

    @property
    def _late(self) -> bool:
        return self._tried_at - self._since >= policies.LATE_CREATION_WITHIN

    async def _pause(self, removal: Removal | None) -> None:
        """Until the next try is due, or somebody asks for it."""
        if removal is not None and removal.gone:
            pause = policies.LATE_CREATION_WITHIN - (workflow.now() - self._since)
        else:
            doubled = policies.CLEAN_UP_FIRST_PAUSE * 2 ** min(self._tries - 1, 10)
            pause = min(doubled, policies.CLEAN_UP_LAST_PAUSE)
        try:
            await workflow.wait_condition(
                lambda: self._now_please,
                timeout=max(pause, timedelta(milliseconds=100)),
                timeout_summary=shown(f"until try {self._tries + 1}: {self._reason}"),
            )
        except TimeoutError:
            return

    def _tell(self, status: str) -> None:
        if status != self._status:
            self._status = status
            workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set(status)])
        self._show()

    def _show(self) -> None:
        if self._request is None:
            return
        removal = self._request.removal
        lines = [
            f"The snapshot `{removal.plan.name}` of **{table_cell(removal.vm.name)}** must go: {self._status}.",
            f"Tried {self._tries} times since {self._since:%Y-%m-%d %H:%M:%S} UTC. {ADVICE[self._status]}",
            f"Why it is still there: {table_cell(self._reason)}" if self._reason else "",
        ]
        if workflow.cancellation_reason() is not None:
            lines.append("It was asked to cancel, and goes on: only `terminate` gives the snapshot up.")
        lines += [table_cell(message) for message in self._rejected]
        workflow.set_current_details("\n\n".join(line for line in lines if line))


def _needs_somebody(error: ActivityError) -> bool:
    """Whether waiting alone is not likely to help: a refusal, or no access node that takes the step."""
    cause = error.cause
    if isinstance(cause, StepTimeout):
        return cause.type is TimeoutType.SCHEDULE_TO_START
    return isinstance(cause, ApplicationError) and cause.non_retryable
