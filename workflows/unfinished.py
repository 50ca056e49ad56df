"""What a VM has stored and not completed: later backups find it, or it is given up when its cancel says so."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.index import MediaAgentIndexing
    from safehaul.messages.steps import BackupSession, LeaveInput, VmRef
    from workflows import policies
    from workflows.steps import run_step


def keeps(raw: tuple[Any, ...]) -> bool:
    """Whether what was stored is kept, by what came with a signal or an update `cancel`: unless it says not to."""
    return not (len(raw) == 1 and isinstance(raw[0], dict) and raw[0].get("keep") is False)


class Unfinished:
    """The session of a VM that is not committed."""

    def __init__(self) -> None:
        self._session: BackupSession | None = None
        self.keep = True

    def opened(self, session: BackupSession) -> None:
        """Step 10: from now on something may be stored."""
        self._session = session

    def committed(self) -> None:
        """Step 12: it is a backup."""
        self._session = None

    async def leave(self, vm: VmRef) -> None:
        """List what is stored, or give it up. Raises nothing: no backup is lost when this cannot be done."""
        session, self._session = self._session, None
        if session is None or not workflow.patched("unfinished-is-left-to-others"):
            return
        # Reading back takes long, and must not keep the steps of other backups waiting; giving up is done at once.
        queue = policies.upkeep_queue if self.keep else policies.media_agent_queue
        try:
            await run_step(
                MediaAgentIndexing.leave_unfinished,
                LeaveInput(vm=vm, session_id=session.session_id, keep=self.keep),
                queue=queue(vm.media_agent),
                summary="Keep what was stored for later backups" if self.keep else "Give up what was stored",
                policy=policies.LEAVE,
            )
        except ActivityError as error:
            workflow.logger.warning(
                "what %s has stored is of no use to later backups: %s", vm.name, error.cause
            )
