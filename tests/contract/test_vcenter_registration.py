"""Goal: a restored VM enters vCenter at the right place, once, and over nobody else's."""

from __future__ import annotations

import pytest

from lab.esx.api import FaultRule
from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidInputError,
    NotFoundError,
    PermissionRefusedError,
)
from safehaul.vsphere import registration, vm_disks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.datastores import find_datastore
from safehaul.vsphere.inventory import discover
from safehaul.vsphere.vm_disks import DiskChange
from tests.contract.lab_server import LabServer
from tests.contract.vcenter_server import Ability, Server, vm_named


@pytest.fixture(scope="module")
def vcenter(server: Server) -> VCenter:
    return server.administrator()


def test_a_place_is_found_by_datastore_folder_and_cluster(vcenter: VCenter) -> None:
    root = registration.find_place(vcenter, "gold")
    web = registration.find_place(vcenter, "gold", folder="prod/web", cluster="cluster-a")
    assert root.datacenter == web.datacenter == "DC-Lab"
    assert root.folder != web.folder
    assert root.pool == web.pool != ""


@pytest.mark.parametrize(
    ("datastore", "options"),
    [
        ("lead", {}),
        ("gold", {"folder": "prod/none"}),
        ("gold", {"cluster": "cluster-z"}),
        ("gold", {"datacenter": "DC-None"}),
    ],
)
def test_an_unknown_place_is_named(vcenter: VCenter, datastore: str, options: dict[str, str]) -> None:
    wanted = next(iter(options.values()), datastore).rpartition("/")[2]
    with pytest.raises(NotFoundError, match=wanted):
        registration.find_place(vcenter, datastore, **options)


def test_datastores_are_found_by_name(vcenter: VCenter) -> None:
    assert find_datastore(vcenter, "silver").get("summary").type == "NFS41"
    with pytest.raises(NotFoundError):
        find_datastore(vcenter, "lead")


def test_a_vm_is_unregistered_and_registered_elsewhere(server: Server, vcenter: VCenter) -> None:
    off = vm_named(server, "off")
    name = "off / 50% restored" if Ability.NEW_NAME in server.abilities else off.name
    place = registration.find_place(vcenter, "gold", folder="prod/web")
    with pytest.raises(AlreadyExistsError, match="registered already"):
        registration.register(vcenter, place, off.vmx_path, "restored")
    registration.unregister(vcenter, off.moref)
    registration.unregister(vcenter, off.moref)
    assert registration.find_registered(vcenter, off.vmx_path) is None
    with pytest.raises(AlreadyExistsError, match="choose another name"):
        registration.register(vcenter, place, off.vmx_path, "WEB 100% / blue")
    moref = registration.register(vcenter, place, off.vmx_path, name)
    assert registration.find_registered(vcenter, off.vmx_path) == (moref, name)
    record = next(each for each in discover(vcenter).records if each.moref == moref)
    assert (record.name, record.folder) == (name, "prod/web")
    assert (record.cluster, record.vmx_path) == ("cluster-a", off.vmx_path)
    assert record.power_state == "poweredOff"


def test_a_vmx_that_does_not_exist_is_not_found(vcenter: VCenter) -> None:
    place = registration.find_place(vcenter, "gold")
    with pytest.raises(NotFoundError):
        registration.register(vcenter, place, "[gold] nobody/nobody.vmx", "nobody")
    assert registration.find_registered(vcenter, "[gold] nobody/nobody.vmx") is None


def test_a_lost_answer_of_registration_finds_the_vm(lab: LabServer) -> None:
    vcenter, golden = lab.administrator(), lab.vm("golden")
    registration.unregister(vcenter, golden.moref)
    place = registration.find_place(vcenter, "gold")
    lab.hosts.add_fault(FaultRule(operation="RegisterVM", effect="drop-after-start"))
    moref = registration.register(vcenter, place, golden.vmx_path, "golden copy")
    assert registration.find_registered(vcenter, golden.vmx_path) == (moref, "golden copy")


def test_a_running_vm_is_not_unregistered_and_power_off_is_idempotent(
    server: Server, vcenter: VCenter
) -> None:
    split = vm_named(server, "split")
    with pytest.raises(BusyError):
        registration.unregister(vcenter, split.moref)
    registration.power_off(vcenter, split.moref)
    registration.power_off(vcenter, split.moref)
    registration.unregister(vcenter, split.moref)
    assert registration.find_registered(vcenter, split.vmx_path) is None


def test_a_disk_is_attached_once(server: Server, vcenter: VCenter) -> None:
    target, source = vm_named(server, "数据库"), vm_named(server, "web 100% / blue")
    registration.power_off(vcenter, source.moref)
    registration.unregister(vcenter, source.moref)
    disk, controller = source.disks[0].path, target.disks[0].controller_key
    for _ in range(2):
        vm_disks.change_disks(vcenter, target.moref, [DiskChange(controller, 9, "", disk)])
    attached = [each for each in vm_named(server, "数据库").disks if each.path == disk]
    assert [(each.controller_key, each.unit_number) for each in attached] == [(controller, 9)]
    with pytest.raises(AlreadyExistsError):
        vm_disks.change_disks(
            vcenter, target.moref, [DiskChange(controller, 9, "", "[gold] other/other.vmdk")]
        )


def test_a_disk_that_does_not_exist_is_not_attached(server: Server, vcenter: VCenter) -> None:
    target = vm_named(server, "数据库")
    change = DiskChange(target.disks[0].controller_key, 10, "", "[gold] other/other.vmdk")
    with pytest.raises(NotFoundError):
        vm_disks.change_disks(vcenter, target.moref, [change])


@pytest.mark.parametrize("path", ["[gold] ../x.vmx", "x.vmx", "[gold] a\nb.vmx"])
def test_bad_paths_and_names_are_refused_before_any_call(vcenter: VCenter, path: str) -> None:
    place = registration.Place("group-v1", "resgroup-1", "DC-Lab")
    with pytest.raises(InvalidInputError):
        registration.register(vcenter, place, path, "x")
    with pytest.raises(InvalidInputError):
        registration.register(vcenter, place, "[gold] a/a.vmx", "x" * 81)


def test_a_missing_privilege_is_named(lab: LabServer) -> None:
    reader = lab.connect(user="reader")
    place = registration.find_place(reader, "gold")
    with pytest.raises(PermissionRefusedError, match=r"VirtualMachine\.Inventory\.Register"):
        registration.register(reader, place, "[gold] nobody/nobody.vmx", "nobody")
