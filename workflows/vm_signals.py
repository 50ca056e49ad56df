"""What a job tells the workflows of its VMs. One that has just ended hears nothing: its report is on the way."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.job import ChildRef, GoOnAt


async def tell_vm(child_id: str, signal: str, *given: Any) -> None:
    """Send a signal. Raises nothing but a cancel: the reconciliation sees what has become of a VM that is gone."""
    try:
        await workflow.get_external_workflow_handle(child_id).signal(signal, args=given)
    except FailureError as error:
        if is_cancelled_exception(error):
            raise
        workflow.logger.info("%s cannot be told %s: %s", child_id, signal, error)


async def go_on_at(child: ChildRef, where: GoOnAt) -> None:
    """The VM's node died: the other one that the ledger gives it."""
    await tell_vm(child.child_id, "go_on_at", where)


async def cancel_vm(child: ChildRef) -> None:
    """Cancel it; what it has stored is given up when it was so asked (`child.keep`)."""
    handle = workflow.get_external_workflow_handle(child.child_id)
    try:
        if not child.keep and workflow.patched("a-cancel-may-forget"):
            await handle.signal("cancel", {"keep": False})
        await handle.cancel()
    except (FailureError, ActivityError) as error:
        workflow.logger.info("%s cannot be cancelled: %s", child.child_id, error)
