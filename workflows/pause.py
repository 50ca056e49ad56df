"""Pause and resume. A paused job gives out no VM; a paused VM stops reading, and holds its snapshot for a while only.

What a VM has read stays in its session of the repository, so it goes on from there under the same snapshot. When the
pause outlasts the snapshot's limit the snapshot is removed (step 13), and the VM begins anew, from another one, when
it is resumed. What ends a backup (steps 12 to 14) is not paused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.vm import VmOptions
    from workflows import policies
    from workflows.markdown import stamp
    from workflows.vm_signals import tell_vm

ResultT = TypeVar("ResultT")

PAUSED_TOO_LONG = "PausedTooLong"
# Before it there were no such signals: a history in which one was ignored must replay without its effect.
PATCH = "pause-and-resume"


class VmPause:
    """One VM's pause. Steps that it cuts off must be such as can be run again."""

    def __init__(self, tell: Callable[[datetime | None, str], None]) -> None:
        """`tell` shows since when the VM is paused (None: it is not), and what becomes of its snapshot."""
        self._tell = tell
        self._scope: asyncio.Timeout | None = None
        self._held_since: datetime | None = None
        self.since: datetime | None = None

    def begin(self) -> None:
        """The signal `pause`: what is read is cut off. Once more changes nothing."""
        if self.since is not None or not workflow.patched(PATCH):
            return
        self.since = workflow.now()
        self._tell(self.since, "the step that is under way comes to its end, or to a point where it can stop")
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def end(self) -> None:
        """The signal `resume`. Without a pause it changes nothing."""
        if self.since is not None:
            self.since = None
            self._tell(None, "")

    @property
    def cuts_off(self) -> bool:
        """True when the steps were cut off: one that ignored that must not be followed by another."""
        return self._scope is not None and self._scope.expired()

    def completing(self) -> None:
        """Step 12 begins: from here the backup comes to its end, paused or not."""
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(None)
            self._scope = None

    async def before_snapshot(self, look: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run `look` while nobody has paused the VM: what it saw before a pause may be wrong after it."""
        while True:
            if self.since is not None:
                self._tell(self.since, "no snapshot is held")
                await workflow.wait_condition(lambda: self.since is None)
            found = await look()
            if self.since is None:
                return found

    async def through(self, steps: Callable[[], Coroutine[Any, Any, ResultT]], options: VmOptions) -> ResultT:
        """Run the steps to their end; a pause cuts them off, and they are run again when it is over.

        Raises ApplicationError of type PausedTooLong when the snapshot is not to be held any longer for the pause, and
        whatever the steps raise that has nothing to do with it.
        """
        self._held_since = workflow.now()
        task = asyncio.current_task()
        assert task is not None, "workflows run in tasks"
        asked_before = task.cancelling()
        while True:
            await self._hold_for_a_while(options)
            try:
                async with asyncio.timeout(None) as self._scope:
                    return await steps()
            except (FailureError, TimeoutError, asyncio.CancelledError) as error:
                # A cancel of the workflow, or the end of the snapshot's time, came too: that counts more.
                if not self.cuts_off or task.cancelling() > asked_before or not _gave_way(error):
                    raise
            finally:
                self._scope = None

    async def _hold_for_a_while(self, options: VmOptions) -> None:
        if self.since is None:
            return
        limit = self._limit(options)
        until = stamp(workflow.now() + limit)
        self._tell(self.since, f"the snapshot is held until {until}, and removed if the pause lasts longer")
        try:
            await workflow.wait_condition(
                lambda: self.since is None,
                timeout=limit,
                timeout_summary="until the snapshot is held no longer for this pause",
            )
        except TimeoutError:
            raise ApplicationError(
                f"the pause lasts longer than a snapshot is held for it, {limit.total_seconds():.0f} s "
                "(pause_hold_s of the VM group, and what is left of max_hold_s)",
                type=PAUSED_TOO_LONG,
                non_retryable=True,
            ) from None

    def _limit(self, options: VmOptions) -> timedelta:
        """How long the snapshot is held for this pause. Before max_hold_s is over: that would fail the VM."""
        assert self._held_since is not None, "the snapshot is there"
        held = workflow.now() - self._held_since
        left = timedelta(seconds=options.max_hold_s) - held - policies.PAUSE_ENDS_BEFORE_HOLD
        return max(timedelta(milliseconds=1), min(timedelta(seconds=options.pause_hold_s), left))

    @staticmethod
    def ran_out(error: BaseException) -> bool:
        """True when the snapshot was given up for the pause alone."""
        return isinstance(error, ApplicationError) and error.type == PAUSED_TOO_LONG


def _gave_way(error: BaseException) -> bool:
    """True when steps stopped because they were cut off, and not for a reason that would stop them again."""
    if isinstance(error, TimeoutError) or is_cancelled_exception(error):
        return True
    # A try that was asked to stop and failed otherwise is not repeated by the server. When the VM is resumed, it is.
    cause = error.cause if isinstance(error, ActivityError) else None
    return cause is not None and not (isinstance(cause, ApplicationError) and cause.non_retryable)


class JobPause:
    """A job's pause, and what its running VMs have still to be told of it."""

    def __init__(self) -> None:
        self.since: datetime | None = None
        self.has_news = False

    def carry_on(self, since: datetime | None) -> None:
        """Go on with what the job's earlier run knew; a signal that came between the two runs is newer."""
        if not self.has_news or (self.since is not None and since is not None):
            self.since = since

    def begin(self) -> None:
        """The signal `pause`. Once more changes nothing."""
        if workflow.patched(PATCH):
            self.since = self.since or workflow.now()
            self.has_news = True

    def end(self) -> None:
        """The signal `resume`: all VMs go on, also those that were paused by a signal of their own."""
        if workflow.patched(PATCH):
            self.since = None
            self.has_news = True

    @property
    def note(self) -> str:
        """What follows the name of the job's stage, for people; empty when it is not paused."""
        return "" if self.since is None else f", paused since {stamp(self.since)}"

    async def tell(self, children: Iterable[str]) -> None:
        """Tell the workflows of the running VMs, if there is news."""
        if not self.has_news:
            return
        self.has_news = False
        name = "pause" if self.since is not None else "resume"
        await asyncio.gather(*(tell_vm(child_id, name) for child_id in list(children)))
