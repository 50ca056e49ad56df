"""RemoveSnapshot: a removal that got stuck, retried without limit and loudly, beside the jobs that go on."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.snapshot import Snapshots
    from safehaul.messages.steps import Removal, RemoveSnapshotInput
    from workflows import policies
    from workflows.inputs import parse_input
    from workflows.steps import run_step

EXAMPLE = "the input that BackupVm gives it"


# It may take weeks and must outlive the build that began it.
@workflow.defn(name="RemoveSnapshot", versioning_behavior=policies.outlives_its_build())
class RemoveSnapshot:
    """One per snapshot; ends when the snapshot is gone from the VM and from the datastore."""

    @workflow.run
    async def run(self, raw: Any = None, *more: Any) -> Removal:
        """Step 13 again, on any access node, until it is done."""
        request = parse_input(RemoveSnapshotInput, raw, more, EXAMPLE)
        vm = request.removal.vm
        workflow.set_current_details(
            f"The snapshot `{request.removal.plan.name}` of **{vm.name}** must go.\n\n"
            f"Why it is still there: {request.reason}\n\n"
            "This is tried again without limit. Look at the VM in vCenter: a locked file, a disconnected host or "
            "a full datastore is the usual cause."
        )
        removal = await run_step(
            Snapshots.remove_snapshot,
            request.removal,
            summary="Step 13 · remove the snapshot (without limit)",
            queue=policies.ACCESS_NODES_QUEUE,
            policy=policies.REMOVAL_UNLIMITED,
        )
        workflow.upsert_search_attributes([policies.BACKUP_STATUS.value_set("Removed")])
        return removal
