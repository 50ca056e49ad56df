"""How a VM's workflow tells its job of its end: step 15's request, and the report, as one signal."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.coordination import NodeCoordination
    from safehaul.messages.job import NodeRequest, VmFinished
    from safehaul.messages.steps import AskInput
    from safehaul.messages.vm import BackupVmInput, VmReport
    from workflows import policies
    from workflows.steps import run_step


async def ask_and_report(vm: BackupVmInput, node: str, report: VmReport) -> None:
    """Step 15: the node, dry again, asks for another VM; the request goes to the job with the VM's report."""
    request: NodeRequest | None = None
    try:
        request = await run_step(
            NodeCoordination.ask_for_vm,
            AskInput(job_id=vm.job_id, node=node),
            queue=policies.control_queue(node),
            summary="Step 15 · ask the coordinator for another VM",
            policy=policies.ASK,
        )
    except ActivityError as error:
        # A node that cannot even ask gets nothing more until it answers the job's ping.
        workflow.logger.warning("%s does not ask for another VM: %s", node, error.cause)
    finished = VmFinished(
        job_id=vm.job_id, child_id=workflow.info().workflow_id, report=report, request=request
    )
    try:
        await workflow.get_external_workflow_handle(vm.job_workflow_id).signal("vm_finished", finished)
    except FailureError as error:
        # The job is gone (terminated, or finished without us). What is stored stays, the snapshot is gone.
        workflow.logger.warning("job %s cannot be told of the end: %s", vm.job_workflow_id, error)
