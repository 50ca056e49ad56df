"""Starting, following and stopping the VMs' workflows for a job: the ledger's hands."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ChildWorkflowError,
    TerminatedError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as WorkflowTimeout
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.commserve import CommServe
    from activities.coordination import JobCoordination
    from safehaul.messages.job import (
        ChildRef,
        Excluded,
        GoOnAt,
        JobSettings,
        NodeLost,
        ReconcileInput,
        VmFinished,
    )
    from safehaul.messages.plan import (
        PageInput,
        PlannedVm,
    )
    from safehaul.messages.steps import RemovalInput, VmRef
    from safehaul.messages.vm import BackupVmInput, VmStatus
    from workflows import children, policies
    from workflows.coordinator import Coordinator
    from workflows.job_reports import report_of
    from workflows.job_signals import Mailbox
    from workflows.ledger import Gift, Ledger
    from workflows.nodes import ping
    from workflows.snapshot_guard import hand_over, plan_for, uninterrupted
    from workflows.steps import run_step, shown
    from workflows.vm_report import explain, unstarted_report


class VmRunner:
    """Does what the ledger decides."""

    def __init__(self, ledger: Ledger, mailbox: Mailbox, coordinator: Coordinator) -> None:
        self._ledger = ledger
        self._mailbox = mailbox
        self._coordinator = coordinator
        self._stuck_since: float | None = None
        self.coordinator_lost = False
        """True when the coordinator's node was found not to answer."""
        self.hindered: dict[str, str] = {}
        """What the running VMs wait for, by child id, as the last comparison with the server showed it."""
        self.not_started = 0
        """VMs that no node had been given when the job was stopped."""

    async def hand_out(self) -> None:
        """Load pages of the plan while a free stream wants them, and start a VM on every free stream.

        VMs whose node has died come first. Of a paused job nothing is given out; the pages are loaded all the same,
        since `cancel_vm` looks in them.
        """
        for child in self._ledger.rehome():
            await children.go_on_at(child, GoOnAt(node=child.node, moves=child.moves - 1))
        while (page := self._ledger.wanted_page()) is not None:
            await self._load(page)
        if self._mailbox.pause.since is not None:
            return
        # Step 16 — a node that has asked (step 15) is given another VM, which goes through steps 6 to 15.
        gifts = self._ledger.gifts()
        await asyncio.gather(*(self._start(gift) for gift in gifts))

    async def take_mail(self) -> None:
        """Deal with everything that came by signal: ends of VMs, and VMs to cancel.

        May absorb a cancel of the job while a removal is started: look at `workflow.cancellation_reason()` after.
        """
        self._mailbox.nudged = False
        await self._mailbox.pause.tell(self._ledger.state.running)
        while self._mailbox.to_cancel:
            await children.cancel(self._mailbox.to_cancel.pop(0))
        while self._mailbox.lost:
            await self._find_home(self._mailbox.lost.pop(0))
        while self._mailbox.inbox:
            await self._ended(self._mailbox.inbox.pop(0))

    def fail_at_once(self, items: list[Excluded]) -> None:
        """VMs that cannot be given to any node are Failed before anything is done to them."""
        for item in items:
            self._fail(PlannedVm(vc_guid=item.vc_guid, name=item.name, moref=""), item.reason)

    async def reconcile_for_ever(self, *, at_once: bool = False) -> None:
        """Every half minute: are the running children really running, and do lost nodes answer again?

        `at_once`: look at the children first. A run that was continued as new must, since runs may be shorter
        than the pause, and nothing tells it natively of the children that an earlier run started.
        """
        try:
            if at_once:
                await self._reconcile_children()
            while True:
                await workflow.sleep(
                    policies.RECONCILE_EVERY, summary="Until the VMs are compared with the server"
                )
                await self._reconcile_children()
                await self._look_for_lost_nodes()
        except ActivityError as error:
            if not is_cancelled_exception(error):
                raise
            raise asyncio.CancelledError from error  # the job has ended in the middle of a look

    async def stop_everything(self) -> None:
        """Cancel every running VM and wait until each has removed its snapshot and reported."""
        await uninterrupted(self._stop_everything())

    async def _stop_everything(self) -> None:
        state = self._ledger.state
        self.not_started = self._ledger.forget_waiting()
        deadline = workflow.time() + policies.CHILDREN_STOP_WITHIN.total_seconds()
        await self._cancel_all()
        while state.running and workflow.time() < deadline:
            try:
                await workflow.wait_condition(
                    lambda: self._mailbox.has_mail, timeout=policies.RECONCILE_EVERY
                )
            except TimeoutError:
                # A child that had only been asked for when the first cancel came did not exist yet.
                await self._reconcile_children()
                await self._cancel_all()
            await self.take_mail()
        for child in list(state.running.values()):
            reason = f"cancelled, but workflow {child.child_id} has not ended yet: look at it"
            self._ledger.ended(child.child_id, report_of(child, VmStatus.CANCELLED, reason), None)

    async def _cancel_all(self) -> None:
        keep, running = self._mailbox.keep, list(self._ledger.state.running.values())
        await asyncio.gather(*(children.cancel(child.model_copy(update={"keep": keep})) for child in running))

    async def _start(self, gift: Gift) -> None:
        info, vm = workflow.info(), gift.vm
        settings = self._settings
        # Run ids begin with their time: for a minute all have the same first digits, and a job whose workflow id is
        # used again so soon would take its predecessor's VMs for its own.
        mark = self._job_id[-12:] if workflow.patched("child-ids-end-in-chance") else self._job_id[:8]
        child_id = f"{info.workflow_id}/{mark}/{vm.vc_guid}"
        child = ChildRef(
            child_id=child_id,
            vc_guid=vm.vc_guid,
            name=vm.name,
            moref=vm.moref,
            node=gift.node,
            capacity_bytes=vm.capacity_bytes,
            given_by=gift.given_by,
            started_at=workflow.now(),
            nodes=vm.nodes,
        )
        self._ledger.started(child)
        try:
            handle = await workflow.start_child_workflow(
                "BackupVm",
                self._vm_input(child),
                id=child_id,
                task_queue=policies.COMMSERVE_QUEUE,
                # One run a VM and job, for ever: a job that was reset asks again for what has ended meanwhile.
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                parent_close_policy=ParentClosePolicy.ABANDON,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                static_summary=shown(f"{vm.name} on {gift.node}"),
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(policies.JOB_ID, self._job_id),
                        SearchAttributePair(policies.VM_NAME, vm.name),
                        SearchAttributePair(policies.VC_GUID, vm.vc_guid),
                        SearchAttributePair(policies.VM_GROUP, settings.vm_group),
                        SearchAttributePair(policies.ACCESS_NODE, gift.node),
                        SearchAttributePair(policies.BACKUP_STATUS, "Running"),
                    ]
                ),
                memo={"job": info.workflow_id, "vm": vm.name},
            )
        except WorkflowAlreadyStartedError:
            # After a reset: the child of this very job runs, and will report here; or it has ended, and the next
            # comparison with the server brings its report.
            return
        self._ledger.state.running[child_id] = child.model_copy(
            update={"first_run_id": handle.first_execution_run_id or ""}
        )
        handle.add_done_callback(lambda done: self._closed_natively(child_id, done))

    def _vm_input(self, child: ChildRef) -> BackupVmInput:
        settings = self._settings
        return BackupVmInput(
            job_id=self._job_id,
            job_workflow_id=workflow.info().workflow_id,
            vm_group=settings.vm_group,
            vcenter=settings.vcenter,
            media_agent=settings.media_agent,
            node=child.node,
            vc_guid=child.vc_guid,
            name=child.name,
            moref=child.moref,
            installation_id=settings.installation_id,
            namespace_id=settings.namespace_id,
            given_by=child.given_by,
            options=settings.options,
        )

    def _closed_natively(self, child_id: str, done: asyncio.Task[object]) -> None:
        """The server told this run of a child's close: only one that was ended from outside ran no code to report.

        Of all others the report is on its way, or the next comparison with the server finds it.
        """
        if done.cancelled():
            return
        error = done.exception()
        reported = any(item.child_id == child_id for item in self._mailbox.inbox)
        child = self._ledger.state.running.get(child_id)
        if child is None or reported or not isinstance(error, ChildWorkflowError):
            return
        if isinstance(error.cause, TerminatedError | WorkflowTimeout):
            self._without_report(child, f"its workflow ended without a report ({type(error.cause).__name__})")

    def _without_report(self, child: ChildRef, reason: str, status: VmStatus = VmStatus.FAILED) -> None:
        self._mailbox.inbox.append(
            VmFinished(
                job_id=self._job_id,
                child_id=child.child_id,
                report=report_of(child, status, reason),
                orphaned=True,
            )
        )

    async def _ended(self, finished: VmFinished) -> None:
        child = self._ledger.ended(finished.child_id, finished.report, finished.request)
        if child is None:
            return
        if finished.orphaned:
            await uninterrupted(self._remove_orphan(child, finished.report.reason))
        if finished.request is None or finished.request.node != child.node:
            await self._settle_node(child.node)

    async def _remove_orphan(self, child: ChildRef, reason: str) -> None:
        """A child that was terminated ran no clean-up: its snapshot's removal starts at once."""
        if not child.first_run_id:
            # The server does not know this workflow at all: it never ran, or its history is no longer kept.
            workflow.logger.error("%s is not known: look at the snapshots of %s", child.child_id, child.name)
            return
        vm = self._vm_input(child)
        await hand_over(
            RemovalInput(
                vm=VmRef(
                    job_id=self._job_id,
                    vcenter=vm.vcenter,
                    vc_guid=vm.vc_guid,
                    name=vm.name,
                    moref=vm.moref,
                    node=vm.node,
                    media_agent=vm.media_agent,
                ),
                plan=plan_for(vm, child.child_id, child.first_run_id),
            ),
            vm.vm_group,
            reason,
        )

    async def _find_home(self, lost: NodeLost) -> None:
        """A running child's node has died: the next free stream of another one is its. Asked again, told again."""
        child = self._ledger.state.running.get(lost.child_id)
        if child is None:
            return
        if lost.moves < child.moves:
            await children.go_on_at(child, GoOnAt(node=child.node, moves=lost.moves))
        elif lost.node == child.node:
            self._lose(child.node)
            self._ledger.lost_its_node(child.child_id, workflow.now())

    async def _settle_node(self, node: str) -> None:
        """A VM ended without its node's request: the node gets more only if it answers a ping."""
        if await ping(node) is not None:
            self._ledger.node_answers(node, asked=False)
        else:
            self._lose(node)

    def _lose(self, node: str) -> None:
        self.coordinator_lost = self.coordinator_lost or node == self._coordinator.name
        if not self._ledger.state.nodes[node].lost:
            self._coordinator.leave_out(f"{node}: stopped answering")
        self._ledger.node_lost(node)

    async def _reconcile_children(self) -> None:
        soon = workflow.now() - policies.RECONCILE_EVERY
        children = [child for child in self._ledger.state.running.values() if child.started_at < soon]
        if not children:
            return
        try:
            result = await run_step(
                CommServe.reconcile,
                ReconcileInput(job_id=self._job_id, children=children),
                summary=f"Compare {len(children)} running VMs with the server",
                queue=policies.COMMSERVE_QUEUE,
                policy=policies.COMMSERVE,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            # The next comparison comes in half a minute; the VMs do not depend on this one.
            workflow.logger.warning("the running VMs cannot be compared: %s", explain(error))
            return
        if self.hindered != result.hindered:
            self.hindered = result.hindered
            self._mailbox.nudge()
        waiting = {item.child_id for item in self._mailbox.inbox}
        for closed in result.closed:
            child = self._ledger.state.running.get(closed.child_id)
            if child is None or closed.child_id in waiting:
                continue
            if closed.report is not None:
                self._mailbox.inbox.append(
                    VmFinished(job_id=self._job_id, child_id=closed.child_id, report=closed.report)
                )
            else:
                cancelled = closed.status == "canceled"
                self._ledger.state.running[child.child_id] = child.model_copy(
                    update={"first_run_id": child.first_run_id or closed.first_run_id}
                )
                self._without_report(
                    child,
                    f"its workflow ended without a report ({closed.status})",
                    VmStatus.CANCELLED if cancelled else VmStatus.FAILED,
                )

    async def _look_for_lost_nodes(self) -> None:
        state = self._ledger.state
        lost = [node.name for node in state.nodes.values() if node.lost]
        for name in lost:
            if await ping(name) is not None:
                self._ledger.node_returns(name)
                self._mailbox.nudge()
        if self._mailbox.pause.since is not None:
            # Whoever pauses a job may do so to work on the nodes.
            self._stuck_since = None
            return
        await self._give_up_hopeless()
        if not self._ledger.stuck:
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or workflow.time()
        if workflow.time() - self._stuck_since >= policies.NODES_RETURN_WITHIN.total_seconds():
            await self._give_up_waiting()

    async def _give_up_hopeless(self) -> None:
        """The nodes that reach a VM's datastores did not come back: its snapshot is not held for them any longer."""
        for child in self._ledger.hopeless(workflow.now() - policies.NODES_RETURN_WITHIN):
            reason = (
                f"access node {child.node} stopped answering, and no other one that reaches its datastores answers: "
                "see their workers"
            )
            await children.go_on_at(child, GoOnAt(node="", moves=child.moves, reason=reason))

    async def _give_up_waiting(self) -> None:
        """The nodes did not come back: what only they could take is Failed."""
        if self._ledger.planning:
            return
        while (page := self._ledger.next_page()) is not None:
            await self._load(page)
        for vm in self._ledger.unservable():
            nodes = ", ".join(vm.nodes or sorted(self._ledger.state.nodes))
            self._fail(vm, f"no access node that reaches its datastores answers ({nodes}): see their workers")
        self._mailbox.nudge()

    async def _load(self, page: str) -> None:
        loaded = await self._coordinator.ask_surely(
            JobCoordination.load_page,
            lambda: PageInput(job_id=self._job_id, media_agent=self._settings.media_agent, name=page),
            f"Load a page of the plan ({self._ledger.waiting} VMs wait)",
        )
        self._ledger.loaded(page, loaded.vms)
        for vm in self._ledger.withdraw_unwanted():
            reason = "cancelled before it was started"
            self._ledger.record(unstarted_report(vm, VmStatus.CANCELLED, reason), vm.capacity_bytes)

    def _fail(self, vm: PlannedVm, reason: str) -> None:
        self._ledger.record(unstarted_report(vm, VmStatus.FAILED, reason), vm.capacity_bytes)

    @property
    def _settings(self) -> JobSettings:
        assert self._coordinator.settings is not None, "the job has been opened"
        return self._coordinator.settings

    @property
    def _job_id(self) -> str:
        return workflow.info().first_execution_run_id
