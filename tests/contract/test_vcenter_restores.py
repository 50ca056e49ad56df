"""Goal: what a restore asks of vCenter is done once, wholly or not at all; missing privileges are told beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from lab.esx.api import FaultRule
from lab.esx.descriptor import Descriptor
from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidInputError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    UnsupportedError,
)
from safehaul.messages.inventory import VmRecord
from safehaul.vsphere import networks, privileges, registration, vm_disks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.vm_disks import DiskChange
from safehaul.vsphere.vms import vm_config
from tests.contract.lab_server import LabServer, lab_server
from tests.contract.vcenter_server import USER

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def vcenter(lab: LabServer) -> VCenter:
    return lab.connect(user="root@vsphere.local")


@pytest.fixture(autouse=True)
def _clean(lab: LabServer) -> Iterator[None]:
    yield
    lab.hosts.clear_faults()


def new_disk(lab: LabServer, vm: VmRecord, name: str) -> str:
    """A disk's files beside the VM's own, as a restore leaves them; its datastore path."""
    store = next(each for each in lab.hosts.state().datastores if vm.vmx_path.startswith(f"[{each.name}]"))
    home = Path(store.directory) / vm.vmx_path.partition("] ")[2].rpartition("/")[0]
    (home / f"{name}-flat.vmdk").write_bytes(bytes(MIB))
    descriptor = Descriptor(
        content_id="00000001", create_type="vmfs", sectors=MIB // 512, extent_name=f"{name}-flat.vmdk"
    )
    (home / f"{name}.vmdk").write_text(descriptor.render())
    return f"{vm.vmx_path.rpartition('/')[0]}/{name}.vmdk"


def change_of(vm: VmRecord, new_path: str) -> DiskChange:
    disk = vm.disks[0]
    return DiskChange(disk.controller_key, disk.unit_number, disk.path, new_path)


def back(change: DiskChange) -> DiskChange:
    return DiskChange(change.controller_key, change.unit_number, change.new_path, change.old_path)


def test_disks_are_exchanged_at_their_place_and_back_again_and_no_file_is_deleted(
    lab: LabServer, vcenter: VCenter
) -> None:
    vm = lab.vm("off")
    change = change_of(vm, new_disk(lab, vm, "new"))
    for _ in range(2):
        vm_disks.change_disks(vcenter, vm.moref, [change])
        now = lab.vm("off")
        assert [(disk.path, disk.unit_number) for disk in now.disks] == [
            (change.new_path, change.unit_number)
        ]
        assert now.vc_guid == vm.vc_guid
    for _ in range(2):
        vm_disks.change_disks(vcenter, vm.moref, [back(change)])
        assert [disk.path for disk in lab.vm("off").disks] == [change.old_path]
    listed = {entry.path for entry in lab.hosts.list_directory("[gold] off/")}
    assert {"new.vmdk", "new-flat.vmdk", "off.vmdk", "off-flat.vmdk"} <= listed


def test_an_exchange_happens_wholly_or_not_at_all(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("off")
    good, bad = change_of(vm, new_disk(lab, vm, "good")), DiskChange(1000, 5, "", "[gold] off/nothing.vmdk")
    with pytest.raises(NotFoundError, match="nothing"):
        vm_disks.change_disks(vcenter, vm.moref, [good, bad])
    assert lab.vm("off").disks == vm.disks


def test_an_exchange_whose_answer_is_lost_is_found_done(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("off")
    change = change_of(vm, new_disk(lab, vm, "lost-answer"))
    lab.hosts.add_fault(FaultRule(operation="ReconfigVM", effect="drop-after-start"))
    vm_disks.change_disks(vcenter, vm.moref, [change])
    assert [disk.path for disk in lab.vm("off").disks] == [change.new_path]
    vm_disks.change_disks(vcenter, vm.moref, [back(change)])


def test_what_was_changed_meanwhile_is_not_touched(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("off")
    disk = vm.disks[0]
    stale = DiskChange(disk.controller_key, disk.unit_number, "[gold] off/before.vmdk", "[gold] off/x.vmdk")
    with pytest.raises(AlreadyExistsError, match="changed meanwhile"):
        vm_disks.change_disks(vcenter, vm.moref, [stale])
    taken = DiskChange(disk.controller_key, disk.unit_number, "", "[gold] off/x.vmdk")
    with pytest.raises(AlreadyExistsError):
        vm_disks.change_disks(vcenter, vm.moref, [taken])


def test_only_ordinary_disks_are_taken_off(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("数据库")
    independent = next(disk for disk in vm.disks if disk.independent)
    change = DiskChange(independent.controller_key, independent.unit_number, independent.path, "")
    with pytest.raises(PolicyError, match="no ordinary persistent disk"):
        vm_disks.change_disks(vcenter, vm.moref, [change])


def test_a_disk_of_another_vm_is_refused(lab: LabServer, vcenter: VCenter) -> None:
    vm, other = lab.vm("off"), lab.vm("split")
    with pytest.raises(BusyError):
        vm_disks.change_disks(vcenter, vm.moref, [DiskChange(1000, 9, "", other.disks[0].path)])


def test_a_vm_is_found_by_guid_and_by_a_name_of_its_own(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("off")
    for reference in (vm.vc_guid, vm.name):
        assert vm_disks.find_vm(vcenter, reference, field="to_vm").moref == vm.moref
    with pytest.raises(NotFoundError, match=r"to_vm: .*'nobody'"):
        vm_disks.find_vm(vcenter, "nobody", field="to_vm")
    with pytest.raises(UnsupportedError, match="inaccessible"):
        vm_disks.find_vm(vcenter, "lost", field="to_vm")
    with pytest.raises(UnsupportedError, match="several VMs"):
        vm_disks.find_vm(vcenter, "twin a", field="to_vm")


def test_a_free_place_is_the_first_that_no_device_holds(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("off")
    taken = vm_disks.present_places(vcenter, vm.moref)
    hardware = vm_config(vcenter, vm.moref)
    assert vm_disks.free_place(hardware, set(taken), running=False) == (1000, 1)
    full = {(1000, unit) for unit in range(16)}
    with pytest.raises(PolicyError, match="no free place"):
        vm_disks.free_place(hardware, full, running=False)
    assert vm_disks.free_place(hardware, full - {(1000, 8), (1000, 7)}, running=True) == (1000, 8)


def test_whose_file_it_is(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("数据库")
    silver = vm.datastore_morefs["silver"]
    assert "数据库" in vm_disks.named_by_vms(vcenter, silver, [vm.disks[0].path])
    base = vm.disks[0].parent_paths[-1]
    assert "数据库" in vm_disks.named_by_vms(vcenter, silver, [base]), "a snapshot's disk"
    assert vm_disks.named_by_vms(vcenter, silver, ["[silver] x/x.vmdk"]) == ""


def test_networks_are_chosen_by_name_standard_and_distributed(lab: LabServer, vcenter: VCenter) -> None:
    place = registration.find_place(vcenter, "gold")
    available = networks.networks_of(vcenter, place.compute)
    assert {each.name: bool(each.switch_uuid) for each in available} == {
        "VM Network": False,
        "Isolated": False,
        "dv-prod": True,
    }
    names = ["VM Network", "", "Old"]
    chosen = networks.choose(available, names, {"Old": "dv-prod"})
    assert [each.name if each else None for each in chosen] == ["VM Network", None, "dv-prod"]
    with pytest.raises(InvalidInputError, match="no network 'Gone' where the VM will be"):
        networks.choose(available, ["VM Network"], {"VM Network": "Gone"})
    with pytest.raises(InvalidInputError, match='"Gone=NEW"'):
        networks.choose(available, ["Gone"], {})
    with pytest.raises(InvalidInputError, match="no network card of the backup is on 'Other'"):
        networks.choose(available, ["VM Network"], {"Other": "Isolated"})
    twice = [*available, available[0]._replace(moref="network-99")]
    with pytest.raises(InvalidInputError, match="several networks"):
        networks.choose(twice, [available[0].name], {})


def test_cards_are_put_on_their_networks_and_keep_their_addresses(lab: LabServer, vcenter: VCenter) -> None:
    vm, place = lab.vm("off"), registration.find_place(vcenter, "gold")
    available = {each.name: each for each in networks.networks_of(vcenter, place.compute)}
    before = networks.cards_of(vcenter, vm.moref)
    for name, connect in (("dv-prod", True), ("Isolated", False), ("Isolated", False)):
        cards = networks.put_cards(vcenter, vm.moref, [available[name]], connect=connect)
        assert cards == [before[0]._replace(network=name, connected=connect)]
        hosts = next(each for each in lab.hosts.state().vms if each.moref == vm.moref)
        assert hosts.hardware.nics[0].network == available[name].moref
    assert networks.addresses_in_use(vcenter, [before[0].mac.upper(), "00:00:00:00:00:01"]) == {
        before[0].mac: "off"
    }


def test_missing_privileges_are_told_all_at_once_without_trying(lab: LabServer) -> None:
    limited = lab.connect()
    vm, place = lab.vm("off"), registration.find_place(limited, "gold")
    needs = {
        privileges.entity("VirtualMachine", vm.moref): [*privileges.SWITCH_DISK_PRIVILEGES, "System.Read"],
        privileges.entity("Folder", place.folder): privileges.REGISTER_PRIVILEGES,
    }
    with pytest.raises(PermissionRefusedError) as refused:
        privileges.require(limited, needs)
    for wanted in ("AddExistingDisk on VirtualMachine", "RemoveDisk on", "Inventory.Register on Folder"):
        assert wanted in str(refused.value)
    assert "System.Read" not in str(refused.value)
    privileges.require(limited, {privileges.entity("VirtualMachine", vm.moref): ["System.Read"]})


@pytest.mark.parametrize(
    "privilege", ["VirtualMachine.Config.EditDevice", "Network.Assign", "VirtualMachine.Config.RemoveDisk"]
)
def test_vcenter_itself_refuses_without_the_privilege(lab: LabServer, privilege: str) -> None:
    """What the check beforehand asks for is what the call needs: no more, no less."""
    held = [
        *("System.Read", "System.View", "VirtualMachine.Config.EditDevice", "Network.Assign"),
        *privileges.SWITCH_DISK_PRIVILEGES,
    ]
    lab.hosts.set_user("part", [item for item in held if item != privilege], "right-Secret-1")
    part, vm = lab.connect(user="part"), lab.vm("off")
    network = networks.networks_of(part, registration.find_place(part, "gold").compute)[0]
    change = change_of(vm, new_disk(lab, vm, "refused"))
    calls: dict[bool, Callable[[], object]] = {
        True: lambda: vm_disks.change_disks(part, vm.moref, [change]),
        False: lambda: networks.put_cards(part, vm.moref, [network], connect=True),
    }
    with pytest.raises(PermissionRefusedError, match=privilege.replace(".", r"\.")):
        calls[privilege.endswith("Disk")]()
    assert lab.vm("off").disks == vm.disks


def test_power_on_is_idempotent_and_needs_its_privilege(lab: LabServer, vcenter: VCenter) -> None:
    vm = lab.vm("off")
    with pytest.raises(PermissionRefusedError, match=r"VirtualMachine\.Interact\.PowerOn"):
        vm_disks.power_on(lab.connect(user="reader"), vm.moref)
    lab.hosts.add_fault(FaultRule(operation="PowerOnVM", effect="drop-after-start"))
    for _ in range(2):
        vm_disks.power_on(vcenter, vm.moref)
        assert lab.vm("off").power_state == "poweredOn"
    registration.power_off(vcenter, vm.moref)


def test_the_account_of_backups_alone_cannot_restore(lab: LabServer) -> None:
    place = registration.find_place(lab.connect(), "gold")
    with pytest.raises(PermissionRefusedError, match=r"Inventory\.Register"):
        registration.register(lab.connect(user=USER), place, "[gold] nobody/nobody.vmx", "nobody")


def test_a_reference_is_made_by_the_name_of_its_class() -> None:
    assert privileges.entity("Folder", "group-v3") == (vim.Folder, "group-v3")
