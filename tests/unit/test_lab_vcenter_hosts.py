"""Goal: front and simulated hosts together do with real files what a backup and a restore ask of vCenter."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetWsdlMethod

from lab.esx.api import FaultRule, Settings
from lab.esx.client import HostClient
from lab.site import BACKUP_PRIVILEGES, DatastoreSpec, DiskSpec, Site, UserSpec, VmSpec, build
from tests.unit.lab_vcenter_front import Front, object_filter, retrieve, values

MIB = 1 << 20
BROWSER = vim.host.DatastoreBrowser


@dataclass
class Lab:
    front: Front
    hosts: HostClient
    si: Any

    def vm(self, name: str) -> Any:
        found = self.si.content.searchIndex.FindByInventoryPath(f"DC-Lab/vm/{name}")
        assert found is not None, name
        return found

    def read(self, reference: Any, *paths: str) -> dict[str, Any]:
        return values(retrieve(self.si, object_filter(reference, list(paths)))[0])

    def done(self, task: Any) -> Any:
        WaitForTask(task, si=self.si)
        return task.info.result

    def snapshot(self, vm: Any, name: str) -> Any:
        moref = self.done(vm.CreateSnapshot_Task(name, "", False, False))._moId
        return vim.vm.Snapshot(moref, self.si._stub)

    def files(self, directory: str, pattern: str = "*") -> list[str]:
        name = directory[1 : directory.index("]")]
        store = next(each for each in self.hosts.state().datastores if each.name == name)
        browser = BROWSER(f"datastoreBrowser-{store.moref}", self.si._stub)
        spec = BROWSER.SearchSpec(matchPattern=[pattern])
        results = self.done(browser.SearchDatastoreSubFolders_Task(directory, spec))
        return [each.path for result in results for each in result.file]


def start_hosts(state: Path, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    hosts = subprocess.Popen(
        [sys.executable, "-m", "lab.esx", "--state", str(state), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hosts.stdout is not None
    return hosts, json.loads(hosts.stdout.readline())["url"]


def reap(process: subprocess.Popen[str]) -> None:
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    state = tmp_path_factory.mktemp("esx")
    disk = DiskSpec(size_bytes=MIB, content="zero")
    site = Site(
        datastores=[
            DatastoreSpec(name="gold", type="NFS"),
            DatastoreSpec(name="silver", type="NFS41"),
            DatastoreSpec(name="local", type="VMFS"),
        ],
        vms=[
            VmSpec(
                name="one", datastore="gold", disks=[disk, disk.model_copy(update={"datastore": "local"})]
            ),
            VmSpec(name="two", datastore="gold", power_state="poweredOff", disks=[disk]),
            VmSpec(
                name="golden image", datastore="gold", power_state="poweredOff", template=True, disks=[disk]
            ),
            VmSpec(name="lost", datastore="gold", connection_state="inaccessible", disks=[disk]),
            VmSpec(
                name="odd",
                datastore="gold",
                disks=[
                    disk.model_copy(update={"rdm": "physicalMode", "datastore": "local"}),
                    disk.model_copy(update={"mode": "independent_persistent"}),
                    disk.model_copy(update={"key_id": "key-7"}),
                    disk.model_copy(update={"sharing": "sharingMultiWriter"}),
                ],
            ),
            VmSpec(name="busy", datastore="gold", disabled_methods=["RelocateVM_Task"], disks=[disk]),
        ],
        users=[
            UserSpec(name="backup", password="right", privileges=["*"]),
            UserSpec(name="limited", password="right", privileges=BACKUP_PRIVILEGES),
        ],
        settings=Settings(default_duration_s=0.02),
    )
    build(site, state)
    hosts, url = start_hosts(state)
    front = Front(url, tmp_path_factory.mktemp("front"))
    client = HostClient(url)
    yield Lab(front, client, front.connect())
    front.close()
    client.close()
    hosts.terminate()
    reap(hosts)


def disks(config: Any) -> list[Any]:
    return [each for each in config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]


def test_a_snapshot_freezes_the_base_and_leaves_no_file(lab: Lab) -> None:
    vm = lab.vm("two")
    before = lab.files("[gold] two/")
    snapshot = lab.snapshot(vm, "nightly")
    frozen = disks(lab.read(snapshot, "config")["config"])[0].backing
    current = disks(lab.read(vm, "config")["config"])[0].backing
    assert (frozen.fileName, frozen.parent) == ("[gold] two/two.vmdk", None)
    assert (current.fileName, current.parent.fileName) == ("[gold] two/two-000001.vmdk", frozen.fileName)
    assert set(lab.files("[gold] two/", "*delta*")) == {"two-000001-delta.vmdk"}
    named = {each.name for each in lab.read(vm, "layoutEx")["layoutEx"].file}
    assert "[gold] two/two-000001-delta.vmdk" in named
    lab.done(snapshot.RemoveSnapshot_Task(False))
    assert lab.read(vm, "snapshot", "runtime.consolidationNeeded") == {"runtime.consolidationNeeded": False}
    assert lab.files("[gold] two/") == before


def test_a_locked_file_needs_consolidation(lab: Lab) -> None:
    vm = lab.vm("two")
    snapshot = lab.snapshot(vm, "locked")
    lab.hosts.add_fault(FaultRule(operation="RemoveSnapshot", effect="locked", vm="two"))
    with pytest.raises(vim.fault.FileLocked):
        lab.done(snapshot.RemoveSnapshot_Task(False))
    assert lab.read(vm, "snapshot", "runtime.consolidationNeeded") == {"runtime.consolidationNeeded": True}
    lab.done(vm.ConsolidateVMDisks_Task())
    assert lab.read(vm, "runtime.consolidationNeeded") == {"runtime.consolidationNeeded": False}


def test_the_plan_can_cut_the_answer_of_a_started_task(lab: Lab) -> None:
    vm = lab.vm("one")
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="drop-after-start", vm="one"))
    with pytest.raises((http.client.HTTPException, OSError)):
        vm.CreateSnapshot_Task("unheard", "", False, False)
    task = vim.Task(lab.read(vm, "recentTask")["recentTask"][-1]._moId, lab.si._stub)
    made = vim.vm.Snapshot(lab.done(task)._moId, lab.si._stub)
    assert lab.read(vm, "snapshot")["snapshot"].rootSnapshotList[0].name == "unheard"
    lab.done(made.RemoveSnapshot_Task(False))


def test_reconfigure_tracking_annotation_and_disks(lab: Lab) -> None:
    vm = lab.vm("two")
    spec = vim.vm.ConfigSpec(
        changeTrackingEnabled=True,
        annotation="kept by nobody",
        extraConfig=[vim.option.OptionValue(key="disk.EnableUUID", value="TRUE")],
    )
    version = lab.read(vm, "config.changeVersion")["config.changeVersion"]
    lab.done(vm.ReconfigVM_Task(spec))
    config = lab.read(vm, "config")["config"]
    assert (config.changeTrackingEnabled, config.annotation) == (True, "kept by nobody")
    assert {each.key: each.value for each in config.extraConfig}["disk.EnableUUID"] == "TRUE"
    with pytest.raises(vim.fault.ConcurrentAccess):
        vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="late", changeVersion=version))
    (disk,) = disks(config)
    change = vim.vm.device.VirtualDeviceSpec
    lab.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change(operation="remove", device=disk)])))
    assert disks(lab.read(vm, "config")["config"]) == []
    disk.key = -1
    lab.done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change(operation="add", device=disk)])))
    assert disks(lab.read(vm, "config")["config"])[0].backing.fileName == "[gold] two/two.vmdk"


def test_power_register_relocate_and_destroy(lab: Lab) -> None:
    vm = lab.vm("two")
    lab.done(vm.PowerOnVM_Task(None))
    assert lab.read(vm, "runtime.powerState") == {"runtime.powerState": "poweredOn"}
    with pytest.raises(vim.fault.InvalidPowerState):
        lab.done(vm.PowerOnVM_Task(None))
    lab.done(vm.PowerOffVM_Task())
    vmx = lab.read(vm, "config.files.vmPathName")["config.files.vmPathName"]
    vm.UnregisterVM()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        lab.read(vm, "name")
    state = lab.hosts.state()
    folder = vim.Folder(state.datacenter.vm_folder, lab.si._stub)
    pool = vim.ResourcePool(state.clusters[0].resource_pool)
    with pytest.raises(vmodl.fault.InvalidArgument):
        folder.RegisterVM_Task(vmx, None, False, None, None)
    with pytest.raises(vmodl.fault.NotSupported):
        vim.Folder(state.datacenter.host_folder, lab.si._stub).RegisterVM_Task(vmx, None, False, pool, None)
    back = vim.VirtualMachine(
        lab.done(folder.RegisterVM_Task(vmx, "two %2f b", False, pool, None))._moId, lab.si._stub
    )
    assert back != vm
    assert lab.read(back, "name") == {"name": "two %2f b"}
    with pytest.raises(vim.fault.AlreadyExists):
        lab.done(folder.RegisterVM_Task(vmx, "again", False, pool, None))
    silver = next(each.moref for each in state.datastores if each.name == "silver")
    lab.done(back.RelocateVM_Task(vim.vm.RelocateSpec(datastore=vim.Datastore(silver)), "defaultPriority"))
    assert lab.read(back, "config.files.vmPathName")["config.files.vmPathName"].startswith("[silver] ")
    assert [each._moId for each in lab.read(back, "datastore")["datastore"]] == [silver]
    lab.done(back.Destroy_Task())
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        lab.read(back, "name")
    kinds = {type(each).__name__.rsplit(".", 1)[-1] for each in events(lab, back)}
    assert {"VmRegisteredEvent", "VmRelocatedEvent", "VmRemovedEvent"} <= kinds


def events(lab: Lab, entity: Any = None, **wanted: Any) -> list[Any]:
    by_entity = entity and vim.event.EventFilterSpec.ByEntity(
        entity=lab.si.content.rootFolder, recursion="all"
    )
    found = lab.si.content.eventManager.QueryEvents(vim.event.EventFilterSpec(entity=by_entity, **wanted))
    return [each for each in found if entity is None or (each.vm is not None and each.vm.vm == entity)]


def test_events_by_entity_time_and_count(lab: Lab) -> None:
    vm = lab.vm("one")
    start = lab.si.CurrentTime()
    lab.done(lab.snapshot(vm, "seen").RemoveSnapshot_Task(False))
    span = vim.event.EventFilterSpec.ByTime(beginTime=start)
    mine = vim.event.EventFilterSpec.ByEntity(entity=vm, recursion="self")
    manager = lab.si.content.eventManager
    recent = manager.QueryEvents(vim.event.EventFilterSpec(entity=mine, time=span))
    assert [each.eventTypeId for each in recent if "snapshot" in each.eventTypeId] == [
        "lab.snapshot-created",
        "lab.snapshot-removed",
    ]
    assert manager.latestEvent.key == recent[-1].key
    assert len(manager.QueryEvents(vim.event.EventFilterSpec(maxCount=1))) == 1
    other = vim.event.EventFilterSpec.ByEntity(entity=lab.vm("busy"), recursion="self")
    assert manager.QueryEvents(vim.event.EventFilterSpec(entity=other, time=span)) == []


def test_the_browser_tells_details_only_when_asked(lab: Lab) -> None:
    store = next(each for each in lab.hosts.state().datastores if each.name == "gold")
    browser = BROWSER(f"datastoreBrowser-{store.moref}", lab.si._stub)
    bare = lab.done(browser.SearchDatastore_Task("[gold] one", None))
    assert {(each.fileSize, each.modification) for each in bare.file} == {(None, None)}
    details = BROWSER.FileInfo.Details(fileType=True, fileSize=True, modification=True, fileOwner=False)
    told = lab.done(browser.SearchDatastore_Task("[gold] one", BROWSER.SearchSpec(details=details)))
    flat = next(each for each in told.file if each.path == "one-flat.vmdk")
    assert (flat.fileSize, type(flat)) == (MIB, BROWSER.VmDiskInfo)
    with pytest.raises(vim.fault.FileNotFound):
        lab.done(browser.SearchDatastore_Task("[gold] nowhere", None))
    for path in ("[other] one", "[local] one", "one/", "[gold"):
        with pytest.raises(vim.fault.InvalidDatastorePath):
            browser.SearchDatastore_Task(path, None)


def test_templates_lost_and_busy_vms_look_like_it(lab: Lab) -> None:
    template = lab.read(lab.vm("golden image"), "config.template", "resourcePool", "summary.config.template")
    assert template == {"config.template": True, "summary.config.template": True}
    lost = lab.read(
        lab.vm("lost"), "config", "layoutEx", "summary.config.vmPathName", "runtime.connectionState"
    )
    assert lost["runtime.connectionState"] == "inaccessible"
    assert "config" not in lost
    assert lost["summary.config.vmPathName"] == "[gold] lost/lost.vmx"
    assert list(lab.vm("busy").disabledMethod) == ["RelocateVM_Task"]
    with pytest.raises(vmodl.MethodFault):
        lab.done(lab.vm("golden image").CreateSnapshot_Task("no", "", False, False))


def test_disks_that_nas_transport_cannot_take_show_why(lab: Lab) -> None:
    raw, independent, encrypted, shared = disks(lab.read(lab.vm("odd"), "config")["config"])
    assert isinstance(raw.backing, vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo)
    assert (raw.backing.compatibilityMode, raw.backing.fileName[:7]) == ("physicalMode", "[local]")
    assert independent.backing.diskMode == "independent_persistent"
    assert encrypted.backing.keyId.keyId == "key-7"
    assert shared.backing.sharing == "sharingMultiWriter"


def test_other_clients_read_references_by_their_wire_name(lab: Lab) -> None:
    """PyVmomi forgives its own class's name on the wire; Go's client reads nothing then."""
    stub = lab.si._stub
    body = stub.SerializeRequest(
        lab.si.content.propertyCollector,
        GetWsdlMethod("urn:vim25", "RetrieveProperties").info,
        ([object_filter(lab.vm("one"), ["parent", "runtime.host", "datastore"])],),
    )
    raw = http.client.HTTPSConnection("127.0.0.1", lab.front.port, context=lab.front.context(), timeout=10)
    raw.request("POST", "/sdk", body, {"Cookie": stub.cookie})
    text = raw.getresponse().read().decode()
    raw.close()
    assert text.count('xsi:type="ManagedObjectReference"') == 2
    assert 'xsi:type="ArrayOfManagedObjectReference"' in text
    assert 'xsi:type="ManagedObject"' not in text


def test_the_backup_user_can_back_up_and_nothing_more(lab: Lab) -> None:
    si = lab.front.connect("limited")
    vm = vim.VirtualMachine(lab.vm("busy")._moId, si._stub)
    task = vm.CreateSnapshot_Task("allowed", "", False, False)
    WaitForTask(task, si=si)
    WaitForTask(vim.vm.Snapshot(task.info.result._moId, si._stub).RemoveSnapshot_Task(False), si=si)
    assert task.info.reason.userName == "limited"
    for privilege, call in {
        "VirtualMachine.Interact.PowerOff": vm.PowerOffVM_Task,
        "VirtualMachine.Inventory.Delete": vm.Destroy_Task,
        "VirtualMachine.Config.RemoveDisk": lambda: vm.ReconfigVM_Task(
            vim.vm.ConfigSpec(
                deviceChange=[
                    vim.vm.device.VirtualDeviceSpec(
                        operation="remove", device=vim.vm.device.VirtualDisk(key=2000, capacityInKB=1)
                    )
                ]
            )
        ),
    }.items():
        with pytest.raises(vim.fault.NoPermission) as refused:
            call()
        assert refused.value.privilegeId == privilege


def test_certificates_and_tokens_are_private(lab: Lab) -> None:
    for name in ("vcenter.key", "admin.token"):
        path: Path = lab.front.state_dir / name
        assert path.stat().st_mode & 0o077 == 0


def test_a_wait_survives_a_crash_of_the_hosts(tmp_path: Path) -> None:
    disk = DiskSpec(size_bytes=MIB, content="zero")
    site = Site(
        datastores=[DatastoreSpec(name="gold", type="NFS")],
        vms=[VmSpec(name="one", datastore="gold", power_state="poweredOff", disks=[disk])],
        users=[UserSpec(name="backup", password="right", privileges=["*"])],
        settings=Settings(default_duration_s=1.0),
    )
    build(site, tmp_path / "esx")
    hosts, url = start_hosts(tmp_path / "esx")
    (tmp_path / "front").mkdir()
    front = Front(url, tmp_path / "front")
    try:
        si = front.connect()
        vm = si.content.searchIndex.FindByInventoryPath("DC-Lab/vm/one")
        task = vm.CreateSnapshot_Task("survivor", "", False, False)
        hosts.kill()
        reap(hosts)
        hosts, _ = start_hosts(tmp_path / "esx", int(url.rpartition(":")[2]))
        WaitForTask(task, si=si)
        assert vm.snapshot.rootSnapshotList[0].name == "survivor"
    finally:
        front.close()
        hosts.terminate()
        reap(hosts)
