"""Goal: discovery tells every VM once, or why not, in pages; and what lies below it."""

from __future__ import annotations

import pytest

from safehaul.errors import InvalidInputError, NotFoundError
from safehaul.messages.inventory import InventoryDetail, UnidentifiedReason
from safehaul.vsphere.datastores import list_directory
from safehaul.vsphere.inventory import Inventory, all_nas_volumes, discover, nas_volumes, volumes_of_vm
from safehaul.vsphere.vms import snapshot_config, snapshot_disks, vm_config, vm_state
from safehaul.vsphere.whereabouts import find_by_instance_uuid, instance_uuid_of
from tests.contract.vcenter_server import MIB, PLAIN_VM, Ability, Server, needs, vm_named


@pytest.fixture(scope="module")
def inventory(server: Server) -> Inventory:
    return discover(server.connect())


def test_every_vm_has_a_unique_vc_guid_whatever_the_page_size(server: Server) -> None:
    vcenter = server.connect()
    whole = discover(vcenter)
    paged = discover(vcenter, page_size=2)
    assert paged == whole
    guids = [each.vc_guid for each in whole.records]
    assert len(set(guids)) == len(guids) > 0
    assert all(each.startswith(vcenter.about().instance_uuid + ".") for each in guids)


def test_custom_attributes_come_by_name_and_only_when_asked_for(server: Server, inventory: Inventory) -> None:
    asked = discover(server.connect(), details=(InventoryDetail.ATTRIBUTES,))
    assert {each.name: each.attributes for each in asked.records if each.attributes} == {
        "web 100% / blue": {"Owner": "team-web"}
    }
    assert all(each.attributes == {} for each in inventory.records)


@needs(Ability.PAGING)
def test_a_walk_goes_on_page_by_page_with_a_heartbeat_each(server: Server) -> None:
    beats: list[None] = []
    before = server.calls()
    discover(server.connect(), page_size=2, heartbeat=lambda: beats.append(None))
    assert len(beats) >= 3
    assert (server.calls() - before)["ContinueRetrievePropertiesEx"] >= 3


def test_a_walk_is_a_handful_of_calls(server: Server) -> None:
    vcenter = server.connect()
    before = server.calls()
    discover(vcenter)
    spent = server.calls() - before
    assert 3 <= spent.total() <= 15
    assert spent["Fetch"] == 0


def test_names_are_unescaped_and_paths_keep_their_components(inventory: Inventory) -> None:
    by_name = {each.name: each for each in inventory.records}
    web = by_name["web 100% / blue"]
    assert web.folder == "prod/web"
    assert (web.datacenter, web.cluster) == ("DC-Lab", "cluster-a")
    assert web.host
    assert web.host_moref
    assert web.vmx_path.startswith("[gold] ")
    assert (web.hardware_version, web.guest_id) == ("vmx-19", "otherLinux64Guest")
    assert (web.annotation, by_name["plain"].annotation) == ("blue", "")
    assert by_name["plain"].folder == ""
    assert by_name["plain"].power_state == "poweredOn"
    assert by_name["golden"].template
    assert by_name["off"].power_state == "poweredOff"
    assert by_name["数据库"].snapshot_count == 1
    assert by_name["split"].datastores == ["gold", "local"]


def test_custom_attributes_and_pools_come_when_they_are_asked_for(
    server: Server, inventory: Inventory
) -> None:
    detailed = discover(server.connect(), details=[InventoryDetail.ATTRIBUTES])
    told = {each.name: (each.attributes, each.resource_pool) for each in detailed.records}
    assert told["web 100% / blue"] == ({"Owner": "team-web"}, "Gold/Web")
    assert told["plain"] == ({}, "")
    assert all(each.attributes == {} for each in inventory.records)


def test_disks_tell_mode_capacity_and_place(inventory: Inventory) -> None:
    database = next(each for each in inventory.records if each.name == "数据库")
    frozen, independent = database.disks
    assert frozen.capacity_bytes == MIB
    assert not frozen.independent
    assert frozen.path.startswith("[silver] ")
    assert frozen.controller_key == independent.controller_key
    assert frozen.unit_number != independent.unit_number
    assert independent.independent
    assert independent.parent_paths == []


@needs(Ability.REDO_LOGS)
def test_a_disk_under_a_snapshot_tells_its_chain(inventory: Inventory) -> None:
    database = next(each for each in inventory.records if each.name == "数据库")
    assert len(database.disks[0].parent_paths) == 1


def test_twins_come_back_with_their_reason(inventory: Inventory) -> None:
    by_name = {each.name: each for each in inventory.unidentified}
    assert by_name["twin a"].kind is UnidentifiedReason.DUPLICATE
    assert "'twin a'" in by_name["twin b"].reason
    assert "'twin b'" in by_name["twin a"].reason
    assert not {"twin a", "twin b"} & {each.name for each in inventory.records}


