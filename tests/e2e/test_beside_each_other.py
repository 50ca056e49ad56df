"""Two jobs at once over one busy access node, and a restore beside a job: a busy node is not a dead one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lab.datacentre import DataCentre
from lab.proof import Witness
from tests.e2e.site import (
    data_centre,
    differences,
    report_of,
    restored_images,
    run_job,
    start_job,
    start_restore,
    status,
    until,
    vm_of,
    wait_end,
)
from tests.e2e.test_cancel import MIDDLE, small_site
from workflows import policies

pytestmark = pytest.mark.slow
BUSY_S = policies.NODE_SILENT_AFTER.total_seconds() + 10
"""Longer than a task of a node may lie untaken before the node counts as dead."""
GROUPS = "".join(
    f'\n[[vm_groups]]\nname = "only-{name}"\nvcenter = "lab"\nmedia_agent = "vault"\n'
    f'rules = [{{ name = "{name}" }}]\nmin_free_bytes = "1 MiB"\n'
    for name in ("one", "two")
)


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), nodes=("node-1",), streams=1, gate=True) as started:
        with started.config.open("a") as file:
            file.write(GROUPS)
        started.start_workers()
        yield started


@pytest.fixture(autouse=True)
def _clean(lab: DataCentre) -> Iterator[None]:
    yield
    lab.gate.release()


def _hold_the_only_stream(lab: DataCentre, job: str) -> None:
    """Start a job over VM `one` whose transfer keeps the node's only stream until the gate is released."""
    lab.gate.hold("one*-flat.vmdk", MIDDLE)
    start_job(lab, job, "only-one")
    until(lambda: bool(lab.gate.held))


def test_a_job_waits_for_the_stream_that_another_job_holds(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    _hold_the_only_stream(lab, "first")
    start_job(lab, "second", "only-two")
    _stays_busy(lab, "first", "second")
    lab.gate.release()
    for job, name in (("first", "one"), ("second", "two")):
        wait_end(lab, job)
        vm = vm_of(report_of(lab, job), name)
        assert vm["status"] == "Completed", vm["reason"]
        assert differences(lab, vm, restored_images(lab, vm)) == []
    assert witness.problems() == []


def test_a_restore_waits_for_the_stream_that_a_job_holds(lab: DataCentre) -> None:
    two = vm_of(run_job(lab, "before", "only-two"), "two")
    assert two["status"] == "Completed", two["reason"]
    witness = Witness(lab.hosts, lab.state / "datastores")
    _hold_the_only_stream(lab, "beside")
    start_restore(lab, "restore-beside", two, "two again")
    _stays_busy(lab, "beside", "restore-beside")
    lab.gate.release()
    assert wait_end(lab, "restore-beside") == "COMPLETED"
    assert wait_end(lab, "beside") == "COMPLETED"
    one = vm_of(report_of(lab, "beside"), "one")
    assert one["status"] == "Completed", one["reason"]
    assert differences(lab, one, restored_images(lab, one)) == []
    lab.filers.wait_settled()
    home = lab.state / "datastores" / "nfs-gold" / "two again"
    assert differences(lab, two, {2000: home / "vm-flat.vmdk"}) == []
    assert witness.problems() == []


def _stays_busy(lab: DataCentre, *workflows: str) -> None:
    """The stream is held for so long, and everybody waits for it."""
    time.sleep(BUSY_S)
    assert lab.gate.held
    assert {name: status(lab, name) for name in workflows} == dict.fromkeys(workflows, "RUNNING")
