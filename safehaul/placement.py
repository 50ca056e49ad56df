"""Which access node backs up which VM. Pure functions: the same answers and VMs give the same plan.

Static: the whole plan before the first VM starts, longest VM first onto the node that would finish it first
(the LPT rule for machines of different speed). Dynamic: one common queue, from which the job's ledger gives each
free stream its VM, to the node with the most power for each of its busy streams first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field

from safehaul.errors import InvalidInputError
from safehaul.messages.base import Message
from safehaul.messages.inventory import VmRecord
from safehaul.messages.job import (
    Excluded,
    NodeAnswer,
)
from safehaul.messages.plan import (
    PlannedVm,
)

VM_OVERHEAD_BYTES = 1 << 30
"""What a VM costs beside its bytes (snapshot, small files, index), as if it were bytes read. Without it a
thousand empty VMs would weigh nothing and all go to one node."""
CORES_PER_STREAM = 2.0
"""More cores than that do not make one stream faster: one reads, one hashes and compresses."""
STREAM_MEMORY_BYTES = 256 * 2**20
"""Memory that a stream may need; a node without it gets fewer streams than it offers."""
LEAST_POWER = 0.1
"""Of a node whose cores are all busy: it still gets on, slowly."""


class NodeOffer(Message):
    """What an access node answered when the coordinator initialised it (step 4)."""

    name: str
    cores: int = Field(ge=1)
    load: float = Field(default=0.0, ge=0)
    """Cores busy with other work: the one-minute load average."""
    free_streams: int = Field(ge=0)
    memory_available_bytes: int | None = Field(default=None, ge=0)
    """None: not known, no limit."""
    reachable_exports: tuple[str, ...] = ()
    """Names of the exports that this node has opened."""
    unreachable: dict[str, str] = Field(default_factory=dict)
    """Why it could not open others, by name."""

    @property
    def usable_streams(self) -> int:
        """Streams for which the node also has the memory; one at least if it has any stream free."""
        if self.memory_available_bytes is None or self.free_streams == 0:
            return self.free_streams
        return max(1, min(self.free_streams, self.memory_available_bytes // STREAM_MEMORY_BYTES))

    @property
    def power(self) -> float:
        """Speed relative to other nodes: idle cores, as far as the streams can use them."""
        return max(LEAST_POWER, min(self.cores - self.load, self.usable_streams * CORES_PER_STREAM))


class VmDemand(Message):
    """What matters of a VM for its placement."""

    vc_guid: str
    capacity_bytes: int = Field(ge=0)
    exports: tuple[str, ...] = ()
    """Names of all exports that hold its NAS disks and files; empty: any node will do."""

    @property
    def weight(self) -> int:
        """Work that the VM is, in bytes."""
        return self.capacity_bytes + VM_OVERHEAD_BYTES


class Unplaceable(Message):
    """A VM that no node can back up."""

    vc_guid: str
    reason: str


class NodePlan(Message):
    """A node's VMs, in the order in which it takes them."""

    node: str
    vc_guids: tuple[str, ...] = ()


class Plan(Message):
    """Where the VMs go. Every VM is in exactly one node's plan or in `unplaceable`."""

    nodes: tuple[NodePlan, ...]
    """One for every node that answered, by name."""
    unplaceable: tuple[Unplaceable, ...] = ()


@dataclass(frozen=True)
class Queue:
    """VMs in the order in which they are given out: to one node (static), or to whichever asks (`node` empty)."""

    node: str
    vms: list[PlannedVm]


@dataclass(frozen=True)
class Placement:
    """What step 5 makes of the nodes' answers. Every VM is in one queue, or unplaceable with the reason."""

    queues: list[Queue]
    unplaceable: list[Excluded]
    power: dict[str, float]
    """Speed of each node relative to the others."""


def place(
    records: Sequence[VmRecord], nodes: Sequence[NodeAnswer], nas_datastores: Collection[str], *, static: bool
) -> Placement:
    """Step 5: distribute discovered VMs, given in the group's order, to the nodes that were admitted.

    A VM needs a node that reaches all of its datastores among `nas_datastores` (keys of `DatastoreRef`); its disks
    elsewhere are skipped later, with their own reason. Dynamic: one common queue, in which each VM names the
    nodes that it may go to.

    Raises:
        InvalidInputError: a node or a VC.GUID is given twice.
    """
    wanted = frozenset(nas_datastores)
    offers, demands = _checked(
        (_offer(node) for node in nodes), (_demand(record, wanted) for record in records)
    )
    reach = _reach(offers, demands)
    by_guid = {record.vc_guid: record for record in records}
    planned = {
        vm.vc_guid: PlannedVm(
            vc_guid=vm.vc_guid,
            name=by_guid[vm.vc_guid].name,
            moref=by_guid[vm.vc_guid].moref,
            capacity_bytes=vm.capacity_bytes,
            nodes=reach[vm.exports] if len(reach[vm.exports]) < len(offers) else [],
        )
        for vm in demands
    }
    if static:
        plan = place_static(offers, demands)
        queues = [Queue(item.node, [planned[guid] for guid in item.vc_guids]) for item in plan.nodes]
        unplaceable = plan.unplaceable
    else:
        placeable, unplaceable = _divide(offers, demands, reach)
        queues = [Queue("", [planned[vm.vc_guid] for vm in placeable])]
    return Placement(
        queues=[queue for queue in queues if queue.vms],
        unplaceable=[
            Excluded(name=by_guid[item.vc_guid].name, vc_guid=item.vc_guid, reason=item.reason)
            for item in unplaceable
        ],
        power={offer.name: offer.power for offer in offers},
    )


