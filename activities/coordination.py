"""Steps 1, 3, 4, 5, 15 and 17: what the coordinator and the nodes do for the job as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from activities.beat import beat
from activities.catalog_rows import read_reports
from activities.disks import must_be_nas
from activities.errors import step
from activities.peers import Peers
from activities.records import (
    check_lease,
    no_longer_selected,
    read_plan_page,
    read_vm_pages,
    reported_guids,
    status_of,
    take_lease,
    write_job_report,
    write_nodes,
    write_plan_pages,
    write_report_page,
)
from safehaul import placement
from safehaul.errors import PolicyError, SafehaulError, TransientError
from safehaul.messages.inventory import DatastoreRef, NasVolume, VmRecord
from safehaul.messages.job import (
    Admission,
    AdmitInput,
    CloseJobInput,
    DistributeInput,
    JobReport,
    Lease,
    LeaseInput,
    NodeAnswer,
    NodeRequest,
    PingAnswer,
    PingInput,
    PrepareInput,
    ReportPageInput,
)
from safehaul.messages.plan import (
    PageInput,
    Plan,
    PlanPage,
    PlanQueue,
)
from safehaul.messages.steps import AskInput
from safehaul.vsphere import inventory
from safehaul.vsphere.datastores import find_volume

REPORT_ROWS = 200


class NodeCoordination:
    """What every access node answers on its own queue."""

    def __init__(self, peers: Peers, node: str, streams: int) -> None:
        self._peers = peers
        self._node = node
        self._streams = streams

    @step("ping")
    def ping(self, _arg: PingInput) -> PingAnswer:
        """Step 1: a sign of life with version, cores, load and streams. Changes nothing."""
        return PingAnswer(
            node=self._node,
            version=_version(),
            cores=_cores(),
            load=os.getloadavg()[0],
            streams=self._streams,
        )

    @step("prepare_node")
    def prepare_node(self, arg: PrepareInput) -> NodeAnswer:
        """Step 4: logs in to vCenter, opens the repository and every export that the job's datastores need.

        Answers with version, cores, load, memory, streams and the datastores that it reaches; those that it does
        not reach are problems, not errors. A second run looks again. Errors: vCenter or repository refuse.
        """
        vcenter = self._peers.vcenter(arg.settings.vcenter)
        self._peers.repository(arg.settings.media_agent)
        check_lease(self._peers.repository(arg.settings.media_agent), arg.lease)
        self._peers.spool(self._node).prepare()
        volumes = inventory.all_nas_volumes(vcenter)
        reachable: list[str] = []
        unreachable: dict[str, str] = {}
        may_return: list[str] = []
        for datastore in arg.needed_datastores:
            beat(datastore.key)
            problem = self._try_export(datastore, volumes)
            if problem is None:
                reachable.append(datastore.key)
                continue
            unreachable[datastore.key] = f"{self._node}: {problem}"
            if isinstance(problem, TransientError):
                may_return.append(datastore.key)
        return NodeAnswer(
            node=self._node,
            version=_version(),
            cores=_cores(),
            load=os.getloadavg()[0],
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            streams=self._streams,
            reachable_datastores=reachable,
            problems=list(unreachable.values()),
            unreachable=unreachable,
            may_return=may_return,
        )

    @step("ask_for_vm")
    def ask_for_vm(self, _arg: AskInput) -> NodeRequest:
        """Step 15: this node has nothing left in its own queue for the stream and asks for another VM.

        The answer is the node's recorded request; the job's ledger gives the VM (step 16). A second run asks
        again, which changes nothing.
        """
        return NodeRequest(
            node=self._node, free_streams=1, load=os.getloadavg()[0], asked_at=datetime.now(UTC)
        )

    def _try_export(self, datastore: DatastoreRef, volumes: Sequence[NasVolume]) -> SafehaulError | None:
        """Why the datastore cannot be read from here; None when it can."""
        try:
            volume = find_volume(volumes, datastore)
            must_be_nas(volume)
            with self._peers.open_export(volume) as export:
                export.free_bytes()  # one small call, however many VMs the datastore holds
        except SafehaulError as error:  # one unreachable export leaves the others usable: it is reported
            return error
        return None


class JobCoordination:
    """What the coordinator does on its own queue."""

    def __init__(self, peers: Peers, node: str) -> None:
        self._peers = peers
        self._node = node

    @step("take_lease")
    def take_lease(self, arg: LeaseInput) -> Lease:
        """Step 3: the job's process starts here by taking the job's lease, a put-if-absent object of the
        repository with the next epoch. Keyed by `holder`: a second run returns the same lease.
        """
        return take_lease(self._peers.repository(arg.settings.media_agent), arg, self._node)

    @step("admit_nodes")
    def admit_nodes(self, arg: AdmitInput) -> Admission:
        """Step 4: judges the nodes' answers: same version as the coordinator, and something reachable.

        Records the admitted nodes in the job's objects. Errors: no node is left; the lease was taken over.
        """
        repository = self._peers.repository(arg.settings.media_agent)
        check_lease(repository, arg.lease)
        left_out = list(arg.refusals)
        nodes: list[NodeAnswer] = []
        for answer in arg.answers:
            if answer.version != _version():
                left_out.append(f"{answer.node}: runs version {answer.version}, the coordinator {_version()}")
            else:
                streams = placement.usable_streams(answer)
                nodes.append(answer.model_copy(update={"streams": streams}))
                left_out += answer.problems
                if streams < answer.streams:
                    left_out.append(
                        f"{answer.node}: {answer.streams - streams} of {answer.streams} streams, for want of memory"
                    )
        if not nodes:
            raise PolicyError(
                f"no access node of VM group {arg.settings.vm_group!r} can take part: {'; '.join(left_out)}"
            )
        admission = Admission(nodes=_capped(nodes, arg.settings.max_streams), left_out=left_out)
        write_nodes(repository, arg.lease, admission)
        return admission

    @step("distribute")
    def distribute(self, arg: DistributeInput) -> Plan:
        """Step 5: distributes the VMs to the nodes that reach their datastores, dynamically or statically.

        A successor of a dead coordinator plans for the VMs that nobody has begun; one that was in the earlier plan
        and that the group no longer selects cannot be placed. The plan goes to the job's objects in pages; a second
        run writes new pages and returns those.
        """
        repository = self._peers.repository(arg.settings.media_agent)
        check_lease(repository, arg.lease)
        begun = {*arg.taken, *reported_guids(repository, arg.job_id, arg.report_pages)}
        selected = read_vm_pages(repository, arg.job_id, arg.discovery.pages)
        records = [record for record in selected if record.vc_guid not in begun]
        gone = no_longer_selected(repository, arg, {record.vc_guid for record in selected} | begun)
        volumes = inventory.all_nas_volumes(self._peers.vcenter(arg.settings.vcenter))
        placed = placement.place(
            records,
            arg.nodes,
            _nas_keys(records, volumes),
            static=arg.settings.distribution == "static",
        )
        queues = [
            PlanQueue(
                node=queue.node,
                pages=write_plan_pages(repository, arg.lease, queue.node, queue.vms),
                vm_count=len(queue.vms),
            )
            for queue in placed.queues
            if queue.vms
        ]
        return Plan(queues=queues, unplaceable=[*placed.unplaceable, *gone], power=placed.power)

    @step("load_page")
    def load_page(self, arg: PageInput) -> PlanPage:
        """Reads one page of the plan from the job's objects. Changes nothing."""
        return PlanPage(vms=read_plan_page(self._peers.repository(arg.media_agent), arg.job_id, arg.name))

    @step("write_reports")
    def write_reports(self, arg: ReportPageInput) -> None:
        """Makes a page of VM reports durable. Keyed by the page's name; a second run finds it written."""
        write_report_page(self._peers.repository(arg.media_agent), arg.job_id, arg.page, arg.reports)

    @step("close_job")
    def close_job(self, arg: CloseJobInput) -> JobReport:
        """Step 17: no VM is left; sums up the durable report pages and reports the job's result.

        The report is an object of the job in the repository, which the CommServe then reads; a second run
        returns the report that the first one wrote. Errors: the lease was taken over.
        """
        repository = self._peers.repository(arg.media_agent)
        if arg.lease is not None:
            check_lease(repository, arg.lease)
        vms, totals = read_reports(repository, arg.job_id, arg.pages)
        status, reason = status_of(arg, totals)
        troubled = sorted(vms, key=lambda vm: (vm.status == "Completed", vm.name))
        report = JobReport(
            job_id=arg.job_id,
            workflow_id=arg.workflow_id,
            vm_group=arg.vm_group,
            status=status,
            reason=reason,
            coordinator=self._node,
            lease_epoch=arg.lease.epoch if arg.lease else 0,
            distribution=arg.distribution,
            totals=totals,
            vms=troubled[:REPORT_ROWS],
            pages=arg.pages,
            left_out=arg.left_out,
            noteworthy=arg.noteworthy,
            started_at=arg.started_at,
            ended_at=datetime.now(UTC),
        )
        return write_job_report(repository, report)


def _nas_keys(records: Sequence[VmRecord], volumes: Sequence[NasVolume]) -> set[str]:
    """Keys of those of the VMs' datastores that are NAS."""
    nas = [volume for volume in volumes if volume.is_nas]
    morefs, names = {volume.moref for volume in nas}, {volume.datastore for volume in nas}
    needed = [each for record in records for each in record.datastore_refs]
    return {each.key for each in needed if (each.moref in morefs if each.moref else each.name in names)}


def _capped(nodes: list[NodeAnswer], max_streams: int | None) -> list[NodeAnswer]:
    """Give out the group's streams a round at a time until the group's limit is used up."""
    if max_streams is None:
        return nodes
    given = dict.fromkeys((node.node for node in nodes), 0)
    left = max_streams
    while left and any(given[node.node] < node.streams for node in nodes):
        for node in nodes:
            if left and given[node.node] < node.streams:
                given[node.node] += 1
                left -= 1
    return [node.model_copy(update={"streams": given[node.node]}) for node in nodes if given[node.node]]


def _version() -> str:
    return version("safehaul")


def _cores() -> int:
    return len(os.sched_getaffinity(0))
