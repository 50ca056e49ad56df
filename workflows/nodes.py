"""How a workflow reaches an access node: is it there, and is it only busy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, TimeoutType, is_cancelled_exception
from temporalio.exceptions import TimeoutError as StepTimeout

with workflow.unsafe.imports_passed_through():
    from activities.coordination import NodeCoordination
    from safehaul.messages.job import PingAnswer, PingInput
    from workflows import policies
    from workflows.policies import StepPolicy
    from workflows.steps import run_step

SelfT = TypeVar("SelfT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


async def ping(node: str) -> PingAnswer | None:
    """A node's sign of life, or None within seconds. Temporal's own list of workers is no proof of life."""
    try:
        return await run_step(
            NodeCoordination.ping,
            PingInput(node=node),
            queue=policies.control_queue(node),
            summary=f"Step 1 · does {node} answer?",
            policy=policies.PING,
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        workflow.logger.info("%s does not answer: %s", node, error.cause)
        return None


async def run_on_node(
    node: str,
    method: Callable[[SelfT, InputT], ResultT],
    arg: InputT,
    *,
    summary: str,
    policy: StepPolicy,
    queue: str = "",
) -> ResultT:
    """Run a step on a node's control queue, or on `queue` of it; a busy node is waited for, a dead one is not.

    A task that nobody takes in time means that the node is dead only if it does not answer a ping either: the VMs
    of another job, or a restore, may hold all of its streams.
    """
    assert policy.schedule_to_start is not None, "a dead node must be noticed"
    patience = policy.schedule_to_start
    while True:
        try:
            return await run_step(
                method,
                arg,
                queue=queue or policies.control_queue(node),
                summary=summary,
                policy=replace(policy, schedule_to_start=patience),
            )
        except ActivityError as error:
            if not nobody_took_it(error) or not workflow.patched("busy-node-is-waited-for"):
                raise
            if await ping(node) is None:
                raise
        patience = min(2 * patience, policies.BUSY_NODE_ASKED_EVERY)


def nobody_took_it(error: BaseException) -> bool:
    """True when no worker took the step from its queue in time."""
    cause = error.cause if isinstance(error, ActivityError) else None
    return isinstance(cause, StepTimeout) and cause.type is TimeoutType.SCHEDULE_TO_START
