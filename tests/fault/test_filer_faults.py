"""What goes wrong between an access node and its filer: refused reads, and a VM that moves while it is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule
from lab.nfs_gate import NFS3ERR_ACCES, NFS3ERR_JUKEBOX, Rule
from lab.proof import Witness
from lab.site import DatastoreSpec
from tests.e2e.site import (
    data_centre,
    differences,
    report_of,
    restored_images,
    run_job,
    start_job,
    vm_of,
    wait_end,
)
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow
MIDDLE = 16 * 2**20
"""An offset in the middle of the VMs' disks of 64 MiB: only the transfer reads there."""


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    site = small_site()
    second = DatastoreSpec(name="nfs-lead", type="NFS", remote_path="/exports/lead")
    site = site.model_copy(update={"datastores": [*site.datastores, second]})
    with data_centre(site, nodes=("node-1",), gate=True) as started:
        started.start_workers()
        yield started


@pytest.fixture(autouse=True)
def _clean(lab: DataCentre) -> Iterator[None]:
    yield
    lab.gate.clear()
    lab.gate.release()
    lab.hosts.clear_faults()


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _moref(lab: DataCentre, name: str) -> str:
    return next(vm.moref for vm in lab.hosts.state().vms if vm.name == name)


def _run_held(lab: DataCentre, job: str, meanwhile: Callable[[], object]) -> dict[str, Any]:
    """Run a job; in the middle of the transfer of VM `two`, do something to it."""
    lab.gate.hold("two*-flat.vmdk", MIDDLE)
    start_job(lab, job)
    _until(lambda: bool(lab.gate.held))
    meanwhile()
    lab.gate.release()
    wait_end(lab, job)
    return report_of(lab, job)


def _anew(lab: DataCentre, report: dict[str, Any], *says: str) -> None:
    """VM `two` is Completed from another snapshot, with the reason as a warning, and its backup is that snapshot."""
    vm = vm_of(report, "two")
    assert vm["status"] == "Completed", vm["reason"]
    (warning,) = (line for line in vm["warnings"] if "anew" in line)
    for part in says:
        assert part in warning
    assert differences(lab, vm, restored_images(lab, vm)) == []


def _move(lab: DataCentre, datastore: str) -> None:
    lab.hosts.wait_task(lab.hosts.relocate(_moref(lab, "two"), datastore).task)


def test_a_squashed_root_fails_at_step_8_and_says_what_to_change(lab: DataCentre) -> None:
    """The filer gives names and sizes to everybody, and bytes to nobody: found before anything is read."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.gate.refuse(Rule("*-flat.vmdk", NFS3ERR_ACCES))
    report = run_job(lab, "squashed")
    assert report["status"] == "Failed"
    for vm in report["vms"]:
        assert vm["reason"].startswith("step 8: "), vm["reason"]
        for part in ("-flat.vmdk", "'nfs-gold'", "uid 0", "unreserved port", "no_root_squash"):
            assert part in vm["reason"]
    assert witness.problems() == []


def test_a_vm_that_moves_while_it_is_read_is_backed_up_anew_where_it_is_now(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    report = _run_held(lab, "moved", lambda: _move(lab, "nfs-lead"))
    _anew(lab, report, "step 11", "Hard disk 1", "[nfs-gold]", "[nfs-lead]", "Storage vMotion")
    assert vm_of(report, "one")["warnings"] == []
    assert report["status"] == "Completed"
    assert witness.problems() == []
    _move(lab, "nfs-gold")


def test_a_vm_that_never_rests_fails_and_leaves_nothing(lab: DataCentre) -> None:
    """Moved during the reading of each of its tries: the job does not follow it for ever."""
    witness = Witness(lab.hosts, lab.state / "datastores")
    places = ["nfs-lead", "nfs-gold", "nfs-lead"]

    def keep_moving() -> None:
        for place in places:
            _until(lambda: bool(lab.gate.held))
            _move(lab, place)
            lab.gate.release()
            _until(lambda: not lab.gate.held)
            lab.gate.hold("two*-flat.vmdk", MIDDLE)

    vm = vm_of(_run_held(lab, "restless", keep_moving), "two")
    assert vm["status"] == "Failed"
    assert vm["backup_id"] == ""
    assert "Storage vMotion" in vm["reason"]
    assert len([line for line in vm["warnings"] if "anew" in line]) == len(places) - 1
    assert witness.problems() == []
    _move(lab, "nfs-gold")


def test_a_vm_that_moves_after_its_transfer_is_seen_at_step_12(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.gate.hold("two-flat.vmdk", MIDDLE)
    start_job(lab, "moved-late")
    _until(lambda: bool(lab.gate.held))
    # Step 11 has read the descriptor already; the next to do so is step 12.
    lab.gate.hold("two.vmdk", 0)
    _until(lambda: lab.gate.held == {"two.vmdk"})
    _move(lab, "nfs-lead")
    lab.gate.release()
    wait_end(lab, "moved-late")
    _anew(lab, report_of(lab, "moved-late"), "step 12", "Storage vMotion")
    assert witness.problems() == []
    _move(lab, "nfs-gold")


def test_a_vm_that_moves_before_step_8_is_read_where_it_is_now(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="migrate", vm="two", phase="end", datastore="nfs-lead")
    )
    vm = vm_of(run_job(lab, "moved-early"), "two")
    assert vm["status"] == "Completed", vm["reason"]
    images = restored_images(lab, vm)
    assert differences(lab, vm, images) == []
    assert witness.problems() == []
    _move(lab, "nfs-gold")


def test_our_snapshot_removed_by_somebody_else_is_told_and_a_new_one_is_read(lab: DataCentre) -> None:
    witness = Witness(lab.hosts, lab.state / "datastores")

    def remove_ours() -> None:
        snapshots = lab.hosts.vm(_moref(lab, "two")).snapshots
        (ours,) = [item for item in snapshots if item.name.startswith("safehaul ")]
        lab.hosts.wait_task(lab.hosts.remove_snapshot(ours.moref).task)

    _anew(lab, _run_held(lab, "robbed", remove_ours), "removed or reverted it")
    assert witness.problems() == []


def test_a_filer_that_is_busy_or_hangs_up_for_a_moment_costs_nothing(lab: DataCentre) -> None:
    def trouble() -> None:
        lab.gate.refuse(Rule("two*-flat.vmdk", NFS3ERR_JUKEBOX))
        lab.gate.cut()
        lab.gate.release()
        time.sleep(3)
        lab.gate.clear()

    vm = vm_of(_run_held(lab, "busy", trouble), "two")
    assert vm["status"] == "Completed", vm["reason"]
    assert differences(lab, vm, restored_images(lab, vm)) == []
