"""The access node of one VM: its steps run there, and go on on another one when it dies.

The job's ledger gives the other node, because it knows who has a free stream and reaches the VM's datastores: the
VM's workflow asks by the signal `node_lost` and is answered by `go_on_at`. The snapshot and the repository's session
stay the same, so that nothing which is durable is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.job import GoOnAt, NodeLost
    from safehaul.messages.steps import VmRef
    from safehaul.messages.vm import BackupVmInput
    from workflows import policies
    from workflows.inputs import describe
    from workflows.nodes import fell_silent, run_on_node
    from workflows.policies import StepPolicy
    from workflows.steps import run_step
    from workflows.vm_report import VmStory, explain

SelfT = TypeVar("SelfT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


class VmNode:
    """Which access node the VM is on, and how its steps get to another one."""

    def __init__(self, story: VmStory) -> None:
        self._story = story
        self._vm: BackupVmInput | None = None
        self.name = ""
        self.dead = False
        """True from the moment at which it did not answer until another one is given."""
        self.unheard_at: datetime | None = None
        """Since when a try of the snapshot's creation is known that nobody heard of: it may ask vCenter yet."""
        self._death: ActivityError | None = None
        self._moves = 0
        self._answer: GoOnAt | None = None

    def begin(self, vm: BackupVmInput) -> None:
        """The node that the job has chosen."""
        self._vm, self.name = vm, vm.node

    @property
    def vm(self) -> VmRef:
        """The VM as its steps take it, with the node that it is on now."""
        assert self._vm is not None, "begin() comes first"
        return VmRef(
            job_id=self._vm.job_id,
            vcenter=self._vm.vcenter,
            vc_guid=self._vm.vc_guid,
            name=self._vm.name,
            moref=self._vm.moref,
            node=self.name,
            media_agent=self._vm.media_agent,
        )

    @property
    def queue(self) -> str:
        """Where a step of this VM that any node can do is done now: on its own node, or on any while that is dead."""
        return policies.ACCESS_NODES_QUEUE if self.dead else policies.control_queue(self.name)

    async def run(
        self,
        method: Callable[[SelfT, InputT], ResultT],
        arg: InputT,
        *,
        summary: str,
        policy: StepPolicy,
        queue: str = "",
    ) -> ResultT:
        """Run a step on the node. An ActivityError after which `dead` is true means that the node died."""
        assert self._vm is not None, "begin() comes first"
        try:
            return await run_on_node(
                self.name,
                method,
                arg,
                summary=summary,
                policy=policy,
                queue=queue,
                dead_after_s=self._vm.options.node_dead_after_s,
            )
        except ActivityError as error:
            if fell_silent(error):
                self.dead, self._death = True, error
            raise

    async def run_anywhere(
        self,
        method: Callable[[SelfT, InputT], ResultT],
        arg: InputT,
        *,
        summary: str,
        policy: StepPolicy,
    ) -> ResultT:
        """Run a step that any node can do: on this VM's own one, and through the common queue when that is dead."""
        try:
            return await self.run(method, arg, summary=summary, policy=policy)
        except ActivityError:
            if not self.dead or not workflow.patched("any-node-does-it"):
                raise
        summary = f"{summary} ({self.name} does not answer)"
        return await run_step(method, arg, queue=policies.ACCESS_NODES_QUEUE, summary=summary, policy=policy)

    async def wherever(self, steps: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Do the steps, and all of them again on another node each time that this one dies.

        They must be repeatable: a pause may have cut them off, too. Raises what they raise, or the node's death when
        the job has no other node.
        """
        while True:
            if self.dead and self._death is not None:
                await self._move(self._death)
            try:
                return await steps()
            except ActivityError:
                if not self.dead or not workflow.patched("vm-goes-on-elsewhere"):
                    raise

    def go_on_at(self, raw: tuple[Any, ...]) -> None:
        """The job's answer; what is malformed, or answers an earlier question, is shown or dropped, never raised."""
        try:
            answer = GoOnAt.model_validate(raw[0] if raw else None)
        except ValidationError as error:
            self._story.reject(f"signal go_on_at: {describe(error)[:200]}")
            return
        if answer.moves == self._moves:
            self._answer = answer

    async def _move(self, error: ActivityError) -> None:
        """Wait for another node. Raises ApplicationError when there is none, `error` when the job has gone."""
        assert self._vm is not None, "begin() comes first"
        lost = NodeLost(
            job_id=self._vm.job_id,
            child_id=workflow.info().workflow_id,
            node=self.name,
            moves=self._moves,
        )
        with self._story.waiting(f"{self.name} does not answer: waiting for another access node"):
            while self._answer is None:
                await self._ask(lost, error)
                try:
                    await workflow.wait_condition(
                        lambda: self._answer is not None,
                        timeout=policies.ANOTHER_NODE_ASKED_EVERY,
                        timeout_summary="until the job gives another access node",
                    )
                except TimeoutError:
                    workflow.logger.info("%s has no other access node yet", lost.child_id)
        answer, self._answer = self._answer, None
        self._moves += 1
        if not answer.node:
            raise ApplicationError(answer.reason, type="NodeLost", non_retryable=True) from error
        self._story.moved(self.name, answer.node, explain(error))
        self.name, self.dead = answer.node, False
        workflow.upsert_search_attributes([policies.ACCESS_NODE.value_set(self.name)])

    async def _ask(self, lost: NodeLost, error: ActivityError) -> None:
        assert self._vm is not None, "begin() comes first"
        job = workflow.get_external_workflow_handle(self._vm.job_workflow_id)
        try:
            await job.signal("node_lost", lost)
        except FailureError as gone:
            # It was terminated, or ended without us: nobody counts streams any more.
            workflow.logger.warning("job %s cannot be asked for a node: %s", self._vm.job_workflow_id, gone)
            raise error from gone
