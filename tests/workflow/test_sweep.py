"""SweepSnapshots removes what is provably ours and has no owner any more, on a real server; everything else is left."""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.sweep_desk import SweepDesk
from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.sweep import (
    FindingKind,
    Owner,
    OwnerFound,
    OwnersInput,
    OwnerState,
    SweepReport,
    Verdict,
)
from tests.workflow.sweep_site import (
    NOW,
    SweepSite,
    by_vm,
    failed_sweep,
    owner,
    run_of,
    site_of,
    start,
    sweep,
    sweeping,
)
from workflows import policies

LOST_NAMESPACE = "9a0e6c1e-1111-4222-8333-444455556666"


@pytest.fixture
async def site(client: Client) -> SweepSite:
    return await site_of(client)


async def orphans(client: Client, site: SweepSite, count: int) -> None:
    """VMs `orphan-N`, each with a snapshot whose owner was terminated."""
    for number in range(count):
        gone = await owner(client)
        await gone.terminate()
        name = f"orphan-{number}"
        site.add(name, site.marker(name, gone.id, run_of(gone)))


def _add_others(site: SweepSite, ended: Any) -> None:
    """VMs with what looks like ours and cannot be proved, and with what is nobody's business of ours."""
    marker = site.marker("renamed", ended.id, run_of(ended))
    site.add("renamed", SnapshotNode(moref="s", name="keep this", description=marker.text()))
    site.add("cut", SnapshotNode(moref="s", name=marker.snapshot_name, description=marker.text()[:-9]))
    site.add("similar", SnapshotNode(moref="s", name="safehaul by hand", description="Bob's"))
    longer = marker.text().replace("}", ',"more":"x"}').replace("vc.renamed", "vc.longer")
    site.add("longer", SnapshotNode(moref="s", name=marker.snapshot_name, description=longer))
    for name in ("twin a", "twin b"):
        site.add(name, site.marker("twin", ended.id, run_of(ended)), vc_guid="vc.twin")
    for name, hours in (("veeam's", 30), ("veeam's of today", 2)):
        created = (NOW - timedelta(hours=hours)).isoformat()
        site.add(name, SnapshotNode(moref="s", name="VEEAM BACKUP TEMPORARY SNAPSHOT", created=created))
    site.add("in debt", consolidation_needed=True)
    site.add("away", unreadable="the VM is inaccessible", connection_state="inaccessible")


async def test_the_decision_table(client: Client, site: SweepSite) -> None:
    """One VM for each thing that a snapshot with our marker, or like ours, can be."""
    users = SnapshotNode(moref="snapshot-user", name="before the upgrade", description="taken by Ada")

    async def of(name: str, handle: Any, **changes: str) -> None:
        site.add(name, users, site.marker(name, handle.id, run_of(handle), **changes))

    alive, ended = await owner(client), await owner(client)
    await ended.terminate()
    again = await owner(client, f"again-{uuid.uuid4()}")
    await again.terminate()
    await owner(client, again.id)
    removing = await owner(client)
    await removing.terminate()
    await client.start_workflow(
        "RemoveSnapshot",
        id=f"remove-snapshot safehaul {run_of(removing)}",
        task_queue=f"nobody-{uuid.uuid4()}",
    )
    await of("alive", alive)
    await of("terminated", ended)
    site.add("unknown", users, site.marker("unknown", "never-heard-of", str(uuid.uuid4())))
    await of("its id is used again", again)
    await of("being removed", removing)
    await of("another installation", ended, installation=str(uuid.uuid4()))
    await of("another namespace", ended, namespace=LOST_NAMESPACE)
    await of("a clone of another VM", ended, vc_guid="vc.another")
    _add_others(site, ended)
    before = site.snapshots()
    async with sweeping(client, site):
        looked = await sweep(client, dry_run=True)
        assert site.snapshots() == before
        assert site.calls["remove_snapshot"] == site.calls["look_at_orphan"] == 0
        report = await sweep(client)
    swept = by_vm(report)
    gone = {"terminated", "unknown", "its id is used again"}
    assert {name: item.verdict for name, item in swept.items()} == {
        **dict.fromkeys(gone, Verdict.REMOVED),
        "alive": Verdict.HELD,
        "being removed": Verdict.REMOVING,
    }
    assert sorted(site.removed) == sorted(gone)
    removed = {item.split("/")[0] for item in before - site.snapshots()}
    assert removed == gone
    assert all(f"{name}/snapshot-user" in site.snapshots() for name in gone)
    for name in gone:
        made = swept[name].certificate
        assert made is not None
        assert [node.moref for node in made.tree_after] == ["snapshot-user"]
        assert (made.morefs, made.files_checked) == ([swept[name].moref], True)
    assert {item.vm_name: item.kind for item in report.findings} == {
        "another installation": FindingKind.OTHER_INSTALLATION,
        "another namespace": FindingKind.OTHER_NAMESPACE,
        "a clone of another VM": FindingKind.UNPROVED,
        "renamed": FindingKind.UNPROVED,
        "cut": FindingKind.UNPROVED,
        "similar": FindingKind.UNPROVED,
        "longer": FindingKind.UNPROVED,
        "twin a": FindingKind.UNPROVED,
        "twin b": FindingKind.UNPROVED,
        "veeam's": FindingKind.OTHER_PRODUCT,
        "in debt": FindingKind.CONSOLIDATION,
        "away": FindingKind.UNREADABLE,
    }
    assert looked.finding_counts == report.finding_counts
    assert looked.counts == {"would be removed": 3, "held": 1, "being removed": 1}
    assert (report.vms, report.problems) == (len(site.vcenters["vc"]), [])


