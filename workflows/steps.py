"""How a workflow runs a step: one call, with every option said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows.policies import StepPolicy

SelfT = TypeVar("SelfT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

# The server refuses a summary of more than 400 bytes, and with it the workflow's task, for ever. Names come from
# vCenter, and a character may need two bytes more when it is written as JSON.
MAX_SUMMARY_BYTES = 180


@overload
async def run_step(
    method: Callable[[SelfT, InputT], Awaitable[ResultT]],
    arg: InputT,
    *,
    queue: str,
    summary: str,
    policy: StepPolicy,
) -> ResultT: ...


@overload
async def run_step(
    method: Callable[[SelfT, InputT], ResultT],
    arg: InputT,
    *,
    queue: str,
    summary: str,
    policy: StepPolicy,
) -> ResultT: ...


async def run_step(
    method: Callable[[Any, Any], Any], arg: Any, *, queue: str, summary: str, policy: StepPolicy
) -> Any:
    """Run the activity `method` on `queue` with the policy's time-outs; `summary` is shown in the web UI."""
    return await workflow.execute_activity_method(
        method,
        arg,
        task_queue=queue,
        summary=shown(summary),
        schedule_to_start_timeout=policy.schedule_to_start,
        start_to_close_timeout=policy.start_to_close,
        schedule_to_close_timeout=policy.schedule_to_close,
        heartbeat_timeout=policy.heartbeat,
        retry_policy=policy.retry,
        cancellation_type=policy.cancellation,
    )


def shown(text: str) -> str:
    """A line for the web UI that the server accepts, whatever names are in it."""
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable.encode("utf-8", "replace")[:MAX_SUMMARY_BYTES].decode("utf-8", "ignore")
