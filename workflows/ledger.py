"""The coordinator's ledger: who runs where, which streams are free, what is still to give. Pure and deterministic.

A VM is given only to a node with a free stream, so that a task nobody takes means a dead node. At the start each
node's streams are filled from the plan; after that a stream is filled only when the node asks (step 15).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from safehaul.errors import IntegrityError
from safehaul.messages.job import (
    ChildRef,
    NodeAnswer,
    NodeRequest,
)
from safehaul.messages.ledger import LedgerState, NodeLedger, QueueLedger
from safehaul.messages.plan import (
    Plan,
    PlannedVm,
)
from safehaul.messages.vm import VmReport

RECENT_REPORTS = 10
MAX_UNWANTED = 1000


@dataclass(frozen=True)
class Gift:
    """A VM that a node is to be given now."""

    vm: PlannedVm
    node: str
    given_by: str


class Ledger:
    """Accounts of nodes, queues and running VMs over a `LedgerState` that survives continue-as-new."""

    def __init__(self, state: LedgerState | None = None) -> None:
        self.state = state or LedgerState()
        self.planning = False
        """True while a successor plans anew: what waits must not be changed meanwhile."""

    def open(self, nodes: list[NodeAnswer], plan: Plan, epoch: int = 1) -> None:
        """Start the accounts from the admitted nodes and the plan, or go on with a successor's.

        A node that was not admitted again counts as lost until it answers; VMs that run go on where they are.
        """
        for node in self.state.nodes.values():
            node.lost, node.credits = True, 0
        for answer in nodes:
            earlier = self.state.nodes.get(answer.node)
            self.state.nodes[answer.node] = NodeLedger(
                name=answer.node,
                streams=answer.streams,
                credits=answer.streams,
                asked=earlier is not None and earlier.asked,
                power=plan.power.get(answer.node, 1.0),
            )
            self.node_returns(answer.node)
        self.state.plan_pages = [page for queue in plan.queues for page in queue.pages]
        self.state.plan_epoch = epoch
        self.state.queues = [
            QueueLedger(node=queue.node, pages=list(queue.pages), unloaded_count=queue.vm_count)
            for queue in plan.queues
        ]

    @property
    def waiting(self) -> int:
        """VMs that no node has been given yet."""
        return sum(len(queue.pending) + queue.unloaded_count for queue in self.state.queues)

    @property
    def finished(self) -> bool:
        """True when nothing waits and nothing runs."""
        return not self.waiting and not self.state.running

    @property
    def stuck(self) -> bool:
        """True while VMs wait, none runs on a node, and a lost node could be the one to take them."""
        lost = any(node.lost for node in self.state.nodes.values())
        return bool(self.waiting) and len(self.state.running) == len(self.state.homeless) and lost

    def wanted_page(self) -> str | None:
        """The name of a page to load: of the first queue from which a node with a free stream gets nothing."""
        for queue in self.state.queues:
            if not queue.pages:
                continue
            for node in self._free_nodes():
                if self._serves(queue, node) and self._choose(queue, node) is None:
                    return queue.pages[0]
        return None

    def loaded(self, page: str, vms: list[PlannedVm]) -> None:
        """A page of the plan has come. Raises IntegrityError when the last one leaves fewer VMs than were planned.

        Else the job would wait for ever for the VMs that are missing, or end Completed without them.
        """
        for queue in self.state.queues:
            if queue.pages and queue.pages[0] == page:
                queue.pages.pop(0)
                queue.pending.extend(vms)
                queue.unloaded_count -= len(vms)
                if not queue.pages and queue.unloaded_count:
                    raise IntegrityError(
                        f"the pages of the plan hold {abs(queue.unloaded_count)} VMs "
                        f"{'fewer' if queue.unloaded_count > 0 else 'more'} than were planned (last page {page})"
                    )
                return

    def waiting_like(self, wanted: str) -> list[PlannedVm]:
        """VMs of that name or VC.GUID that wait in the pages loaded so far."""
        return [vm for queue in self.state.queues for vm in queue.pending if wanted in (vm.vc_guid, vm.name)]

    def withdraw(self, vm: PlannedVm) -> None:
        """The waiting VM is given to nobody."""
        for queue in self.state.queues:
            if vm in queue.pending:
                queue.pending.remove(vm)

    def taken(self) -> list[str]:
        """VC.GUIDs of the VMs that run, or have ended and stand in no page of reports yet."""
        running = [child.vc_guid for child in self.state.running.values()]
        return [*running, *(report.vc_guid for report in self.state.unwritten)]

    def unwant(self, wanted: str) -> bool:
        """Remember a VM that may come with a page still to load; False when there is none, or no more room."""
        if (self.next_page() is None and not self.planning) or len(self.state.unwanted) >= MAX_UNWANTED:
            return False
        self.state.unwanted.append(wanted)
        return True

    def withdraw_unwanted(self) -> list[PlannedVm]:
        """Take out the loaded VMs that had been cancelled before their page came."""
        if not self.state.unwanted:
            return []
        found = [vm for wanted in self.state.unwanted for vm in self.waiting_like(wanted)]
        for vm in found:
            self.withdraw(vm)
        self.state.unwanted = [
            wanted
            for wanted in self.state.unwanted
            if not any(wanted in (vm.vc_guid, vm.name) for vm in found)
        ]
        return found

    def gifts(self) -> list[Gift]:
        """Give VMs to free streams; credits are taken.

        The node with the most power for each of its busy streams is served first, so that a strong node gets more
        VMs than a weak one while there are fewer VMs than streams.
        """
        given: list[Gift] = []
        busy = self._busy()
        while True:
            hungry = sorted(self._free_nodes(), key=lambda node: -node.power / (busy[node.name] + 1))
            gift = next((gift for gift in map(self._give, hungry) if gift is not None), None)
            if gift is None:
                return given
            given.append(gift)
            busy[gift.node] += 1

    def started(self, child: ChildRef) -> None:
        """A child runs on its node."""
        self.state.running[child.child_id] = child

    def lost_its_node(self, child_id: str, now: datetime) -> None:
        """A running child's node has died, and it waits for another one. Its stream there went with the node."""
        self.state.homeless.setdefault(child_id, now)

    def rehome(self) -> list[ChildRef]:
        """Give free streams to children whose node has died, the longest waiting first; they come before new VMs,
        because they hold a snapshot. Returns them with their new node.
        """
        placed: list[ChildRef] = []
        for child_id in sorted(self.state.homeless, key=lambda item: (self.state.homeless[item], item)):
            child = self.state.running[child_id]
            busy = self._busy()
            free = [node for node in self._free_nodes() if not child.nodes or node.name in child.nodes]
            if not free:
                continue
            node = min(free, key=lambda item: -item.power / (busy[item.name] + 1))
            node.credits -= 1
            del self.state.homeless[child_id]
            moved = child.model_copy(update={"node": node.name, "moves": child.moves + 1})
            self.state.running[child_id] = moved
            placed.append(moved)
        return placed

    def hopeless(self, since: datetime) -> list[ChildRef]:
        """Take out the children that have waited since then or longer, and that no living node could take."""
        alive = {node.name for node in self.state.nodes.values() if not node.lost}
        found = [
            self.state.running[child_id]
            for child_id, begun in self.state.homeless.items()
            if begun <= since and not alive.intersection(self.state.running[child_id].nodes or alive)
        ]
        for child in found:
            del self.state.homeless[child.child_id]
        return found

    def ended(self, child_id: str, report: VmReport, request: NodeRequest | None) -> ChildRef | None:
        """A child ended. Returns it the first time, None when it had been dealt with already.

        The stream is free again only by the node's own request (step 15); without one the caller pings the
        node and calls `node_answers` or `node_lost`.
        """
        child = self.state.running.pop(child_id, None)
        self.state.homeless.pop(child_id, None)
        if child is None:
            return None
        self.record(report, child.capacity_bytes)
        if request is not None and request.node == child.node:
            self.node_answers(child.node, asked=True)
        return child

    def record(self, report: VmReport, capacity_bytes: int = 0) -> None:
        """Count a VM's end and keep its report until it is durable; `capacity_bytes` is the plan's."""
        self.state.capacity_ended_bytes += capacity_bytes
        self.state.totals = self.state.totals.plus(report)
        self.state.unwritten.append(report)
        self.state.recent = [*self.state.recent, report][-RECENT_REPORTS:]

    def node_answers(self, name: str, *, asked: bool) -> None:
        """The node is there and has a free stream more."""
        node = self.state.nodes[name]
        node.asked = node.asked or asked
        if node.lost:
            # Its free streams went with it: all of them come back, and not only the one of this VM.
            self.node_returns(name)
            return
        node.credits = min(node.credits + 1, max(0, node.streams - self._busy()[name]))

    def node_returns(self, name: str) -> None:
        """A lost node answers again: its streams are free but for what still runs there."""
        node = self.state.nodes[name]
        node.lost = False
        node.credits = max(0, node.streams - self._busy()[name])

    def node_lost(self, name: str) -> None:
        """The node does not answer: it gets nothing more, and its own queue goes to whoever is free."""
        node = self.state.nodes[name]
        node.lost = True
        node.credits = 0
        for queue in self.state.queues:
            if queue.node == name:
                queue.node = ""

    def next_page(self) -> str | None:
        """Any page that is still to load."""
        return next((queue.pages[0] for queue in self.state.queues if queue.pages), None)

    def unservable(self) -> list[PlannedVm]:
        """Take out the loaded VMs that only lost nodes could serve."""
        alive = {node.name for node in self.state.nodes.values() if not node.lost}
        rest: list[PlannedVm] = []
        for queue in self.state.queues:
            served = bool(alive) and (queue.node == "" or queue.node in alive)
            keep = [vm for vm in queue.pending if served and (not vm.nodes or alive.intersection(vm.nodes))]
            rest.extend(vm for vm in queue.pending if vm not in keep)
            queue.pending = keep
        return rest

    def forget_waiting(self) -> int:
        """Nothing more is given out; returns how many VMs that leaves out."""
        count = self.waiting
        for queue in self.state.queues:
            queue.pages, queue.pending, queue.unloaded_count = [], [], 0
        return count

    def _busy(self) -> Counter[str]:
        """Streams in use, by node."""
        homeless = self.state.homeless
        return Counter(child.node for child in self.state.running.values() if child.child_id not in homeless)

    def _free_nodes(self) -> list[NodeLedger]:
        return [node for node in self.state.nodes.values() if node.credits > 0 and not node.lost]

    def _serves(self, queue: QueueLedger, node: NodeLedger) -> bool:
        return queue.node in ("", node.name)

    def _choose(self, queue: QueueLedger, node: NodeLedger) -> PlannedVm | None:
        """First what no other living node could take, lest this node be busy with anyone's VM while its own wait."""
        mine = [vm for vm in queue.pending if not vm.nodes or node.name in vm.nodes]
        alive = {other.name for other in self.state.nodes.values() if not other.lost}
        only = (vm for vm in mine if vm.nodes and alive.intersection(vm.nodes) <= {node.name})
        return next(only, mine[0] if mine else None)

    def _give(self, node: NodeLedger) -> Gift | None:
        for queue in self.state.queues:
            if not self._serves(queue, node):
                continue
            vm = self._choose(queue, node)
            if vm is not None:
                queue.pending.remove(vm)
                node.credits -= 1
                return Gift(vm=vm, node=node.name, given_by="request" if node.asked else "plan")
        return None
