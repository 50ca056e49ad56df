"""How a signal becomes a cancel: a workflow cannot cancel itself, so an activity asks the server to."""

from __future__ import annotations

from collections.abc import Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.commserve import CommServe
    from workflows import policies
    from workflows.steps import run_step


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
