"""How a workflow reaches an access node: is it there, is it only busy, or is it dead."""

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
    from safehaul.messages.vm import NODE_DEAD_AFTER_S
    from workflows import policies
    from workflows.policies import StepPolicy
    from workflows.steps import run_step

SelfT = TypeVar("SelfT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


async def ping(node: str, policy: StepPolicy = policies.PING) -> PingAnswer | None:
    """A node's sign of life, or None within seconds. Temporal's own list of workers is no proof of life."""
    try:
        return await run_step(
            NodeCoordination.ping,
            PingInput(node=node),
            queue=policies.control_queue(node),
            summary=f"Step 1 · does {node} answer?",
            policy=policy,
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
    dead_after_s: float = NODE_DEAD_AFTER_S,
) -> ResultT:
    """Run a step on a node's control queue, or on `queue` of it; a busy node is waited for, a dead one is not.

    A task that nobody takes in time, or whose heartbeats stop, means that the node is dead only if it does not answer a
    ping either: the VMs of another job, or a restore, may hold all of its streams, and a worker that was started again
    begins the step anew. A dead node's step fails within `dead_after_s` with an error of which `fell_silent` is true.
    """
    policy = policies.noticing(policy, dead_after_s)
    assert policy.schedule_to_start is not None, "a dead node must be noticed"
    patience, hung = policy.schedule_to_start, 0
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
            if nobody_took_it(error):
                known = workflow.patched("busy-node-is-waited-for")
                patience = min(2 * patience, policies.BUSY_NODE_ASKED_EVERY)
            else:
                hung += 1
                known = (
                    fell_silent(error)
                    and hung < policies.HUNG_STEP_TRIES
                    and workflow.patched("silent-node-is-asked")
                )
            if not known or await ping(node, policies.pinging(dead_after_s)) is None:
                raise


def nobody_took_it(error: ActivityError) -> bool:
    """True when no worker took the step from its queue in time."""
    return isinstance(error.cause, StepTimeout) and error.cause.type is TimeoutType.SCHEDULE_TO_START


def fell_silent(error: ActivityError) -> bool:
    """True when no worker took the step in time, or the one that did was not heard of any more."""
    return isinstance(error.cause, StepTimeout) and error.cause.type in (
        TimeoutType.SCHEDULE_TO_START,
        TimeoutType.HEARTBEAT,
    )
