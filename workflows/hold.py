"""While a VM's snapshot is held: for how long, and while how much room is left (vmware-facts 15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.snapshot import Snapshots
    from safehaul.errors import PolicyError
    from safehaul.messages.steps import HoldInput
    from workflows import policies
    from workflows.nodes import fell_silent
    from workflows.steps import run_step
    from workflows.vm_report import explain

ResultT = TypeVar("ResultT")


class Hold:
    """Cuts steps 8 to 12 off when the snapshot may be held no longer, whatever they wait for then."""

    def __init__(self) -> None:
        self._timeout: asyncio.Timeout | None = None
        self._breach = ""

    @property
    def over(self) -> bool:
        """True when the steps were cut off: one that ignored that must not be followed by another."""
        return self._timeout is not None and self._timeout.expired()

    async def limit(
        self, held: HoldInput, steps: Coroutine[Any, Any, ResultT], queue: Callable[[], str]
    ) -> ResultT:
        """Run the steps under the VM group's limits. Raises PolicyError's ApplicationError when one is reached.

        `queue` says where the datastores can be looked at now.
        """
        if not workflow.patched("hold-is-limited"):
            return await steps
        limit_s = held.options.max_hold_s
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(limit_s) as self._timeout:
                if workflow.patched("room-is-watched"):
                    watch = asyncio.create_task(self._watch_room(held, queue))
                done = await steps
        except (FailureError, TimeoutError, asyncio.CancelledError) as error:
            cut_off = self._end(watch)
            if not cut_off or workflow.cancellation_reason() is not None:
                raise
            reason = self._breach or (
                f"the snapshot of VM {held.vm.name!r} was held for {limit_s:.0f} s, which is max_hold_s of its VM "
                "group: it is removed; what was stored serves the next job. See what took so long, or raise max_hold_s"
            )
            raise ApplicationError(reason, type=PolicyError.__name__, non_retryable=True) from error
        # Whatever the limits say now, the backup is stored.
        self._end(watch)
        return done

    def _end(self, watch: asyncio.Task[None] | None) -> bool:
        cut_off, self._timeout = self.over, None
        if watch is not None:
            watch.cancel()
        return cut_off

    async def _watch_room(self, held: HoldInput, queue: Callable[[], str]) -> None:
        """Looks now and then, also while the VM waits for a stream or its MediaAgent and no step of it runs."""
        while True:
            await workflow.sleep(
                policies.ROOM_LOOKED_AT_EVERY, summary="until the datastores are looked at again"
            )
            try:
                await _look(held, queue())
            except ActivityError as error:
                if is_cancelled_exception(error):
                    return
                cause = error.cause
                if isinstance(cause, ApplicationError) and cause.type == PolicyError.__name__:
                    self._breach = explain(error)
                    if self._timeout is not None:
                        self._timeout.reschedule(asyncio.get_running_loop().time())
                    return
                # vCenter or the node is away for a moment: the steps themselves notice, and there is a next look.
                workflow.logger.info("nobody could look at the datastores of %s: %s", held.vm.name, cause)


async def _look(held: HoldInput, queue: str) -> None:
    """On `queue`, else on any access node: the room is watched also when the VM's own one has just died."""
    summary = "While the snapshot is held · is there room for it?"
    try:
        await run_step(Snapshots.watch_snapshot, held, queue=queue, summary=summary, policy=policies.LOOK)
    except ActivityError as error:
        anyone = policies.ACCESS_NODES_QUEUE
        if queue == anyone or not fell_silent(error) or not workflow.patched("any-node-looks-at-the-room"):
            raise
        await run_step(Snapshots.watch_snapshot, held, queue=anyone, summary=summary, policy=policies.LOOK)