class _Overloaded(SweepDesk):
    """A Temporal server that cannot answer for some workflows."""

    async def _describe(self, workflow_id: str, run_id: str | None = None) -> Any:
        if workflow_id.startswith("overloaded"):
            raise RPCError("namespace rate limit exceeded", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
        return await super()._describe(workflow_id, run_id)


async def test_what_temporal_cannot_tell_now_is_left_alone_and_fails_the_sweep(
    client: Client, site: SweepSite
) -> None:
    await orphans(client, site, 1)
    site.add("unclear", site.marker("unclear", "overloaded-1", str(uuid.uuid4())))
    async with sweeping(client, site, _Overloaded):
        reason, report = await failed_sweep(client)
    assert "rate limit exceeded" in reason
    assert by_vm(report)["unclear"].verdict is Verdict.UNCLEAR
    assert site.removed == ["orphan-0"], "the others are swept all the same"


async def test_an_owner_that_comes_back_keeps_its_snapshot(client: Client, site: SweepSite) -> None:
    """Reset between the first question and the removal: the second question, right before the start, counts."""
    asked: list[str] = []

    class _Reset(SweepDesk):
        async def _owner(self, owner: Owner) -> OwnerFound:
            asked.append(owner.workflow_id)
            state = OwnerState.GONE if len(asked) == 1 else OwnerState.ALIVE
            return OwnerFound(state=state, reason="as the test says")

    site.add("reset", site.marker("reset", "job/1/vm", str(uuid.uuid4())))
    async with sweeping(client, site, _Reset):
        report = await sweep(client)
    assert by_vm(report)["reset"].verdict is Verdict.HELD
    assert len(asked) == 2
    assert site.removed == []


async def test_in_another_namespace_of_the_same_name_nobody_is_looked_up(
    client: Client, site: SweepSite
) -> None:
    """There every owner would be unknown, and every snapshot an orphan."""
    nothing: Any = None
    desk = SweepDesk(nothing, client)
    arg = OwnersInput(
        namespace_id=LOST_NAMESPACE,
        owners=[Owner(workflow_id="w", first_run_id="r", snapshot_name="safehaul r")],
    )
    with pytest.raises(ApplicationError, match="nothing is removed"):
        await ActivityEnvironment().run(desk.look_up_owners, arg)


async def test_orphans_of_a_lost_namespace_go_when_somebody_says_so(client: Client, site: SweepSite) -> None:
    site.add("lost", site.marker("lost", "w", str(uuid.uuid4()), namespace=LOST_NAMESPACE))
    other = site.marker("other", "w", str(uuid.uuid4()), namespace=str(uuid.uuid4()))
    site.add("other", other)
    async with sweeping(client, site):
        report = await sweep(client, adopt=LOST_NAMESPACE)
    assert by_vm(report)["lost"].verdict is Verdict.REMOVED
    assert site.removed == ["lost"]
    assert [item.vm_name for item in report.findings] == ["other"]


async def test_a_namespace_that_lives_is_not_adopted(client: Client, site: SweepSite) -> None:
    async with sweeping(client, site):
        handle = await start(client, {"adopt": site.namespace_id})
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, ApplicationError)
        assert (failed.value.cause.type, "this very namespace" in failed.value.cause.message) == (
            "InvalidInput",
            True,
        )
        living = await client.workflow_service.describe_namespace(_system())
        handle = await start(client, {"adopt": living.namespace_info.id})
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert "is on this Temporal server: sweep there" in str(failed.value.cause)


def _system() -> Any:
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest  # noqa: PLC0415

    return DescribeNamespaceRequest(namespace="temporal-system")


