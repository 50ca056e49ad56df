"""Steps 1 to 5 of a job, and again by the successor of a coordinator that died."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.coordination import JobCoordination
    from activities.discovery import Discoverer
    from safehaul.messages.job import DiscoverInput, Discovery, DistributeInput, Excluded, JobSettings
    from safehaul.messages.plan import Plan
    from workflows import policies
    from workflows.coordinator import Coordinator
    from workflows.ledger import Ledger
    from workflows.vm_report import explain
    from workflows.vm_runner import VmRunner


class Planner:
    """Fills the ledger from the plans of the job's coordinators."""

    def __init__(
        self,
        coordinator: Coordinator,
        ledger: Ledger,
        runner: VmRunner,
        inline_group: dict[str, Any] | None,
        tell: Callable[[str], None],
    ) -> None:
        """`inline_group`: the VM group as it stood in the job's input, if it did; `tell` shows the job's stage."""
        self._inline_group = inline_group
        self.noteworthy: list[Excluded] = []
        self._coordinator = coordinator
        self._ledger = ledger
        self._runner = runner
        self._tell = tell

    async def plan(self, settings: JobSettings) -> None:
        """Steps 1 to 5; again with another coordinator when one dies before its plan is durable."""
        for _ in range(policies.COORDINATORS_TRIED):
            # Step 1
            self._tell("choosing a coordinator")
            await self._coordinator.choose()
            try:
                await self._plan_first(settings)
            except ActivityError as error:
                if not self._coordinator.is_lost(error):
                    raise
            else:
                return
            self._coordinator.leave_out(
                f"{self._coordinator.name}: stopped answering while the job was planned"
            )
        raise ApplicationError(
            f"{policies.COORDINATORS_TRIED} coordinators in turn stopped answering while the job was planned: "
            "see the access nodes' workers",
            type="ConnectionLostError",
            non_retryable=True,
        )

    async def follow_successor(self) -> None:
        """After the death of a coordinator: its successor does steps 1 to 5 for the VMs that nobody has begun.

        A successor that cannot plan leaves the plan of the first one in force.
        """
        if not self._ledger.waiting:
            return
        if self._runner.coordinator_lost and workflow.patched("successor-plans-anew"):
            self._runner.coordinator_lost = False
            # Steps 1 and 3
            await self._coordinator.presume_dead()
        if self._coordinator.lease.epoch == self._ledger.state.plan_epoch:
            return
        self._ledger.planning = True
        try:
            await self._plan_again(self._coordinator.known_settings)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self._coordinator.leave_out(f"{self._coordinator.name} could not plan anew: {explain(error)}")
        self._ledger.planning = False
        self._ledger.state.plan_epoch = self._coordinator.lease.epoch

    async def _plan_first(self, settings: JobSettings) -> None:
        # Step 2
        self._tell("discovering VMs")
        discovery = await self._discover(settings, "Step 2 · discover the VMs")
        self.noteworthy = discovery.noteworthy
        self._ledger.state.capacity_bytes = discovery.capacity_bytes
        # Step 3
        self._tell("taking the job's lease")
        await self._coordinator.take_lease()
        plan = await self._distribute(settings, discovery, f"Step 5 · distribute {discovery.vm_count} VMs")
        self._runner.fail_at_once([*discovery.failed, *plan.unplaceable])

    async def _plan_again(self, settings: JobSettings) -> None:
        # Step 2
        self._tell("discovering VMs again")
        discovery = await self._discover(settings, "Step 2 · discover the VMs again")
        plan = await self._distribute(
            settings, discovery, "Step 5 · distribute the VMs that nobody has begun"
        )
        self._runner.fail_at_once(plan.unplaceable)

    async def _discover(self, settings: JobSettings, summary: str) -> Discovery:
        job_id = workflow.info().first_execution_run_id
        return await self._coordinator.ask(
            Discoverer.discover,
            DiscoverInput(job_id=job_id, settings=settings, inline_group=self._inline_group),
            summary,
        )

    async def _distribute(self, settings: JobSettings, discovery: Discovery, summary: str) -> Plan:
        # Step 4
        self._tell("initialising the access nodes")
        admission = await self._coordinator.initialise_nodes(discovery)
        # Step 5
        self._tell("distributing the VMs")
        state = self._ledger.state
        plan: Plan = await self._coordinator.ask(
            JobCoordination.distribute,
            DistributeInput(
                job_id=workflow.info().first_execution_run_id,
                lease=self._coordinator.lease,
                settings=settings,
                discovery=discovery,
                nodes=admission.nodes,
                taken=self._ledger.taken(),
                report_pages=state.report_pages,
                earlier_pages=state.plan_pages,
            ),
            f"{summary} ({settings.distribution})",
        )
        self._ledger.open(admission.nodes, plan, self._coordinator.lease.epoch)
        return plan
