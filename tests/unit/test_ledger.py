"""The ledger: whatever happens to VMs and nodes, no VM is lost or doubled, no stream is used twice, and it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehaul.errors import IntegrityError
from safehaul.messages.job import (
    ChildRef,
    NodeAnswer,
    NodeRequest,
)
from safehaul.messages.ledger import LedgerState
from safehaul.messages.plan import (
    Plan,
    PlannedVm,
    PlanQueue,
)
from safehaul.messages.vm import VmReport, VmStatus
from workflows.ledger import Ledger

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _node(name: str, streams: int) -> NodeAnswer:
    return NodeAnswer(
        node=name, version="1", cores=2, load=0, memory_bytes=0, streams=streams, reachable_datastores=[]
    )


def _vm(number: int, nodes: list[str] | None = None) -> PlannedVm:
    return PlannedVm(vc_guid=f"g{number}", name=f"vm{number}", moref=f"vm-{number}", nodes=nodes or [])


def _child(vm: PlannedVm, node: str) -> ChildRef:
    return ChildRef(
        child_id=vm.vc_guid,
        vc_guid=vm.vc_guid,
        name=vm.name,
        moref=vm.moref,
        node=node,
        started_at=NOW,
        nodes=vm.nodes,
    )


def _report(child: ChildRef) -> VmReport:
    return VmReport(vc_guid=child.vc_guid, name=child.name, status=VmStatus.COMPLETED, node=child.node)


def _request(node: str) -> NodeRequest:
    return NodeRequest(node=node, free_streams=1, load=0, asked_at=NOW)


def _open(
    pages: dict[str, list[PlannedVm]], nodes: dict[str, int], power: dict[str, float] | None = None
) -> Ledger:
    ledger = Ledger()
    queue = PlanQueue(pages=list(pages), vm_count=sum(map(len, pages.values())))
    plan = Plan(queues=[queue], power=power or {})
    ledger.open([_node(name, streams) for name, streams in nodes.items()], plan)
    return ledger


def test_streams_are_filled_from_the_plan_and_then_only_on_request() -> None:
    pages = {"p": [_vm(number) for number in range(5)]}
    ledger = _open(pages, {"a": 1, "b": 1})
    page = ledger.wanted_page()
    assert page == "p"
    ledger.loaded(page, pages[page])
    gifts = ledger.gifts()
    assert [(gift.node, gift.given_by) for gift in gifts] == [("a", "plan"), ("b", "plan")]
    for gift in gifts:
        ledger.started(_child(gift.vm, gift.node))
    assert ledger.gifts() == []
    child = ledger.state.running["g0"]
    assert ledger.ended("g0", _report(child), None) is not None
    assert ledger.gifts() == [], "an end without a request frees nothing"
    ledger.node_answers("a", asked=True)
    (gift,) = ledger.gifts()
    assert (gift.node, gift.given_by) == ("a", "request")


@pytest.mark.parametrize(("count", "says"), [(1, "1 VMs fewer"), (3, "1 VMs more")])
def test_a_plan_whose_pages_do_not_hold_what_was_planned_is_an_error(count: int, says: str) -> None:
    """Neither a job that waits for ever, nor one that is Completed without some of its VMs."""
    ledger = _open({"p": [_vm(0), _vm(1)]}, {"a": 2})
    with pytest.raises(IntegrityError, match=says):
        ledger.loaded("p", [_vm(number) for number in range(count)])


def test_an_end_counts_once() -> None:
    pages = {"p": [_vm(0)]}
    ledger = _open(pages, {"a": 2})
    ledger.loaded("p", pages["p"])
    (gift,) = ledger.gifts()
    child = _child(gift.vm, gift.node)
    ledger.started(child)
    assert ledger.ended("g0", _report(child), _request("a")) is not None
    assert ledger.ended("g0", _report(child), _request("a")) is None
    assert ledger.state.totals.vms == 1
    assert ledger.state.nodes["a"].credits == 2
    assert ledger.finished


def test_a_vm_goes_only_to_a_node_that_reaches_it() -> None:
    pages = {"p": [_vm(0, ["b"]), _vm(1)]}
    ledger = _open(pages, {"a": 1, "b": 1})
    ledger.loaded("p", pages["p"])
    assert {(gift.vm.name, gift.node) for gift in ledger.gifts()} == {("vm0", "b"), ("vm1", "a")}


def test_a_strong_node_is_given_more_while_vms_are_fewer_than_streams() -> None:
    pages = {"p": [_vm(number) for number in range(4)]}
    ledger = _open(pages, {"busy": 4, "idle": 4}, {"busy": 1.0, "idle": 4.0})
    ledger.loaded("p", pages["p"])
    assert [gift.node for gift in ledger.gifts()] == ["idle", "idle", "idle", "busy"]


def test_a_node_first_takes_what_only_it_can_reach() -> None:
    pages = {"p": [_vm(0), _vm(1, ["a", "b"]), _vm(2, ["b"])]}
    ledger = _open(pages, {"b": 1, "a": 1})
    ledger.loaded("p", pages["p"])
    assert [(gift.vm.name, gift.node) for gift in ledger.gifts()] == [("vm2", "b"), ("vm0", "a")]
    ledger = _open(pages, {"b": 1, "a": 1})
    ledger.loaded("p", pages["p"])
    ledger.node_lost("a")
    assert [gift.vm.name for gift in ledger.gifts()] == ["vm1"], "its other node is lost"


def test_a_vm_that_was_cancelled_before_its_page_came_is_given_to_nobody() -> None:
    pages = {"p": [_vm(0), _vm(1)], "q": [_vm(2)]}
    ledger = _open(pages, {"a": 3})
    assert ledger.unwant("vm1")
    assert ledger.unwant("nobody")
    ledger.loaded("p", pages["p"])
    assert [vm.name for vm in ledger.withdraw_unwanted()] == ["vm1"]
    assert ledger.state.unwanted == ["nobody"]
    assert [gift.vm.name for gift in ledger.gifts()] == ["vm0"]
    ledger.loaded("q", pages["q"])
    assert not ledger.unwant("late"), "every page has come: nobody is called so"


def test_a_lost_nodes_own_queue_goes_to_the_others() -> None:
    ledger = Ledger()
    plan = Plan(
        queues=[PlanQueue(node="a", pages=["pa"], vm_count=1), PlanQueue(node="b", pages=["pb"], vm_count=1)]
    )
    ledger.open([_node("a", 1), _node("b", 2)], plan)
    ledger.loaded("pa", [_vm(0)])
    ledger.loaded("pb", [_vm(1)])
    ledger.node_lost("a")
    assert {(gift.vm.name, gift.node) for gift in ledger.gifts()} == {("vm0", "b"), ("vm1", "b")}


def _with_a_dead_node(vms: list[PlannedVm], streams: int = 1) -> Ledger:
    """Two nodes, `a` and `b`; both run what they can, then `a` dies with its VMs."""
    ledger = _open({"p": vms}, {"a": streams, "b": streams}, {"a": 2.0})
    ledger.loaded("p", list(vms))
    for gift in ledger.gifts():
        ledger.started(_child(gift.vm, gift.node))
    ledger.node_lost("a")
    for child in list(ledger.state.running.values()):
        if child.node == "a":
            ledger.lost_its_node(child.child_id, NOW)
    return ledger


def test_a_vm_whose_node_died_gets_the_next_stream_before_any_new_vm() -> None:
    ledger = _with_a_dead_node([_vm(0), _vm(1), _vm(2)])
    assert (ledger.rehome(), ledger.gifts()) == ([], [])
    (on_b,) = (child for child in ledger.state.running.values() if child.node == "b")
    ledger.ended(on_b.child_id, _report(on_b), _request("b"))
    (moved,) = ledger.rehome()
    assert (moved.name, moved.node, moved.moves) == ("vm0", "b", 1)
    assert ledger.state.running[moved.child_id] == moved
    assert ledger.gifts() == []
    assert ledger.rehome() == []


def test_a_vm_whose_node_died_waits_for_a_node_that_reaches_its_datastores() -> None:
    ledger = _with_a_dead_node([_vm(0, ["a"]), _vm(1, ["b"])], streams=2)
    assert ledger.rehome() == []
    assert ledger.hopeless(NOW - timedelta(minutes=1)) == [], "it has only begun to wait"
    ledger.node_returns("a")
    assert [child.node for child in ledger.rehome()] == ["a"]
    ledger.node_lost("a")
    ledger.lost_its_node("g0", NOW)
    assert [child.name for child in ledger.hopeless(NOW)] == ["vm0"]
    assert ledger.rehome() == [], "it has been given up"


def test_a_job_whose_running_vms_all_wait_for_a_node_is_stuck() -> None:
    ledger = _with_a_dead_node([_vm(0), _vm(1), _vm(2)])
    assert not ledger.stuck
    ledger.node_lost("b")
    ledger.lost_its_node("g1", NOW)
    assert ledger.stuck


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_vm_is_lost_or_doubled_whatever_happens(data: st.DataObject) -> None:
    nodes = {f"n{number}": data.draw(st.integers(1, 3)) for number in range(data.draw(st.integers(1, 3)))}
    count = data.draw(st.integers(0, 12))
    vms = [
        _vm(number, data.draw(st.lists(st.sampled_from(sorted(nodes)), max_size=2, unique=True)))
        for number in range(count)
    ]
    pages = {f"p{start}": vms[start : start + 3] for start in range(0, count, 3)}
    ledger = _open(pages, nodes)
    started: list[str] = []
    ended: list[str] = []
    deaths = ["one", "two", "three"]
    for _ in range(400):
        if ledger.finished:
            break
        while (page := ledger.wanted_page()) is not None:
            ledger.loaded(page, pages[page])
        for child in ledger.rehome():
            assert not child.nodes or child.node in child.nodes
            assert not ledger.state.nodes[child.node].lost
        for gift in ledger.gifts():
            assert not gift.vm.nodes or gift.node in gift.vm.nodes
            started.append(gift.vm.vc_guid)
            ledger.started(_child(gift.vm, gift.node))
        for name, streams in nodes.items():
            running = (
                child for id_, child in ledger.state.running.items() if id_ not in ledger.state.homeless
            )
            assert sum(child.node == name for child in running) <= streams
        _something_happens(data, ledger, ended, deaths)
        ledger = Ledger(LedgerState.model_validate_json(ledger.state.model_dump_json()))
    assert ledger.finished
    assert sorted(started) == sorted(ended) == sorted(vm.vc_guid for vm in vms)
    assert ledger.state.totals.vms == count


def _something_happens(data: st.DataObject, ledger: Ledger, ended: list[str], deaths: list[str]) -> None:
    running = sorted(ledger.state.running)
    dies = data.draw(st.booleans()) if deaths else False
    if running and dies:
        deaths.pop()
        _a_node_dies(data.draw(st.sampled_from(sorted(ledger.state.nodes))), ledger)
    elif running:
        child = ledger.state.running[data.draw(st.sampled_from(running))]
        asked = data.draw(st.booleans())
        assert (
            ledger.ended(child.child_id, _report(child), _request(child.node) if asked else None) is not None
        )
        ended.append(child.child_id)
        if not asked:
            if data.draw(st.booleans()):
                ledger.node_answers(child.node, asked=False)
            else:
                ledger.node_lost(child.node)
    for name, node in ledger.state.nodes.items():
        if node.lost and (not running or data.draw(st.booleans())):
            ledger.node_returns(name)


def _a_node_dies(name: str, ledger: Ledger) -> None:
    """Its VMs tell of it one after the other; the first one is enough for the node."""
    for child in list(ledger.state.running.values()):
        if child.node == name:
            ledger.node_lost(name)
            ledger.lost_its_node(child.child_id, NOW)
