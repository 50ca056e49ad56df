"""The job's mailbox: signals, checked without ever raising, and the children's reports in order of arrival."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from safehaul.errors import InvalidInputError
    from safehaul.messages.job import CancelVmRequest, ChildRef, NodeLost, VmFinished
    from safehaul.messages.ledger import JobState
    from safehaul.messages.plan import PlannedVm
    from safehaul.messages.unreadable import Unreadable
    from safehaul.messages.vm import VmStatus
    from workflows.cancel_signal import ask_for_cancel
    from workflows.inputs import describe
    from workflows.ledger import Ledger
    from workflows.pause import JobPause
    from workflows.unfinished import keeps
    from workflows.vm_report import unstarted_report

MAX_REJECTED = 10
MAX_INBOX = 100_000


class Mailbox:
    """What has come by signal and waits to be dealt with by the job's main loop."""

    def __init__(self) -> None:
        self.inbox: list[VmFinished] = []
        self.lost: list[NodeLost] = []
        self.to_cancel: list[ChildRef] = []
        self.cancel_asked = False
        self.keep = True
        self.pause = JobPause()
        self.rejected: list[str] = []
        self.nudged = False
        self._open = False
        self._early: list[tuple[Any, ...]] = []

    def resume(self, state: JobState) -> None:
        """Go on with what the earlier run had not dealt with.

        Signals that came between two runs are handled before `run` begins: they must not be overwritten.
        """
        self.inbox = [*state.inbox, *self.inbox]
        self.lost = [*state.lost, *self.lost]
        self.to_cancel = [*state.to_cancel, *self.to_cancel]
        self.cancel_asked = state.cancel_asked or self.cancel_asked
        self.keep = state.keep and self.keep
        self.pause.carry_on(state.paused_since)
        self.rejected = [*state.rejected_signals, *self.rejected][-MAX_REJECTED:]

    def open(self, ledger: Ledger) -> None:
        """The ledger stands: what came before it is looked up now."""
        self._open = True
        early, self._early = self._early, []
        for raw in early:
            self.cancel_vm(raw, ledger)

    @property
    def has_mail(self) -> bool:
        """True when the main loop has something to do."""
        news = self.nudged or self.pause.has_news
        return bool(self.inbox or self.lost or self.to_cancel or news)

    def cancel_job(self, raw: tuple[Any, ...] = ()) -> None:
        """The whole job is to be cancelled. Of what comes with it only `keep` counts: see `Unfinished`."""
        self.cancel_asked = True
        self.keep = self.keep and keeps(raw)

    async def turn_signal_into_cancel(self) -> None:
        """Waits for the signal `cancel`, and has the server cancel the job."""
        await workflow.wait_condition(lambda: self.cancel_asked)
        await ask_for_cancel(self.reject)

    def cancel_vm(self, raw: tuple[Any, ...], ledger: Ledger) -> str:
        """One VM is to be cancelled; what cannot be understood is shown, never raised."""
        if not self._open and len(self._early) < MAX_REJECTED:
            self._early.append(raw)
            return "the job is only starting: the VM is looked for then"
        try:
            vm = self.find_vm(raw, ledger)
        except InvalidInputError as error:
            self.reject(str(error))
            return str(error)
        if isinstance(vm, ChildRef):
            self.to_cancel.append(vm.model_copy(update={"keep": keeps(raw)}))
            return f"VM {vm.name!r} is being cancelled"
        self.nudge()
        if isinstance(vm, PlannedVm) and not ledger.planning:
            ledger.withdraw(vm)
            ledger.record(
                unstarted_report(vm, VmStatus.CANCELLED, "cancelled before it was started"), vm.capacity_bytes
            )
            return f"VM {vm.name!r} is cancelled: it had not been started"
        wanted = vm if isinstance(vm, str) else vm.vc_guid
        ledger.unwant(wanted)
        return (
            f"no VM named {wanted[:100]!r} runs yet: it is cancelled when its turn comes, if the job has it"
        )

    def check_cancel_vm(self, raw: tuple[Any, ...], ledger: Ledger) -> None:
        """Raise InvalidInputError for what `cancel_vm` would reject. Before there is a plan nobody can tell."""
        if self._open:
            self.find_vm(raw, ledger)

    def find_vm(self, raw: tuple[Any, ...], ledger: Ledger) -> ChildRef | PlannedVm | str:
        """What a `cancel_vm` names: a running child, a VM that waits, or a name that is in no page loaded so far.

        Raises InvalidInputError, which tells what is wrong. Changes nothing.
        """
        if len(raw) != 1:
            raise InvalidInputError(
                f'signal cancel_vm: takes one input like {{"vm": "NAME"}}, got {len(raw)}'
            )
        if isinstance(raw[0], Unreadable):
            raise InvalidInputError(f"signal cancel_vm: its input cannot be read: {raw[0].reason}")
        try:
            wanted = CancelVmRequest.model_validate(raw[0]).vm
        except ValidationError as error:
            raise InvalidInputError(f"signal cancel_vm: {describe(error)}") from None
        running = [child for child in ledger.state.running.values() if wanted in (child.vc_guid, child.name)]
        found: list[ChildRef | PlannedVm] = [*running, *ledger.waiting_like(wanted)]
        if not found and ledger.next_page() is not None:
            return wanted
        if not found:
            raise InvalidInputError(f"signal cancel_vm: no running or waiting VM is named {wanted[:100]!r}")
        if len(found) > 1:
            raise InvalidInputError(
                f"signal cancel_vm: {len(found)} VMs are named {wanted[:100]!r}; give the VC.GUID"
            )
        return found[0]

    def finished(self, raw: tuple[Any, ...], job_id: str) -> None:
        """A child's report; another job's, a malformed or a surplus one is dropped (the reconciliation sees all)."""
        try:
            message = VmFinished.model_validate(raw[0] if raw else None)
        except ValidationError as error:
            self.reject(f"signal vm_finished: {describe(error)[:200]}")
            return
        if message.job_id == job_id and len(self.inbox) < MAX_INBOX:
            self.inbox.append(message)

    def node_lost(self, raw: tuple[Any, ...], job_id: str) -> None:
        """A child's node has died; a malformed or another job's message is dropped: the child asks again."""
        try:
            message = NodeLost.model_validate(raw[0] if raw else None)
        except ValidationError as error:
            self.reject(f"signal node_lost: {describe(error)[:200]}")
            return
        if message.job_id == job_id and len(self.lost) < MAX_INBOX and message not in self.lost:
            self.lost.append(message)

    def reject(self, message: str) -> None:
        """Remember what was not understood, to be shown."""
        self.rejected = [*self.rejected, message][-MAX_REJECTED:]

    def nudge(self) -> None:
        """Wake the main loop: something in the ledger changed."""
        self.nudged = True