@needs(Ability.UNREADABLE_VMS)
def test_an_unreadable_vm_comes_back_with_its_reason(inventory: Inventory) -> None:
    by_name = {each.name: each for each in inventory.unidentified}
    assert set(by_name) == {"lost", "twin a", "twin b"}
    assert by_name["lost"].kind is UnidentifiedReason.NOT_CONNECTED


def test_nas_volumes_tell_server_path_version_and_space(server: Server, inventory: Inventory) -> None:
    vcenter = server.connect()
    of_host = nas_volumes(vcenter, inventory.records[0].host_moref)
    by_name = {each.datastore: each for each in of_host}
    assert {"gold", "silver", "local"} <= set(by_name)
    gold, silver, local = by_name["gold"], by_name["silver"], by_name["local"]
    assert (gold.type, gold.remote_host, gold.remote_path) == ("NFS", "127.0.0.1", "/exports/gold")
    assert (silver.type, silver.remote_path) == ("NFS41", "/exports/silver")
    assert not local.is_nas
    assert gold.accessible
    assert gold.capacity_bytes > gold.free_bytes > 0
    everywhere = all_nas_volumes(vcenter)
    assert {each.datastore for each in everywhere if each.is_nas} == {"gold", "silver"}
    assert {each.datacenter for each in everywhere} == {"DC-Lab"}
    assert volumes_of_vm(vcenter, inventory.records[0].moref) == everywhere


@needs(Ability.HOST_MOUNTS)
def test_a_host_tells_how_it_mounts_a_volume(server: Server, inventory: Inventory) -> None:
    of_host = nas_volumes(server.connect(), inventory.records[0].host_moref)
    assert {each.datastore: each.security_type for each in of_host if each.is_nas} == {
        "gold": "",
        "silver": "AUTH_SYS",
    }


def test_unknown_objects_are_not_found(server: Server) -> None:
    vcenter = server.connect()
    for ask in (nas_volumes, vm_state, vm_config, snapshot_disks, snapshot_config):
        with pytest.raises(NotFoundError):
            ask(vcenter, "no-such-object")


def test_a_vm_state_lists_what_is_on_the_datastore(server: Server) -> None:
    state = vm_state(server.connect(), vm_named(server, "split").moref, list_directories=True)
    assert {path.split("]")[0] for path in state.directories} == {"[gold", "[local"}
    listed = {each.path: each.size_bytes for each in state.listed}
    assert {each.path for each in state.disks} <= set(listed)
    flat = [size for path, size in listed.items() if path.endswith("-flat.vmdk")]
    assert flat
    if Ability.FILE_CONTENTS in server.abilities:
        assert set(flat) == {MIB}
        assert {each.path for each in state.files if "vmdk" in each.path} <= set(listed)
    assert state.vmx_path in listed
    assert all(each.modified for each in state.listed)


def test_directories_that_do_not_exist_or_climb_are_refused(server: Server) -> None:
    vcenter = server.connect()
    with pytest.raises(NotFoundError):
        list_directory(vcenter, "[gold] no such directory")
    with pytest.raises(NotFoundError, match="no datastore"):
        list_directory(vcenter, "[lead] vm")
    with pytest.raises(InvalidInputError):
        list_directory(vcenter, "[gold] ../..")


def test_a_configuration_is_enough_for_a_restore(server: Server) -> None:
    vcenter = server.connect()
    state = vm_state(vcenter, vm_named(server, "数据库").moref)
    frozen = snapshot_config(vcenter, state.snapshots[0].moref)
    assert frozen.name == "数据库"
    assert frozen.hardware_version == "vmx-19"
    assert frozen.memory_mb > 0
    assert frozen.uuid_bios != ""
    assert {disk.controller_key for disk in frozen.disks} <= {each.key for each in frozen.controllers}
    assert frozen.nics[0].mac
    assert frozen.nics[0].network == "VM Network"
    assert len(frozen.disks) == 2
    assert snapshot_disks(vcenter, state.snapshots[0].moref) == frozen.disks
    if Ability.REDO_LOGS in server.abilities:
        # The snapshot's own disks are the frozen ones; the running VM writes elsewhere.
        assert frozen.disks[0].path == state.disks[0].parent_paths[0]


@needs(Ability.SEARCH_ALL)
def test_a_vm_is_found_by_the_second_half_of_its_vc_guid(server: Server) -> None:
    record = vm_named(server, PLAIN_VM)
    found = find_by_instance_uuid(server.connect(), instance_uuid_of(record.vc_guid))
    assert found == [record.moref]
    assert find_by_instance_uuid(server.connect(), "50000000-0000-4000-8000-00000000ffff") == []
