"""Goal: a VM that leaves the inventory does not take our snapshot out of sight, and a deleted one is told as such."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from safehaul.errors import BusyError, NotFoundError, PermissionRefusedError
from safehaul.messages.inventory import VmState
from safehaul.messages.snapshots import RemovalRecord, TakenSnapshot
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import create, tree
from safehaul.vsphere.vms import vm_state
from tests.contract.lab_server import LabServer, lab_server
from tests.contract.snapshot_calls import NAME, OURS

VM = "off"


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def vcenter(lab: LabServer) -> VCenter:
    return lab.connect()


@pytest.fixture
def held(lab: LabServer, vcenter: VCenter) -> tuple[VmState, TakenSnapshot]:
    """A VM with a user's snapshot and ours: as it was before, and our snapshot."""
    vm = lab.vm(VM).moref
    create(vcenter, vm, "by hand", "Ada")
    state = vm_state(vcenter, vm, list_directories=True)
    return state, create(vcenter, vm, NAME, OURS)


def removed(vcenter: VCenter, state: VmState, recorded: str = "") -> RemovalRecord:
    return remove(
        vcenter,
        state.moref,
        name=NAME,
        description=OURS,
        snapshot_moref=recorded,
        before=state,
        instance_uuid=state.instance_uuid,
        timeout_s=20,
    )


@pytest.mark.parametrize("known", [True, False])
def test_the_snapshot_of_a_vm_that_was_registered_anew_is_removed(
    lab: LabServer, vcenter: VCenter, held: tuple[VmState, TakenSnapshot], *, known: bool
) -> None:
    state, taken = held
    lab.hosts.unregister(VM)
    lab.hosts.wait_task(lab.hosts.register(state.vmx_path).task)
    now = lab.vm(VM).moref
    assert now != state.moref
    record = removed(vcenter, state, taken.moref if known else "")
    assert record.vm_moref == now
    assert len(record.morefs) == 1
    assert not record.vm_gone
    assert [each.name for each in tree(vcenter, now)] == ["by hand"]
    after = vm_state(vcenter, now, list_directories=True)
    assert {each.path for each in after.listed} == {each.path for each in state.listed}
    assert not after.consolidation_needed


def test_a_vm_that_is_only_out_of_the_inventory_is_never_called_gone(
    lab: LabServer, vcenter: VCenter, held: tuple[VmState, TakenSnapshot]
) -> None:
    state, taken = held
    lab.hosts.unregister(VM)
    with pytest.raises(BusyError, match="register it again"):
        removed(vcenter, state, taken.moref)
    lab.hosts.wait_task(lab.hosts.register(state.vmx_path).task)
    assert len(removed(vcenter, state, taken.moref).morefs) == 1


def test_a_deleted_vm_has_no_snapshot_left_for_certain(
    lab: LabServer, vcenter: VCenter, held: tuple[VmState, TakenSnapshot]
) -> None:
    state, taken = held
    lab.hosts.wait_task(lab.hosts.destroy(VM).task)
    record = removed(vcenter, state, taken.moref)
    assert (record.vm_gone, record.files_checked, record.morefs, record.left) == (True, True, [], [])


def test_a_missing_vm_whose_directory_nobody_knows_proves_nothing(
    lab: LabServer, vcenter: VCenter, held: tuple[VmState, TakenSnapshot]
) -> None:
    state, _ = held
    lab.hosts.unregister(VM)
    unknown = VmState(moref=state.moref, instance_uuid=state.instance_uuid, consolidation_needed=False)
    record = removed(vcenter, unknown)
    assert (record.vm_gone, record.files_checked) == (True, False)
    with pytest.raises(NotFoundError):
        remove(vcenter, state.moref, name=NAME, description=OURS)


def test_an_account_that_may_not_browse_calls_no_vm_deleted(
    lab: LabServer, held: tuple[VmState, TakenSnapshot]
) -> None:
    state, taken = held
    lab.hosts.wait_task(lab.hosts.destroy(VM).task)
    with pytest.raises(PermissionRefusedError, match=r"Datastore\.Browse"):
        removed(lab.connect(user="reader"), state, taken.moref)


def test_a_moref_that_is_another_vms_now_is_not_believed(
    lab: LabServer, vcenter: VCenter, held: tuple[VmState, TakenSnapshot]
) -> None:
    """A vCenter that was built anew counts its morefs from the start again."""
    state, _ = held
    other = lab.vm("plain").moref
    record = removed(vcenter, state.model_copy(update={"moref": other}))
    assert record.vm_moref == state.moref
    assert len(record.morefs) == 1
