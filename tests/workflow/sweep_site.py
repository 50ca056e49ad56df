"""A sweep over made-up VMs: the real workflow, the real proof and the real questions to Temporal; vCenter is a fake."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import temporalio.api.workflowservice.v1 as workflowservice
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.commserve import CommServe
from activities.peers import Peers
from activities.sweep import page_of
from activities.sweep_desk import SweepDesk
from safehaul.messages.inventory import SnapshotNode, VmState
from safehaul.messages.marker import SnapshotMarker
from safehaul.messages.snapshots import RemovalRecord
from safehaul.messages.steps import Removal, RemovalInput
from safehaul.messages.sweep import (
    OrphanInput,
    OrphanLook,
    Phantoms,
    PhantomsInput,
    SnapshotPage,
    SnapshotPageInput,
    SweepReport,
    SweptSnapshot,
    VmSnapshots,
)
from tests.workflow.conftest import THROTTLE
from tests.workflow.trivial import _defn
from workers.bootstrap import sandbox
from workflows import policies
from workflows.catalogue import WORKFLOWS

INSTALLATION = str(uuid.uuid4())
NOW = datetime.now(UTC)


class _Peers(Peers):
    """A configuration with two vCenters, and nothing to connect to."""

    def __init__(self, vcenters: tuple[str, ...]) -> None:
        known = {name: SimpleNamespace(name=name) for name in vcenters}
        settings: Any = SimpleNamespace(
            installation_id=INSTALLATION, vcenters=tuple(known.values()), vcenter=lambda name: known[name]
        )
        self.settings = settings


@dataclass
class SweepSite:
    """Fake vCenters, and what was asked of them: thread-safe."""

    namespace_id: str
    vcenters: dict[str, list[VmSnapshots]] = field(default_factory=lambda: {"vc": []})
    hooks: dict[str, Callable[[Any], object]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    removed: list[str] = field(default_factory=list)
    """Names of VMs of which a snapshot was removed."""
    blind: bool = False
    """True: nobody can tell how a VM was before the removal."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def marker(self, name: str, workflow_id: str, run_id: str, **changes: str) -> SnapshotMarker:
        """The marker of a snapshot that an execution made of the VM of that name."""
        fields = {
            "installation": INSTALLATION,
            "namespace": self.namespace_id,
            "workflow_id": workflow_id,
            "first_run_id": run_id,
            "vc_guid": f"vc.{name}",
        }
        return SnapshotMarker.model_validate(fields | changes)

    def add(
        self,
        name: str,
        *nodes: SnapshotNode | SnapshotMarker,
        vcenter: str = "vc",
        **fields: Any,
    ) -> VmSnapshots:
        """A VM that holds these snapshots; a marker stands for the snapshot that it says."""
        number = sum(len(vms) for vms in self.vcenters.values())
        made = [
            node
            if isinstance(node, SnapshotNode)
            else SnapshotNode(
                moref=f"snapshot-{number}-{at}",
                name=node.snapshot_name,
                description=node.text(),
                created=(NOW - timedelta(hours=1)).isoformat(),
            )
            for at, node in enumerate(nodes)
        ]
        given = {"moref": f"vm-{number:04}", "name": name, "vc_guid": f"vc.{name}", "snapshots": made}
        vm = VmSnapshots.model_validate(given | fields)
        self.vcenters.setdefault(vcenter, []).append(vm)
        return vm

    def snapshots(self) -> set[str]:
        """`VM/moref` of all that are there."""
        return {
            f"{vm.name}/{node.moref}" for vms in self.vcenters.values() for vm in vms for node in vm.snapshots
        }

    def did(self, name: str, arg: Any) -> None:
        """Note a call, and run the test's hook for it."""
        with self.lock:
            self.calls[name] += 1
        if name in self.hooks:
            self.hooks[name](arg)

    def _vm(self, vcenter: str, moref: str) -> tuple[int, VmSnapshots]:
        vms = self.vcenters[vcenter]
        return next((at, vm) for at, vm in enumerate(vms) if vm.moref == moref)

    @_defn("list_snapshots")
    def list_snapshots(self, arg: SnapshotPageInput) -> SnapshotPage:
        self.did("list_snapshots", arg)
        return page_of(self.vcenters[arg.vcenter], arg, datetime.now(UTC))

    @_defn("look_at_orphan")
    def look_at_orphan(self, arg: OrphanInput) -> OrphanLook:
        self.did("look_at_orphan", arg)
        _, vm = self._vm(arg.vm.vcenter, arg.vm.moref)
        node = next((each for each in vm.snapshots if each.name == arg.plan.name), None)
        state = VmState(moref=vm.moref, consolidation_needed=False)
        return OrphanLook(
            there=node is not None,
            created=node.created if node else "",
            before=None if self.blind else state,
        )

    @_defn("find_phantom_deltas")
    def find_phantom_deltas(self, arg: PhantomsInput) -> Phantoms:
        self.did("find_phantom_deltas", arg)
        return Phantoms(findings=[], vms=len(self.vcenters[arg.vcenter]), looked=arg.limit)

    @_defn("remove_snapshot")
    def remove_snapshot(self, arg: RemovalInput) -> Removal:
        self.did("remove_snapshot", arg)
        at, vm = self._vm(arg.vm.vcenter, arg.vm.moref)
        ours = [
            each
            for each in vm.snapshots
            if (each.name, each.description) == (arg.plan.name, arg.plan.description)
        ]
        others = [each for each in vm.snapshots if each not in ours]
        with self.lock:
            self.removed.append(vm.name)
            self.vcenters[arg.vm.vcenter][at] = vm.model_copy(update={"snapshots": others})
        record = RemovalRecord(
            vm_moref=vm.moref,
            name=arg.plan.name,
            description=arg.plan.description,
            morefs=[each.moref for each in ours],
            started_at=datetime.now(UTC).isoformat(),
            finished_at=datetime.now(UTC).isoformat(),
            tree_before=vm.snapshots,
            tree_after=others,
            consolidation_needed_before=False,
            consolidation_needed_after=False,
            files_checked=arg.before is not None,
        )
        return Removal(gone=True, moref=arg.moref, record=record.model_dump(mode="json"))

    def looks(self) -> list[Callable[..., Any]]:
        """The steps of the queue `access-nodes` but the removal."""
        return [self.list_snapshots, self.look_at_orphan, self.find_phantom_deltas]

    def questions(self, client: Client, desk: type[SweepDesk] = SweepDesk) -> list[Callable[..., Any]]:
        """The steps of the queue `commserve`, the real ones."""
        asking = desk(_Peers(tuple(self.vcenters)), client)
        return [asking.open_sweep, asking.look_up_owners, asking.cancel_jobless_vms]


