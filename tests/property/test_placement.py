"""Goal: whatever the nodes answer, each VM has exactly one place or a reason, loads balance, plans repeat."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehaul.errors import InvalidInputError
from safehaul.messages.inventory import VmDisk, VmRecord
from safehaul.messages.job import NodeAnswer
from safehaul.placement import NodeOffer, Plan, VmDemand, place, place_static, usable_streams

_EXPORTS = ("nas-1", "nas-2", "nas-3")
_export_sets = st.sets(st.sampled_from(_EXPORTS)).map(lambda names: tuple(sorted(names)))
_nodes = st.lists(
    st.builds(
        NodeOffer,
        name=st.sampled_from([f"node-{number}" for number in range(8)]),
        cores=st.integers(1, 64),
        load=st.floats(0, 80),
        free_streams=st.integers(0, 16),
        memory_available_bytes=st.none() | st.integers(0, 2**34),
        reachable_exports=_export_sets,
    ),
    max_size=6,
    unique_by=lambda node: node.name,
)
_vms = st.lists(
    st.builds(
        VmDemand,
        vc_guid=st.integers(0, 10**6).map(lambda number: f"vm-{number:06}"),
        capacity_bytes=st.integers(0, 2**42),
        exports=_export_sets,
    ),
    max_size=40,
    unique_by=lambda vm: vm.vc_guid,
)


def _placed(plan: Plan) -> list[str]:
    return [guid for node in plan.nodes for guid in node.vc_guids]


def _check_complete(plan: Plan, nodes: list[NodeOffer], vms: list[VmDemand]) -> None:
    """Each VM once; on a node that reaches it; unplaceable only if there is no such node."""
    unplaceable = {item.vc_guid for item in plan.unplaceable}
    assert sorted([*_placed(plan), *unplaceable]) == sorted(vm.vc_guid for vm in vms)
    by_guid = {vm.vc_guid: vm for vm in vms}
    reach = {node.name: set(node.reachable_exports) for node in nodes}
    for node in plan.nodes:
        assert all(reach[node.node] >= set(by_guid[guid].exports) for guid in node.vc_guids)
    for item in plan.unplaceable:
        assert not any(exports >= set(by_guid[item.vc_guid].exports) for exports in reach.values())
        assert item.reason


@given(_nodes, _vms)
def test_static_gives_each_vm_one_place_in_the_given_order(
    nodes: list[NodeOffer], vms: list[VmDemand]
) -> None:
    plan = place_static(nodes, vms)
    _check_complete(plan, nodes, vms)
    order = {vm.vc_guid: index for index, vm in enumerate(vms)}
    for node in plan.nodes:
        assert list(node.vc_guids) == sorted(node.vc_guids, key=order.__getitem__)


@given(_nodes.filter(bool), _vms)
def test_static_balances_within_its_bound(nodes: list[NodeOffer], vms: list[VmDemand]) -> None:
    nodes = [node.model_copy(update={"reachable_exports": _EXPORTS}) for node in nodes]
    weights = {vm.vc_guid: vm.weight for vm in vms}
    total, largest = sum(weights.values()), max(weights.values(), default=0)
    bound = (total + (len(nodes) - 1) * largest) / sum(node.power for node in nodes)
    power = {node.name: node.power for node in nodes}
    for node in place_static(nodes, vms).nodes:
        assert sum(weights[guid] for guid in node.vc_guids) / power[node.node] <= bound * (1 + 1e-9)


@given(_nodes, _vms, st.randoms(use_true_random=False))
def test_plans_do_not_depend_on_the_order_of_the_answers(
    nodes: list[NodeOffer], vms: list[VmDemand], chance: random.Random
) -> None:
    shuffled = list(nodes)
    chance.shuffle(shuffled)
    assert place_static(shuffled, vms) == place_static(nodes, vms)


def _node(name: str, *exports: str, cores: int = 4, load: float = 0.0) -> NodeOffer:
    return NodeOffer(name=name, cores=cores, load=load, free_streams=4, reachable_exports=exports)


def test_a_busy_node_gets_less_than_an_idle_one() -> None:
    vms = [VmDemand(vc_guid=f"vm-{number}", capacity_bytes=2**30) for number in range(40)]
    busy, idle = place_static([_node("busy", load=3.0), _node("idle")], vms).nodes
    assert len(busy.vc_guids) == 8
    assert len(idle.vc_guids) == 32


def test_the_reason_says_what_is_out_of_reach() -> None:
    nodes = [_node("a", "nas-1"), _node("b", "nas-2")]
    vms = [
        VmDemand(vc_guid="gone", capacity_bytes=1, exports=("nas-3",)),
        VmDemand(vc_guid="split", capacity_bytes=1, exports=("nas-1", "nas-2")),
    ]
    gone, split = place_static(nodes, vms).unplaceable
    assert "no access node reaches nas-3" in gone.reason
    assert "no single access node reaches all of nas-1, nas-2" in split.reason
    assert place_static([], vms).unplaceable[0].reason == "no access node answered"
    told = [node.model_copy(update={"unreachable": {"nas-3": f"{node.name}: root squash"}}) for node in nodes]
    assert place_static(told, vms).unplaceable[0].reason == "no access node reaches nas-3: a: root squash"


def test_a_vm_or_node_given_twice_is_refused() -> None:
    vm = VmDemand(vc_guid="x", capacity_bytes=1)
    with pytest.raises(InvalidInputError, match=r"VC.GUID 'x'"):
        place_static([_node("a")], [vm, vm])
    with pytest.raises(InvalidInputError, match="access node 'a'"):
        place_static([_node("a"), _node("a")], [vm])


def _record(name: str, *datastores: str) -> VmRecord:
    disk = VmDisk(key=2000, label="", capacity_bytes=2**30, path="[d] x.vmdk")
    return VmRecord(
        vc_guid=f"guid-{name}", vcenter="v", moref=name, name=name, datastores=list(datastores), disks=[disk]
    )


def _answer(node: str, *datastores: str) -> NodeAnswer:
    return NodeAnswer(
        node=node, version="1", cores=2, load=0, memory_bytes=2**32, streams=2,
        reachable_datastores=list(datastores),
    )  # fmt: skip


@pytest.mark.parametrize("static", [True, False])
def test_step_5_needs_only_nas_datastores_and_says_who_may_take_a_vm(*, static: bool) -> None:
    records = [
        _record("a", "nas-1", "local"),
        _record("b", "nas-2"),
        _record("c", "local"),
        _record("d", "nas-9"),
    ]
    nodes = [_answer("one", "nas-1"), _answer("two", "nas-1", "nas-2")]
    placed = place(records, nodes, {"nas-1", "nas-2", "nas-9"}, static=static)
    vms = {vm.name: (queue.node, vm.nodes) for queue in placed.queues for vm in queue.vms}
    assert {name: nodes for name, (_, nodes) in vms.items()} == {"a": [], "b": ["two"], "c": []}
    assert vms["b"][0] == ("two" if static else "")
    assert [(item.name, "nas-9" in item.reason) for item in placed.unplaceable] == [("d", True)]
    assert placed.power == {"one": 2.0, "two": 2.0}


def test_a_node_without_the_memory_gets_fewer_streams_than_it_offers() -> None:
    rich, poor = _answer("rich"), _answer("poor").model_copy(update={"memory_bytes": 300 * 2**20})
    assert [usable_streams(answer) for answer in (rich, poor)] == [2, 1]


def test_ten_thousand_vms_are_planned_in_seconds() -> None:
    vms = [
        VmDemand(vc_guid=f"{number:05}", capacity_bytes=number * 2**20, exports=(_EXPORTS[number % 3],))
        for number in range(10_000)
    ]
    nodes = [_node(f"node-{number:02}", *_EXPORTS) for number in range(64)]
    start = time.process_time()
    assert len(_placed(place_static(nodes, vms))) == 10_000
    assert time.process_time() - start < 10
