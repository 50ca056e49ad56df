"""Steps 6 and 13 as the server sees them: when a creation may still ask vCenter, and when a removal stops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities import snapshot as steps
from activities.peers import VCENTER_TIMEOUT_S, Peers
from activities.spool import Spool
from safehaul.errors import InvalidInputError
from safehaul.messages.snapshots import RemovalRecord, TakenSnapshot
from safehaul.messages.steps import CreateSnapshotInput, RemovalInput, SnapshotPlan, VmRef
from safehaul.messages.vm import VmOptions
from safehaul.vsphere import removal, snapshots
from workflows import policies

PLAN = SnapshotPlan(name="safehaul run-1", description="marker")
VM = VmRef(
    job_id="job",
    vcenter="vc",
    vc_guid="5000aaaa.5000bbbb",
    name="web-1",
    moref="vm-1",
    node="n1",
    media_agent="ma",
)
CREATE = CreateSnapshotInput(vm=VM, plan=PLAN, options=VmOptions())


class _NoPeers(Peers):
    """No configuration and no vCenter: the calls of vCenter are replaced."""

    def __init__(self) -> None:
        """Opens nothing."""

    def vcenter(self, name: str) -> Any:
        return name

    def spool(self, node: str) -> Spool:
        """The node has left the configuration, which keeps no snapshot."""
        raise InvalidInputError(f"no access node {node!r}")


@pytest.fixture
def environment() -> ActivityEnvironment:
    found = ActivityEnvironment()
    found.info = dataclasses.replace(found.info, heartbeat_timeout=timedelta(seconds=20))
    return found


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    """What happens while the creation `waits` for other tasks, and after vCenter has been `asked`; notes both."""
    moments: dict[str, Callable[[], None]] = {}

    def create(*_: object, heartbeat: Any, before_asking: Any, **__: object) -> TakenSnapshot:
        moments.pop("waits", lambda: None)()
        heartbeat(None)
        before_asking()
        moments["was asked"] = lambda: None
        moments.pop("asked", lambda: None)()
        heartbeat(50)
        return TakenSnapshot(moref="snapshot-1", name=PLAN.name, description=PLAN.description, created="")

    monkeypatch.setattr(snapshots, "create", create)
    return moments


def _create(environment: ActivityEnvironment) -> Any:
    return environment.run(steps.Snapshots(_NoPeers()).create_snapshot, CREATE)


def _cancelled(environment: ActivityEnvironment, **why: bool) -> Callable[[], None]:
    return lambda: environment.cancel(cancellation_details=ActivityCancellationDetails(**why))


def test_a_cancel_before_vcenter_is_asked_stops_the_creation(
    environment: ActivityEnvironment, during: dict[str, Callable[[], None]]
) -> None:
    during["waits"] = _cancelled(environment, cancel_requested=True)
    with pytest.raises(CancelledError):
        _create(environment)
    assert "was asked" not in during


def test_a_cancel_after_vcenter_was_asked_does_not(
    environment: ActivityEnvironment, during: dict[str, Callable[[], None]]
) -> None:
    """Its result is the snapshot's moref, which the workflow removes."""
    during["asked"] = _cancelled(environment, cancel_requested=True)
    assert _create(environment).moref == "snapshot-1"


def test_a_later_try_tells_that_an_earlier_one_may_have_asked(
    environment: ActivityEnvironment, during: dict[str, Callable[[], None]]
) -> None:
    assert not _create(environment).unheard
    environment.info = dataclasses.replace(environment.info, attempt=2)
    assert _create(environment).unheard


def test_a_try_that_the_server_may_have_forgotten_asks_for_nothing(
    environment: ActivityEnvironment,
    during: dict[str, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that is cut off hears of no cancel: its own clock tells it, and a try that still counts is made anew."""
    monkeypatch.setattr(steps, "ASK_WITHIN_S", 0.05)
    during["waits"] = lambda: time.sleep(0.1)
    with pytest.raises(ApplicationError, match="a fresh one asks") as failed:
        _create(environment)
    assert "was asked" not in during
    assert failed.value.type == "BusyError"


def _removal(
    environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch, record: RemovalRecord, **why: bool
) -> Any:
    given: dict[str, Any] = {}

    def remove(*_: object, heartbeat: Any, **options: Any) -> RemovalRecord:
        given.update(options)
        if why:
            _cancelled(environment, **why)()
        heartbeat(10)
        return record

    monkeypatch.setattr(removal, "remove", remove)
    done = environment.run(
        steps.Snapshots(_NoPeers()).remove_snapshot, RemovalInput(vm=VM, plan=PLAN, within_s=60.0)
    )
    assert given["timeout_s"] == 60.0
    assert given["instance_uuid"] == "5000bbbb"
    return done


def _record(**changes: Any) -> RemovalRecord:
    fields = {
        "vm_moref": "vm-1",
        "name": PLAN.name,
        "description": PLAN.description,
        "started_at": "",
        "finished_at": "",
        "consolidation_needed_before": False,
        "consolidation_needed_after": False,
    }
    return RemovalRecord.model_validate(fields | changes)


def test_a_removal_goes_on_through_a_cancel(
    environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _removal(environment, monkeypatch, _record(), cancel_requested=True).gone


@pytest.mark.parametrize("why", ["timed_out", "not_found"])
def test_a_removal_that_the_server_has_given_up_frees_its_slot(
    environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    with pytest.raises(ApplicationError, match="given this try"):
        _removal(environment, monkeypatch, _record(), **{why: True})


@pytest.mark.parametrize(("checked", "gone"), [(True, True), (False, False)])
def test_a_vm_that_is_gone_is_proved_by_its_directories_alone(
    environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch, *, checked: bool, gone: bool
) -> None:
    done = _removal(environment, monkeypatch, _record(vm_gone=True, files_checked=checked))
    assert (done.gone, done.vm_gone, bool(done.reason)) == (gone, True, not gone)


def test_the_times_of_creation_and_removal_fit_together() -> None:
    seconds = policies.LATE_CREATION_WITHIN.total_seconds()
    assert seconds > steps.ASK_WITHIN_S + VCENTER_TIMEOUT_S
    assert policies.HEARTBEAT.total_seconds() >= steps.ASK_WITHIN_S
    assert policies.SNAPSHOT.start_to_close.total_seconds() > steps.CREATE_WITHIN_S
    for policy, bound in (
        (policies.REMOVAL, policies.REMOVAL_TRY),
        (policies.CLEAN_UP, policies.CLEAN_UP_TRY),
    ):
        assert policy.start_to_close >= 5 * bound
    assert 2 * policies.REMOVAL_TRY.total_seconds() < VmOptions().removal_handover_s
