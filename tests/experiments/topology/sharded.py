"""Candidate (b) of the job's topology, for measurement only: a tree of shards over the real BackupVm.

The job plans as BackupJob does, then starts one Shard for each `SHARD_VMS` VMs, all at once, and divides the nodes'
streams among them (one ledger over all shards would bring every VM back into one history). Children are ordinary
ones: their results come natively, a cancel cascades by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.base import Message
    from safehaul.messages.plan import (
        PlannedVm,
    )
    from safehaul.messages.vm import BackupVmInput, VmOptions
    from workflows import policies

SHARD_VMS = 250


class ShardInput(Message):
    """A shard's VMs, and the streams that it may use on each node."""

    job_id: str
    vms: list[PlannedVm]
    streams: dict[str, int]
    removal_handover_s: float = 20.0


class ShardResult(Message):
    """How a shard's VMs ended."""

    completed: int = 0
    failed: int = 0


@workflow.defn(name="Shard")
class Shard:
    """Some hundred VMs, one BackupVm each, as its own streams become free."""

    def __init__(self) -> None:
        self._result = ShardResult()

    @workflow.run
    async def run(self, shard: ShardInput) -> ShardResult:
        """Give VMs to free streams until none is left."""
        queue = list(reversed(shard.vms))
        workers = [
            self._stream(shard, node, queue)
            for node, count in sorted(shard.streams.items())
            for _ in range(count)
        ]
        await asyncio.gather(*workers)
        return self._result

    @workflow.signal(name="vm_finished")
    def vm_finished(self, *_raw: Any) -> None:
        """BackupVm signals its job; here the native result is what counts."""

    async def _stream(self, shard: ShardInput, node: str, queue: list[PlannedVm]) -> None:
        while queue:
            vm = queue.pop()
            try:
                await workflow.execute_child_workflow(
                    "BackupVm",
                    _vm_input(shard, vm, node),
                    id=f"{workflow.info().workflow_id}/{vm.vc_guid}",
                    task_queue=policies.COMMSERVE_QUEUE,
                    parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
                    static_summary=f"{vm.name} on {node}",
                )
            except ChildWorkflowError:
                if workflow.cancellation_reason() is not None:
                    raise
                self._result = self._result.model_copy(update={"failed": self._result.failed + 1})
            else:
                self._result = self._result.model_copy(update={"completed": self._result.completed + 1})


@workflow.defn(name="ShardedJob")
class ShardedJob:
    """The parent of the shards."""

    @workflow.run
    async def run(self, vms: int, streams: dict[str, int]) -> ShardResult:
        """Start the shards, wait for all, add up."""
        shards = -(-vms // SHARD_VMS)
        names = [
            PlannedVm(vc_guid=f"vc.{number:05d}", name=f"vm-{number:05d}", moref=f"vm-{number}")
            for number in range(vms)
        ]
        results: list[ShardResult] = await asyncio.gather(
            *(self._shard(number, shards, names, streams) for number in range(shards))
        )
        return ShardResult(
            completed=sum(item.completed for item in results), failed=sum(item.failed for item in results)
        )

    @workflow.signal(name="cancel")
    def cancel(self) -> None:
        """The measurement cancels through the server, as BackupJob's activity does."""

    async def _shard(
        self, number: int, shards: int, names: list[PlannedVm], streams: dict[str, int]
    ) -> ShardResult:
        share = {node: count // shards + (number < count % shards) for node, count in streams.items()}
        result: ShardResult = await workflow.execute_child_workflow(
            Shard.run,
            ShardInput(
                job_id=workflow.info().first_execution_run_id,
                vms=names[number * SHARD_VMS : (number + 1) * SHARD_VMS],
                streams=share,
            ),
            id=f"{workflow.info().workflow_id}/shard-{number}",
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
        )
        return result


def _vm_input(shard: ShardInput, vm: PlannedVm, node: str) -> BackupVmInput:
    return BackupVmInput(
        job_id=shard.job_id,
        job_workflow_id=workflow.info().workflow_id,
        vm_group="test",
        vcenter="vc",
        media_agent="ma",
        node=node,
        vc_guid=vm.vc_guid,
        name=vm.name,
        moref=vm.moref,
        installation_id="test",
        namespace_id="test",
        options=VmOptions(removal_handover_s=shard.removal_handover_s),
    )
