"""What a cancelled VM has stored serves the next backup, or is given up as the cancel says (`leave_unfinished`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from activities.repositories import open_repository
from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.proof import Witness
from lab.site import DiskSpec
from safehaul.config.loader import load
from safehaul.media.outcome import read_outcome
from safehaul.media.session_survey import list_sessions
from tests.e2e.site import (
    data_centre,
    differences,
    restored_images,
    run_job,
    start_job,
    status,
    until,
    vm_of,
    wait_end,
)
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow
MIB = 2**20
MIDDLE = 24 * MIB


@pytest.fixture
def lab() -> Iterator[DataCentre]:
    """One VM with a disk of noise, which is held in the middle."""
    one = (
        small_site()
        .vms[0]
        .model_copy(update={"disks": [DiskSpec(size_bytes=32 * MIB, content="random")], "guest_rate": 0})
    )
    site = small_site().model_copy(update={"vms": [one]})
    with data_centre(site, nodes=("node-1",), streams=1, gate=True) as started:
        started.start_workers()
        yield started


def _cancel_in_the_middle(lab: DataCentre, *options: str) -> str:
    """Cancel a job whose VM has been read up to the middle, and wait until its VM's workflow has ended; its id."""
    lab.gate.hold("*-flat.vmdk", MIDDLE)
    start_job(lab, "cancelled")
    until(lambda: lab.gate.held)
    child = _running(lab)["child_id"]
    lab.safehaul("job", "cancel", "cancelled", *options)
    lab.gate.release()
    assert wait_end(lab, "cancelled") == "CANCELED"
    until(lambda: status(lab, child) == "CANCELED")
    return str(child)


def _running(lab: DataCentre) -> dict[str, Any]:
    (vm,) = json.loads(lab.safehaul("job", "show", "cancelled", "--json"))["progress"]["running"]
    return dict(vm)


def test_what_a_cancelled_vm_has_stored_is_not_stored_again(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    _cancel_in_the_middle(lab)
    assert witness.problems() == []
    vm = vm_of(run_job(lab, "next"), "one")
    assert vm["status"] == "Completed"
    (disk,) = vm["disks"]
    assert disk["bytes_deduplicated"] >= MIDDLE // 2, disk
    assert differences(lab, vm, restored_images(lab, vm)) == []


def test_what_is_to_be_forgotten_is_stored_anew_and_nothing_goes_on_from_it(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    _cancel_in_the_middle(lab, "--forget")
    assert witness.problems() == []
    repository = open_repository(load(lab.config).media_agent(MEDIA_AGENT))
    (session,) = list_sessions(repository)
    outcome = read_outcome(repository, session.prefix)
    assert outcome is not None
    assert "not to be kept" in outcome.fenced
    vm = vm_of(run_job(lab, "next"), "one")
    assert vm["status"] == "Completed"
    assert vm["disks"][0]["bytes_deduplicated"] < MIB