async def site_of(client: Client) -> SweepSite:
    """A site in the test server's own namespace."""
    answer = await client.workflow_service.describe_namespace(
        workflowservice.DescribeNamespaceRequest(namespace=client.namespace)
    )
    return SweepSite(namespace_id=answer.namespace_info.id)


@asynccontextmanager
async def sweeping(
    client: Client, site: SweepSite, desk: type[SweepDesk] = SweepDesk, *, sandboxed: bool = True
) -> AsyncIterator[None]:
    """CommServe and any access node. Without the sandbox a test's changes of `workflows.policies` take effect."""
    commserve = CommServe(_Peers(()), client)
    with ThreadPoolExecutor(8) as threads:
        async with (
            Worker(
                client,
                task_queue=policies.COMMSERVE_QUEUE,
                workflows=WORKFLOWS,
                activities=[*site.questions(client, desk), commserve.request_cancel],
                workflow_runner=sandbox() if sandboxed else UnsandboxedWorkflowRunner(),
            ),
            Worker(
                client,
                task_queue=policies.ACCESS_NODES_QUEUE,
                activities=[*site.looks(), site.remove_snapshot],
                activity_executor=threads,
                max_concurrent_activities=8,
                max_heartbeat_throttle_interval=THROTTLE,
                default_heartbeat_throttle_interval=THROTTLE,
            ),
        ):
            yield


async def start(client: Client, *args: Any) -> WorkflowHandle[Any, Any]:
    """Start a sweep."""
    return await client.start_workflow(
        "SweepSnapshots", args=list(args), id=f"sweep-{uuid.uuid4()}", task_queue=policies.COMMSERVE_QUEUE
    )


async def sweep(client: Client, **request: Any) -> SweepReport:
    """The report of a sweep that ends well."""
    return SweepReport.model_validate(await (await start(client, request)).result())


async def failed_sweep(client: Client, **request: Any) -> tuple[str, SweepReport]:
    """Why a sweep failed, and its report."""
    with pytest.raises(WorkflowFailureError) as failed:
        await (await start(client, request)).result()
    cause = failed.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "SweepIncomplete", cause
    return cause.message, SweepReport.model_validate(cause.details[0])


async def owner(client: Client, workflow_id: str = "") -> WorkflowHandle[Any, Any]:
    """An execution that runs for ever, as a BackupVm seems to: nobody takes its tasks."""
    return await client.start_workflow(
        "BackupVm", id=workflow_id or f"owner-{uuid.uuid4()}", task_queue=f"nobody-{uuid.uuid4()}"
    )


def run_of(handle: WorkflowHandle[Any, Any]) -> str:
    """The first run's id."""
    assert handle.first_execution_run_id is not None
    return handle.first_execution_run_id


def by_vm(report: SweepReport) -> dict[str, SweptSnapshot]:
    """What became of our snapshot of each VM."""
    return {item.vm_name: item for item in report.snapshots}