def usable_streams(answer: NodeAnswer) -> int:
    """How many of the streams that a node offers it also has the memory for."""
    return _offer(answer).usable_streams


def place_static(nodes: Iterable[NodeOffer], vms: Iterable[VmDemand]) -> Plan:
    """Distribute all VMs. On each node they keep the order in which they were given.

    With every export reachable from everywhere, no node is loaded beyond
    `(total weight + (nodes - 1) * largest weight) / total power`, in weight per power.

    Raises:
        InvalidInputError: a node or a VM is given twice.
    """
    offers, given = _checked(nodes, vms)
    reach = _reach(offers, given)
    placeable, unplaceable = _divide(offers, given, reach)
    power = {offer.name: offer.power for offer in offers}
    load = dict.fromkeys(power, 0)
    chosen: dict[str, list[VmDemand]] = {name: [] for name in power}
    place = {vm.vc_guid: index for index, vm in enumerate(placeable)}
    for vm in sorted(placeable, key=lambda item: (-item.weight, item.vc_guid)):
        _, best = min(((load[name] + vm.weight) / power[name], name) for name in reach[vm.exports])
        load[best] += vm.weight
        chosen[best].append(vm)
    plans = [
        NodePlan(node=name, vc_guids=tuple(sorted((vm.vc_guid for vm in mine), key=place.__getitem__)))
        for name, mine in chosen.items()
    ]
    return Plan(nodes=tuple(plans), unplaceable=unplaceable)


def _offer(answer: NodeAnswer) -> NodeOffer:
    return NodeOffer(
        name=answer.node,
        cores=answer.cores,
        load=answer.load,
        free_streams=answer.streams,
        memory_available_bytes=answer.memory_bytes,
        reachable_exports=tuple(answer.reachable_datastores),
        unreachable=answer.unreachable,
    )


def _demand(record: VmRecord, nas_datastores: frozenset[str]) -> VmDemand:
    needed = tuple(sorted(nas_datastores.intersection(each.key for each in record.datastore_refs)))
    return VmDemand(vc_guid=record.vc_guid, capacity_bytes=record.capacity_bytes, exports=needed)


def _checked(nodes: Iterable[NodeOffer], vms: Iterable[VmDemand]) -> tuple[list[NodeOffer], list[VmDemand]]:
    """The nodes by name, so that the order of their answers does not matter, and the VMs as given."""
    offers, given = sorted(nodes, key=lambda offer: offer.name), list(vms)
    for what, names in (
        ("access node", [offer.name for offer in offers]),
        ("VC.GUID", [vm.vc_guid for vm in given]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            msg = f"{what} {twice[0]!r} is given more than once: a plan needs each once"
            raise InvalidInputError(msg)
    return offers, given


def _reach(offers: Iterable[NodeOffer], vms: Iterable[VmDemand]) -> dict[tuple[str, ...], list[str]]:
    """Which nodes reach all of a set of exports, for each set that some VM needs: few, however many VMs."""
    opened = [(offer.name, frozenset(offer.reachable_exports)) for offer in offers]
    return {
        exports: [name for name, own in opened if own.issuperset(exports)]
        for exports in {vm.exports for vm in vms}
    }


def _divide(
    offers: list[NodeOffer], vms: list[VmDemand], reach: dict[tuple[str, ...], list[str]]
) -> tuple[list[VmDemand], tuple[Unplaceable, ...]]:
    """VMs that at least one node reaches, and the others with the reason."""
    reasons = {exports: _why_not(offers, exports) for exports, names in reach.items() if not names}
    placeable = [vm for vm in vms if reach[vm.exports]]
    return placeable, tuple(
        Unplaceable(vc_guid=vm.vc_guid, reason=reasons[vm.exports]) for vm in vms if not reach[vm.exports]
    )


def _why_not(offers: list[NodeOffer], exports: tuple[str, ...]) -> str:
    if not offers:
        return "no access node answered"
    everywhere = {export for offer in offers for export in offer.reachable_exports}
    nowhere = sorted(set(exports) - everywhere)
    if nowhere:
        # Every node is kept out; one node's words for the first datastore say what to change.
        why = [offer.unreachable[nowhere[0]] for offer in offers if nowhere[0] in offer.unreachable]
        advice = why[0] if why else "check the export's rule and [[exports]]"
        return f"no access node reaches {', '.join(nowhere)}: {advice}"
    return f"no single access node reaches all of {', '.join(sorted(set(exports)))}, as the VM's disks need"
