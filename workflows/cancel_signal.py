"""How a signal becomes a cancel: a workflow cannot cancel itself, so an activity asks the server to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.commserve import CommServe
    from workflows import policies
    from workflows.steps import run_step


def cancelled_first(error: BaseException) -> BaseException:
    """What ends a VM whose step failed: its cancel, if that had been asked for before, with the failure as its cause.

    A step that is asked to stop may fail in its last try, be it only because it was not allowed another one.
    """
    if workflow.cancellation_reason() is None or is_cancelled_exception(error):
        return error
    if not workflow.patched("cancel-counts-first"):
        return error
    cancelled = asyncio.CancelledError()
    cancelled.__cause__ = error
    return cancelled


async def ask_for_cancel(reject: Callable[[str], None]) -> None:
    """Have the server cancel this workflow, so that it ends as Cancelled. `reject` shows why that is not done yet."""
    while True:
        try:
            await run_step(
                CommServe.request_cancel,
                workflow.info().workflow_id,
                summary="Cancel, as the signal asked",
                queue=policies.COMMSERVE_QUEUE,
                policy=policies.COMMSERVE,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            # Whoever asked for the cancel has been told that it comes: it is asked for until it does.
            reject(f"the cancel could not be asked for yet: {error.cause}"[:300])
        else:
            return
