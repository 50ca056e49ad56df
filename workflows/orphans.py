"""One snapshot of ours that a sweep has found: who owned it, and how it is removed when nobody does any more."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ActivityError, ChildWorkflowError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.sweep import SnapshotLooks
    from activities.sweep_desk import SweepDesk
    from safehaul.errors import PolicyError
    from safehaul.messages import certificate
    from safehaul.messages.snapshots import RemovalRecord
    from safehaul.messages.steps import Removal, RemovalInput, SnapshotPlan, VmRef
    from safehaul.messages.sweep import (
        FoundSnapshot,
        OrphanInput,
        OrphanLook,
        Owner,
        OwnersInput,
        OwnerState,
        SweepIdentity,
        SweptSnapshot,
        Verdict,
    )
    from workflows import policies
    from workflows.snapshot_guard import start_removal
    from workflows.steps import run_step
    from workflows.vm_report import explain


OF_OWNER = {
    OwnerState.ALIVE: Verdict.HELD,
    OwnerState.REMOVING: Verdict.REMOVING,
    OwnerState.UNCLEAR: Verdict.UNCLEAR,
}
"""What becomes of a snapshot whose owner is not gone."""


@dataclass(frozen=True)
class Orphan:
    """A snapshot that is provably ours; an orphan when its owner is gone."""

    ours: SweepIdentity
    vcenter: str
    found: FoundSnapshot

    @property
    def owner(self) -> Owner:
        """Whom the snapshot belongs to, by its marker."""
        marker = self.found.marker
        return Owner(
            workflow_id=marker.workflow_id,
            first_run_id=marker.first_run_id,
            snapshot_name=marker.snapshot_name,
            adopted=marker.namespace != self.ours.namespace_id,
        )

    @property
    def words(self) -> str:
        """For messages."""
        return f"snapshot {self.found.moref} of VM {self.found.vm_name!r}"

    def swept(self, verdict: Verdict, reason: str) -> SweptSnapshot:
        """What became of it."""
        marker = self.found.marker
        return SweptSnapshot(
            verdict=verdict,
            vcenter=self.vcenter,
            vm_name=self.found.vm_name,
            vc_guid=marker.vc_guid,
            vm_moref=self.found.vm_moref,
            moref=self.found.moref,
            name=marker.snapshot_name,
            owner=marker.workflow_id,
            reason=reason[: policies.SWEEP_REASON_CHARS],
        )

    async def remove(self, reason: str) -> SweptSnapshot:
        """Look at it, ask for its owner once more, have RemoveSnapshot remove it, and prove that it is gone.

        Between the two questions for the owner a workflow may have been reset: the last one counts, right before the
        start.
        """
        try:
            look = await self._look()
            if not look.there:
                return self.swept(Verdict.GONE, "it was gone before its removal began")
            found = await self._ask_for_owner()
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return self.swept(Verdict.UNCLEAR, explain(error))
        return found or await self._have_it_removed(look, reason)

    async def _have_it_removed(self, look: OrphanLook, reason: str) -> SweptSnapshot:
        removal = RemovalInput(vm=self._vm, plan=self._plan, moref=self.found.moref, before=look.before)
        handle = await start_removal(removal, "", f"found by a sweep: its owner {reason}")
        if handle is None:
            return self.swept(Verdict.REMOVING, "a RemoveSnapshot is at work")
        await workflow.wait([handle], timeout=policies.SWEEP_WAITS_FOR_REMOVAL.total_seconds())
        if not handle.done():
            return self.swept(Verdict.PENDING, "RemoveSnapshot goes on with it")
        try:
            removed: Removal = await handle
        except ChildWorkflowError as error:
            return self.swept(Verdict.UNCLEAR, f"its removal did not end by itself: {explain(error)}")
        return self._certified(removed, look)

    def _certified(self, removed: Removal, look: OrphanLook) -> SweptSnapshot:
        if removed.gone and removed.vm_gone:
            return self.swept(Verdict.GONE, "its VM was deleted meanwhile")
        try:
            made = certificate.issue(
                RemovalRecord.model_validate(removed.record),
                vc_guid=self.found.marker.vc_guid,
                vm_name=self.found.vm_name,
                moref=self.found.moref,
                created_at=look.created,
            )
        except ValidationError:
            return self.swept(Verdict.UNCERTIFIED, f"nothing was recorded of its removal: {removed.reason}")
        except PolicyError as error:
            return self.swept(Verdict.UNCERTIFIED, str(error))
        return self.swept(Verdict.REMOVED, "").model_copy(update={"certificate": made})

    async def _look(self) -> OrphanLook:
        return await run_step(
            SnapshotLooks.look_at_orphan,
            OrphanInput(vm=self._vm, plan=self._plan, moref=self.found.moref),
            summary=f"Before the removal · look at {self.found.vm_name}",
            queue=policies.ACCESS_NODES_QUEUE,
            policy=policies.SWEEP_LOOK,
        )

    async def _ask_for_owner(self) -> SweptSnapshot | None:
        """None: it still has none."""
        answer = await run_step(
            SweepDesk.look_up_owners,
            OwnersInput(namespace_id=self.ours.namespace_id, owners=[self.owner]),
            summary=f"Once more · the owner of {self.found.moref} of {self.found.vm_name}",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        (found,) = answer.owners
        return None if found.state is OwnerState.GONE else self.swept(OF_OWNER[found.state], found.reason)

    @property
    def _plan(self) -> SnapshotPlan:
        marker = self.found.marker
        return SnapshotPlan(name=marker.snapshot_name, description=marker.text())

    @property
    def _vm(self) -> VmRef:
        # Job, node and MediaAgent are of no use to a removal, and the marker does not say them.
        return VmRef(
            job_id="",
            vcenter=self.vcenter,
            vc_guid=self.found.marker.vc_guid,
            name=self.found.vm_name,
            moref=self.found.vm_moref,
            node="",
            media_agent="",
        )
