"""The job's coordinator: chosen among nodes that answer (step 1), leased (step 3), replaced when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, TimeoutType, is_cancelled_exception
from temporalio.exceptions import TimeoutError as StepTimeout

with workflow.unsafe.imports_passed_through():
    from activities.commserve import CommServe
    from activities.coordination import JobCoordination, NodeCoordination
    from safehaul.messages.job import (
        Admission,
        AdmitInput,
        ChooseInput,
        Discovery,
        JobSettings,
        Lease,
        LeaseInput,
        NodeAnswer,
        PrepareInput,
    )
    from safehaul.messages.ledger import JobState
    from workflows import policies
    from workflows.nodes import ping
    from workflows.steps import run_step, shown
    from workflows.vm_report import explain

SelfT = TypeVar("SelfT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


class Coordinator:
    """Which node coordinates the job, and how to ask it."""

    def __init__(self) -> None:
        self.settings: JobSettings | None = None
        self.name = ""
        self.silent_nodes: list[str] = []
        self.left_out: list[str] = []
        self._lease: Lease | None = None
        self._replacing = asyncio.Lock()

    def resume(self, state: JobState) -> None:
        """Go on with the coordinator of the job's earlier run."""
        self.settings, self._lease, self.name = state.settings, state.lease, state.lease.coordinator
        self.silent_nodes, self.left_out = list(state.silent_nodes), list(state.left_out)

    @property
    def lease(self) -> Lease:
        """The lease of step 3."""
        assert self._lease is not None, "step 3 comes before this"
        return self._lease

    @property
    def leased(self) -> bool:
        """True once step 3 has been done."""
        return self._lease is not None

    async def choose(self) -> None:
        """Step 1: ping every node of the group; the CommServe chooses among those that answer."""
        settings = self.known_settings
        answers = await asyncio.gather(*(ping(node) for node in settings.access_nodes))
        choice = await run_step(
            CommServe.choose_coordinator,
            ChooseInput(
                job_id=workflow.info().first_execution_run_id,
                vm_group=settings.vm_group,
                asked=settings.access_nodes,
                answers=[answer for answer in answers if answer is not None],
            ),
            summary="Step 1 · choose the coordinator",
            queue=policies.COMMSERVE_QUEUE,
            policy=policies.COMMSERVE,
        )
        self.name = choice.coordinator
        self.silent_nodes = choice.silent_nodes
        self.leave_out(*(f"{node}: does not answer" for node in choice.silent_nodes))
        workflow.upsert_search_attributes([policies.ACCESS_NODE.value_set(self.name)])

    async def take_lease(self) -> None:
        """Step 3: the job's process starts on the coordinator; a successor's lease has a higher epoch."""
        info = workflow.info()
        self._lease = await self.ask(
            JobCoordination.take_lease,
            LeaseInput(
                job_id=info.first_execution_run_id,
                coordinator=self.name,
                holder=f"{self.name} {info.run_id} {workflow.uuid4()}",
                settings=self.known_settings,
            ),
            f"Step 3 · {self.name} takes the job's lease",
        )

    async def initialise_nodes(self, discovery: Discovery) -> Admission:
        """Step 4: every node that answered prepares itself; the coordinator admits those that are fit.

        A filer that answers none of them is waited for.
        """
        settings, job_id = self.known_settings, workflow.info().first_execution_run_id
        outcomes = await self._prepare_all(discovery)
        deadline = workflow.time() + policies.FILER_RETURNS_WITHIN.total_seconds()
        while (
            (away := _away(outcomes))
            and workflow.time() < deadline
            and workflow.patched("filer-is-waited-for")
        ):
            await workflow.sleep(
                policies.FILER_ASKED_EVERY,
                summary=shown(f"Step 4 · until the filer of {', '.join(away)} answers"),
            )
            outcomes = await self._prepare_all(discovery)
        admission = await self.ask(
            JobCoordination.admit_nodes,
            AdmitInput(
                job_id=job_id,
                lease=self.lease,
                settings=settings,
                answers=[outcome for outcome in outcomes if isinstance(outcome, NodeAnswer)],
                refusals=[outcome for outcome in outcomes if isinstance(outcome, str)],
            ),
            "Step 4 · admit the access nodes",
        )
        self.leave_out(*admission.left_out)
        return admission

    async def _prepare_all(self, discovery: Discovery) -> list[NodeAnswer | str]:
        nodes = [node for node in self.known_settings.access_nodes if node not in self.silent_nodes]
        return await asyncio.gather(
            *(
                _prepare(
                    PrepareInput(
                        job_id=workflow.info().first_execution_run_id,
                        node=node,
                        settings=self.known_settings,
                        datastores=discovery.datastores,
                        datastore_refs=discovery.datastore_refs,
                        lease=self.lease,
                    )
                )
                for node in nodes
            )
        )

    async def ask(self, method: Callable[[SelfT, InputT], ResultT], arg: InputT, summary: str) -> ResultT:
        """Run an activity on the coordinator's own queue."""
        return await run_step(
            method,
            arg,
            queue=policies.control_queue(self.name),
            summary=summary,
            policy=policies.COORDINATOR,
        )

    async def ask_surely(
        self, method: Callable[[SelfT, InputT], ResultT], make: Callable[[], InputT], summary: str
    ) -> ResultT:
        """As `ask`; when the coordinator died, the next one takes over the lease and is asked instead.

        When no node can take over, the CommServe does it: these steps need the repository alone, and neither a
        VM's report nor the job's end may be lost with the last access node. `make` gives the input anew for each
        coordinator: it may name the lease.
        """
        for _ in range(policies.COORDINATORS_TRIED):
            name = self.name
            try:
                return await self.ask(method, make(), summary)
            except ActivityError as error:
                if not self.is_lost(error):
                    raise
            if not await self._replace(name):
                break
        return await run_step(
            method,
            make(),
            queue=policies.COMMSERVE_QUEUE,
            summary=f"{summary} (no coordinator answers)",
            policy=policies.COMMSERVE,
        )

    async def _replace(self, lost: str) -> bool:
        """Steps 1 and 3 again; False when no node answers. One at a time: two callers may have met the same loss."""
        async with self._replacing:
            if self.name != lost:
                return True
            self.leave_out(f"{lost}: stopped answering while it coordinated the job")
            try:
                await self.choose()
                await self.take_lease()
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                if self.is_lost(error):
                    return True
                self.leave_out(f"no access node takes over: {explain(error)}")
                return False
            return True

    async def presume_dead(self) -> None:
        """The coordinator's node does not answer: the next one takes over now, not when it is needed."""
        await self._replace(self.name)

    def leave_out(self, *lines: str) -> None:
        """Remember who does not take part and why, each once."""
        self.left_out = list(dict.fromkeys([*self.left_out, *lines]))

    def is_lost(self, error: ActivityError) -> bool:
        """True when the failure means that the coordinator does not answer."""
        return isinstance(error.cause, StepTimeout) and error.cause.type in (
            TimeoutType.SCHEDULE_TO_START,
            TimeoutType.HEARTBEAT,
        )

    @property
    def known_settings(self) -> JobSettings:
        """The VM group as it was when the job opened."""
        assert self.settings is not None, "the job has been opened"
        return self.settings


async def _prepare(prepare: PrepareInput) -> NodeAnswer | str:
    try:
        return await run_step(
            NodeCoordination.prepare_node,
            prepare,
            queue=policies.control_queue(prepare.node),
            summary=f"Step 4 · {prepare.node} prepares itself",
            policy=policies.PREPARE,
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        return f"{prepare.node}: {explain(error)}"


def _away(outcomes: list[NodeAnswer | str]) -> list[str]:
    """Datastores that no node reaches, and that at least one may reach by waiting."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, NodeAnswer)]
    reached = {key for answer in answers for key in answer.reachable_datastores}
    return sorted({key for answer in answers for key in answer.may_return} - reached)
