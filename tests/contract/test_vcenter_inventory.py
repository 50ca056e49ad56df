"""Goal: discovery tells every VM once, or why not, in pages; and what lies below it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from safehaul.errors import InvalidInputError, NotFoundError
from safehaul.messages.inventory import UnidentifiedReason
from safehaul.vsphere.datastores import list_directory
from safehaul.vsphere.inventory import Inventory, all_nas_volumes, discover, nas_volumes
from safehaul.vsphere.vms import snapshot_config, snapshot_disks, vm_config, vm_state
from tests.contract.vcenter_server import MIB, SERVERS, LabServer, Server, lab_server


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with SERVERS[request.param](tmp_path_factory.mktemp("any")) as running:
        yield running


@pytest.fixture(scope="module")
def inventory(lab: LabServer) -> Inventory:
    return discover(lab.connect())


def test_every_vm_has_a_unique_vc_guid_whatever_the_page_size(server: Server) -> None:
    vcenter = server.connect()
    whole = discover(vcenter)
    beats: list[None] = []
    paged = discover(vcenter, page_size=2, heartbeat=lambda: beats.append(None))
    assert paged == whole
    assert len(beats) >= 3
    guids = [each.vc_guid for each in whole.records]
    assert len(set(guids)) == len(guids) > 0
    assert all(each.startswith(vcenter.about().instance_uuid + ".") for each in guids)


def test_a_walk_is_a_handful_of_calls(lab: LabServer) -> None:
    vcenter = lab.connect()
    before = lab.admin.call_counts()
    discover(vcenter)
    after = lab.admin.call_counts()
    spent = sum(after.values()) - sum(before.values())
    assert spent <= 15
    assert after.get("Fetch", 0) == before.get("Fetch", 0)


def test_names_are_unescaped_and_paths_keep_their_components(inventory: Inventory) -> None:
    by_name = {each.name: each for each in inventory.records}
    web = by_name["web 100% / blue"]
    assert web.folder == "prod/web"
    assert (web.datacenter, web.cluster) == ("DC-Lab", "cluster-a")
    assert web.host
    assert web.host_moref
    assert web.vmx_path.startswith("[gold] ")
    assert by_name["plain"].folder == ""
    assert by_name["golden"].template
    assert by_name["off"].power_state == "poweredOff"
    assert by_name["数据库"].snapshot_count == 1
    assert by_name["split"].datastores == ["gold", "local"]


def test_disks_tell_mode_capacity_and_chain(inventory: Inventory) -> None:
    database = next(each for each in inventory.records if each.name == "数据库")
    frozen, independent = database.disks
    assert frozen.capacity_bytes == MIB
    assert not frozen.independent
    assert len(frozen.parent_paths) == 1
    assert independent.independent
    assert independent.parent_paths == []


def test_unreadable_vms_and_twins_come_back_with_their_reason(inventory: Inventory) -> None:
    by_name = {each.name: each for each in inventory.unidentified}
    assert set(by_name) == {"lost", "twin a", "twin b"}
    assert by_name["lost"].kind is UnidentifiedReason.NOT_CONNECTED
    assert by_name["twin a"].kind is UnidentifiedReason.DUPLICATE
    assert "'twin a'" in by_name["twin b"].reason
    assert "'twin b'" in by_name["twin a"].reason


def test_nas_volumes_tell_server_path_version_and_space(lab: LabServer, inventory: Inventory) -> None:
    vcenter = lab.connect()
    of_host = nas_volumes(vcenter, inventory.records[0].host_moref)
    by_name = {each.datastore: each for each in of_host}
    assert set(by_name) == {"gold", "silver", "local"}
    gold, silver, local = by_name["gold"], by_name["silver"], by_name["local"]
    assert (gold.type, gold.remote_path) == ("NFS", "/exports/gold")
    assert (silver.type, silver.security_type) == ("NFS41", "AUTH_SYS")
    assert not local.is_nas
    assert gold.capacity_bytes > gold.free_bytes > 0
    assert {each.datastore for each in all_nas_volumes(vcenter) if each.is_nas} == {"gold", "silver"}


def test_unknown_objects_are_not_found(server: Server) -> None:
    vcenter = server.connect()
    for ask in (nas_volumes, vm_state, vm_config, snapshot_disks, snapshot_config):
        with pytest.raises(NotFoundError):
            ask(vcenter, "no-such-object")


def test_a_vm_state_lists_what_is_on_the_datastore(lab: LabServer) -> None:
    state = vm_state(lab.connect(), lab.vm("split").moref, list_directories=True)
    assert {path.split("]")[0] for path in state.directories} == {"[gold", "[local"}
    listed = {each.path: each.size_bytes for each in state.listed}
    assert {each.path for each in state.files if "vmdk" in each.path} <= set(listed)
    assert next(size for path, size in listed.items() if path.endswith("-flat.vmdk")) == MIB
    assert state.vmx_path in listed


def test_directories_that_do_not_exist_or_climb_are_refused(lab: LabServer) -> None:
    vcenter = lab.connect()
    with pytest.raises(NotFoundError):
        list_directory(vcenter, "[gold] no such directory")
    with pytest.raises(NotFoundError, match="no datastore"):
        list_directory(vcenter, "[lead] vm")
    with pytest.raises(InvalidInputError):
        list_directory(vcenter, "[gold] ../..")


def test_a_configuration_is_enough_for_a_restore(lab: LabServer) -> None:
    state = vm_state(lab.connect(), lab.vm("数据库").moref)
    frozen = snapshot_config(lab.connect(), state.snapshots[0].moref)
    assert frozen.name == "数据库"
    assert frozen.hardware_version == "vmx-19"
    assert frozen.memory_mb > 0
    assert frozen.uuid_bios != ""
    assert {disk.controller_key for disk in frozen.disks} <= {each.key for each in frozen.controllers}
    assert frozen.nics[0].mac
    assert frozen.nics[0].network == "VM Network"
    # The snapshot's own disks are the frozen ones; the running VM writes elsewhere.
    assert frozen.disks[0].path == state.disks[0].parent_paths[0]
    assert snapshot_disks(lab.connect(), state.snapshots[0].moref) == frozen.disks