async def test_a_removal_that_gets_stuck_goes_on_without_the_sweep(
    client: Client, site: SweepSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "SWEEP_WAITS_FOR_REMOVAL", timedelta(seconds=1))

    def locked(_arg: Any) -> None:
        raise ApplicationError("the disk is locked", type="BusyError", non_retryable=True)

    site.hooks["remove_snapshot"] = locked
    await orphans(client, site, 1)
    async with sweeping(client, site, sandboxed=False):
        report = await sweep(client)
        (item,) = report.snapshots
        assert (item.verdict, report.problems) == (Verdict.PENDING, [])
        again = await sweep(client)
        assert [each.verdict for each in again.snapshots] == [Verdict.REMOVING]
        site.hooks.clear()
        removal = client.get_workflow_handle(f"remove-snapshot {item.name}")
        await removal.signal("retry_now")
        await removal.result()
        assert (await sweep(client)).snapshots == []
    assert site.removed == ["orphan-0"]


async def test_a_removal_without_a_certificate_fails_the_sweep(client: Client, site: SweepSite) -> None:
    """The look before it told nothing to compare with: that the snapshot's files are gone is not proved."""
    await orphans(client, site, 1)
    site.blind = True
    async with sweeping(client, site):
        reason, report = await failed_sweep(client)
    assert "nobody has looked for its files" in reason
    assert [item.verdict for item in report.snapshots] == [Verdict.UNCERTIFIED]


@pytest.mark.slow
async def test_one_sweep_removes_so_many_and_leaves_the_rest_to_the_next(
    client: Client, site: SweepSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pages, over runs that continue as new."""
    monkeypatch.setattr(policies, "SWEEP_PAGE_SNAPSHOTS", 2)
    monkeypatch.setattr(policies, "SWEEP_AT_ONCE", 2)
    monkeypatch.setattr(policies, "SWEEP_REMOVALS", 4)
    monkeypatch.setattr(policies, "HISTORY_EVENTS_PER_RUN", 10)
    await orphans(client, site, 7)
    async with sweeping(client, site, sandboxed=False):
        handle = await start(client)
        report = SweepReport.model_validate(await handle.result())
        assert report.counts == {"removed": 4, "left": 3}
        assert report.vms == 7
        first = client.get_workflow_handle(handle.id, run_id=run_of(handle))
        assert (await first.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW
        assert (await sweep(client)).counts == {"removed": 3}
    assert sorted(site.removed) == [f"orphan-{number}" for number in range(7)]


async def test_a_vcenter_that_is_away_does_not_keep_the_others_from_being_swept(
    client: Client, site: SweepSite
) -> None:
    def away(arg: Any) -> None:
        if arg.vcenter == "away":
            raise ApplicationError("vCenter away: no answer", type="LoginRefusedError", non_retryable=True)

    site.vcenters = {"away": [], "vc": []}
    site.hooks["list_snapshots"] = away
    await orphans(client, site, 1)
    async with sweeping(client, site):
        reason, report = await failed_sweep(client)
        assert "vCenter away was not swept: vCenter away: no answer" in reason
        assert (await sweep(client, vcenter="vc")).vcenters == ["vc"]
    assert report.counts == {"removed": 1}


async def test_a_cancel_begins_no_further_removal(client: Client, site: SweepSite) -> None:
    await orphans(client, site, 1)
    looked, released = threading.Event(), threading.Event()

    def wait(_arg: Any) -> None:
        looked.set()
        released.wait(20)

    site.hooks["look_at_orphan"] = wait
    async with sweeping(client, site):
        handle = await start(client)
        await asyncio.to_thread(looked.wait, 20)
        await handle.signal("stop", "now")
        await handle.signal("cancel")
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), 20)
        metadata: Any = await handle.query("__temporal_workflow_metadata")
        released.set()
    assert isinstance(failed.value.cause, CancelledError)
    assert "signal 'stop' does not exist" in str(metadata.current_details)
    assert "cancelled" in str(metadata.current_details)
    assert site.removed == []


async def test_thoroughly_every_directory_is_searched(client: Client, site: SweepSite) -> None:
    for number in range(policies.SWEEP_DIRECTORIES * 2 + 1):
        site.add(f"vm-{number}")
    asked: list[tuple[int, int]] = []
    site.hooks["find_phantom_deltas"] = lambda arg: asked.append((arg.skip, arg.limit))
    async with sweeping(client, site):
        await sweep(client, thorough=True)
        few = policies.SWEEP_DIRECTORIES
        assert asked == [(0, few), (few, few), (2 * few, few)]
        asked.clear()
        await sweep(client)
    ((skip, limit),) = asked
    assert limit == few
    assert skip % few == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"vcenter": "No Such"}, "vcenter"),
        ({"adopt": "all"}, "adopt"),
        ({"dry": True}, "dry"),
    ],
)
async def test_a_wrong_input_fails_at_once(
    client: Client, site: SweepSite, request_: dict[str, Any], message: str
) -> None:
    async with sweeping(client, site):
        handle = await start(client, request_)
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), 20)
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == "InvalidInput"
    assert message in failed.value.cause.message
