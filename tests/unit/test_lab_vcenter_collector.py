"""Goal: the real client discovers through the PropertyCollector what the hosts have, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.unit.lab_vcenter_double import HostsDouble
from tests.unit.lab_vcenter_front import PC, Front, object_filter, retrieve, values, view_filter, vm_view

VM_COUNT = 1100  # more than one page of the server's own


@pytest.fixture(scope="module")
def hosts() -> Iterator[HostsDouble]:
    double = HostsDouble(VM_COUNT)
    yield double
    double.close()


@pytest.fixture(scope="module")
def front(hosts: HostsDouble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    running = Front(hosts.url, tmp_path_factory.mktemp("front"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def si(front: Front) -> Any:
    return front.smart_connect()


def collector(si: Any) -> Any:
    return si.content.propertyCollector


def test_pages_of_max_objects_reach_every_vm_once(front: Front, si: Any) -> None:
    before = front.admin.call_counts()
    found = retrieve(
        si, view_filter(vm_view(si), vim.VirtualMachine, ["name", "config.instanceUuid"]), page=250
    )
    assert len({each.obj for each in found}) == VM_COUNT
    assert values(found[7])["name"] == "vm 0007"
    after = front.admin.call_counts()
    pages = after["RetrievePropertiesEx"] + after["ContinueRetrievePropertiesEx"]
    assert pages - before.get("RetrievePropertiesEx", 0) - before.get("ContinueRetrievePropertiesEx", 0) == 5


def test_the_server_pages_also_when_the_client_does_not_ask(si: Any) -> None:
    spec = view_filter(vm_view(si), vim.VirtualMachine, ["name"])
    first = collector(si).RetrievePropertiesEx([spec], PC.RetrieveOptions())
    assert len(first.objects) == 1000
    assert first.token
    assert len(collector(si).ContinueRetrievePropertiesEx(first.token).objects) == VM_COUNT - 1000


def test_a_token_is_good_once(si: Any) -> None:
    spec = view_filter(vm_view(si), vim.VirtualMachine, ["name"])
    token = collector(si).RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=10)).token
    collector(si).ContinueRetrievePropertiesEx(token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector(si).ContinueRetrievePropertiesEx(token)
    token = collector(si).RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=10)).token
    collector(si).CancelRetrievePropertiesEx(token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector(si).ContinueRetrievePropertiesEx(token)


def test_unset_properties_are_left_out(hosts: HostsDouble, si: Any) -> None:
    vm = vim.VirtualMachine("vm-1000")
    found = values(
        retrieve(si, object_filter(vm, ["name", "snapshot", "config.keyId", "config.hardware.device"]))[0]
    )
    assert set(found) == {"name", "config.hardware.device"}
    hosts.replace_vm("vm-1001", connection_state="inaccessible")
    lost = values(
        retrieve(si, object_filter(vim.VirtualMachine("vm-1001"), ["config", "runtime.connectionState"]))[0]
    )
    assert lost == {"runtime.connectionState": "inaccessible"}


def test_values_carry_the_types_of_the_api(si: Any) -> None:
    paths = ["runtime.powerState", "summary.storage.committed", "config.createDate", "config.hardware.numCPU"]
    found = values(retrieve(si, object_filter(vim.VirtualMachine("vm-1000"), paths))[0])
    assert type(found["runtime.powerState"]) is vim.VirtualMachine.PowerState
    store = values(retrieve(si, object_filter(vim.Datastore("datastore-11"), ["summary.capacity", "vm"]))[0])
    assert store["summary.capacity"] == 8 << 40
    assert len(store["vm"]) == VM_COUNT


def test_a_device_is_found_by_its_key(si: Any) -> None:
    found = retrieve(si, object_filter(vim.VirtualMachine("vm-1000"), ["config.hardware.device[2000]"]))
    (disk,) = values(found[0]).values()
    assert isinstance(disk, vim.vm.device.VirtualDisk)
    chain: Any = disk.backing
    assert chain.fileName == "[nfs-gold] vm 0000/vm 0000-000001.vmdk"
    assert chain.parent.fileName == "[nfs-gold] vm 0000/vm 0000.vmdk"
    assert chain.parent.parent is None


def test_all_properties(si: Any) -> None:
    spec = PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=vim.VirtualMachine("vm-1000"))],
        propSet=[PC.PropertySpec(type=vim.ManagedEntity, all=True)],
    )
    found = values(retrieve(si, spec)[0])
    assert {"config", "runtime", "summary", "layoutEx", "parent", "resourcePool"} <= set(found)


@pytest.mark.parametrize(
    "path", ["nonsense", "config.nonsense", "runtime.host.name", "", "name[", "config..name"]
)
def test_a_wrong_path_is_invalid_property(si: Any, path: str) -> None:
    with pytest.raises(vmodl.query.InvalidProperty):
        retrieve(si, object_filter(vim.VirtualMachine("vm-1000"), [path]))


def test_a_gone_object_is_managed_object_not_found(si: Any) -> None:
    gone = vim.VirtualMachine("vm-999999")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound) as refused:
        retrieve(si, object_filter(gone, ["name"]))
    assert refused.value.obj == gone
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        retrieve(si, object_filter(vim.Datastore("vm-1000"), ["name"]))


def test_traversal_by_named_selections_through_the_folders(si: Any) -> None:
    """The recursive specification that clients without views use."""
    again = PC.SelectionSpec(name="folders")
    folders = PC.TraversalSpec(
        name="folders",
        type=vim.Folder,
        path="childEntity",
        skip=False,
        selectSet=[
            again,
            PC.SelectionSpec(name="dcVms"),
            PC.SelectionSpec(name="dcHosts"),
            PC.SelectionSpec(name="hosts"),
        ],
    )
    to_vms = PC.TraversalSpec(
        name="dcVms", type=vim.Datacenter, path="vmFolder", skip=False, selectSet=[again]
    )
    to_hosts = PC.TraversalSpec(
        name="dcHosts", type=vim.Datacenter, path="hostFolder", skip=False, selectSet=[again]
    )
    hosts = PC.TraversalSpec(name="hosts", type=vim.ComputeResource, path="host", skip=False)
    spec = PC.FilterSpec(
        objectSet=[
            PC.ObjectSpec(obj=si.content.rootFolder, skip=True, selectSet=[folders, to_vms, to_hosts, hosts])
        ],
        propSet=[
            PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name"]),
            PC.PropertySpec(type=vim.HostSystem, pathSet=["name", "config.fileSystemVolume.mountInfo"]),
        ],
    )
    found = retrieve(si, spec, page=500)
    kinds = [type(each.obj) for each in found]
    assert kinds.count(vim.VirtualMachine) == VM_COUNT
    assert kinds.count(vim.HostSystem) == 1


def test_a_container_view_lists_types_and_depth(si: Any) -> None:
    content = si.content
    make = content.viewManager.CreateContainerView
    (datacenter,) = make(content.rootFolder, [vim.Datacenter], False).view
    assert make(content.rootFolder, [vim.VirtualMachine], False).view == []
    names = {each.name for each in make(datacenter, [vim.Datastore, vim.HostSystem], True).view}
    assert names == {"nfs-gold", "nfs41-silver", "local-vmfs", "esx1.lab"}
    below_cluster = make(datacenter.hostFolder.childEntity[0], [vim.VirtualMachine], True).view
    assert len(below_cluster) == VM_COUNT


def test_names_are_escaped_as_vcenter_does(si: Any) -> None:
    folder = vim.Folder("group-v7")
    assert values(retrieve(si, object_filter(folder, ["name"]))[0]) == {"name": "50%25%2foff"}
    find = si.content.searchIndex.FindByInventoryPath
    assert find("Lab/vm/50%25%2foff") == folder
    assert find("Lab/vm/vm 0003") == vim.VirtualMachine("vm-1003")
    assert find("Lab/vm/none") is None


def test_nas_volumes_say_how_the_host_mounted_them(si: Any) -> None:
    mounts = values(
        retrieve(si, object_filter(vim.HostSystem("host-10"), ["config.fileSystemVolume.mountInfo"]))[0]
    )
    volumes = {each.volume.name: each.volume for each in mounts["config.fileSystemVolume.mountInfo"]}
    gold, silver, local = volumes["nfs-gold"], volumes["nfs41-silver"], volumes["local-vmfs"]
    assert (gold.type, gold.remoteHost, gold.remotePath) == ("NFS", "filer.lab", "/vol/nfs-gold")
    assert (silver.type, silver.remoteHostNames) == ("NFS41", ["filer-a.lab", "filer-b.lab"])
    assert silver.securityType == "AUTH_SYS"
    assert isinstance(local, vim.host.VmfsVolume)
    info = values(retrieve(si, object_filter(vim.Datastore("datastore-11"), ["info"]))[0])["info"]
    assert info.nas.remotePath == "/vol/nfs-gold"


def test_without_system_read_the_reason_is_in_missing_set(front: Front) -> None:
    reader, nobody = front.connect("reader"), front.connect("nobody")
    spec = object_filter(vim.VirtualMachine("vm-1000"), ["name"])
    assert values(retrieve(reader, spec)[0]) == {"name": "vm 0000"}
    refused = retrieve(nobody, spec)[0]
    assert values(refused) == {}
    (missing,) = refused.missingSet
    assert (type(missing.fault), missing.fault.privilegeId) == (vim.fault.NoPermission, "System.Read")
    with pytest.raises(vim.fault.NoPermission):
        _ = vim.VirtualMachine("vm-1000", nobody._stub).name


def test_views_of_another_session_are_unknown(front: Front, si: Any) -> None:
    view = vm_view(si)
    other = front.connect("reader")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = vim.view.ContainerView(view._moId, other._stub).view
    view.Destroy()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = view.view


def test_privileges_can_be_asked(front: Front) -> None:
    reader = front.connect("reader")
    content, vm = reader.content, vim.VirtualMachine("vm-1000")
    wanted = ["System.Read", "VirtualMachine.State.CreateSnapshot"]
    (answer,) = content.authorizationManager.HasPrivilegeOnEntities(
        [vm], content.sessionManager.currentSession.key, wanted
    )
    assert {each.privId: each.isGranted for each in answer.privAvailability} == {
        wanted[0]: True,
        wanted[1]: False,
    }
    (held,) = content.authorizationManager.FetchUserPrivilegeOnEntities([vm], "reader")
    assert held.privileges == ["System.Anonymous", "System.Read", "System.View"]


def test_search_by_identity_and_path(hosts: HostsDouble, si: Any) -> None:
    index, vm = si.content.searchIndex, hosts.vm("vm-1005")
    expected = vim.VirtualMachine("vm-1005")
    assert index.FindByUuid(None, vm.instance_uuid.upper(), True, True) == expected
    assert index.FindByUuid(None, vm.bios_uuid, True, False) == expected
    assert index.FindByUuid(None, vm.bios_uuid, True, True) is None
    assert index.FindByDatastorePath(vim.Datacenter("datacenter-2"), vm.vmx_path) == expected
