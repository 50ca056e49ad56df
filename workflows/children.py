"""How a job talks to the workflows of its VMs, which may end at any moment."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.job import ChildRef, GoOnAt


async def tell(child_id: str, signal: str, *arg: Any) -> None:
    """Send a signal to one that may just have ended: its report is on the way, or the reconciliation will see it."""
    try:
        await workflow.get_external_workflow_handle(child_id).signal(signal, *arg)
    except FailureError as error:
        if is_cancelled_exception(error):
            raise
        workflow.logger.info("%s cannot be told to %s: %s", child_id, signal, error)


async def go_on_at(child: ChildRef, where: GoOnAt) -> None:
    """Its access node has died: this is the other one, or there is none."""
    await tell(child.child_id, "go_on_at", where)


async def cancel(child: ChildRef) -> None:
    """Cancel it; what it has stored is kept or given up as the child says."""
    handle = workflow.get_external_workflow_handle(child.child_id)
    try:
        if not child.keep and workflow.patched("a-cancel-may-forget"):
            await handle.signal("cancel", {"keep": False})
        await handle.cancel()
    except (FailureError, ActivityError) as error:
        # It has just ended: its report is on the way, or the reconciliation will see it.
        workflow.logger.info("%s cannot be cancelled: %s", child.child_id, error)
