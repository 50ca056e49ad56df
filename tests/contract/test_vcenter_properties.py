"""Goal: every property that we ask for is one that the server knows, and we ask in no other way.

All functions that read something are called, on each server, while the requests and answers are recorded below them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

import safehaul.vsphere
from safehaul.messages.inventory import InventoryDetail
from safehaul.vsphere import all_snapshots, networks, privileges, registration, tasks, vm_disks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.datastores import find_datastore, list_directory
from safehaul.vsphere.inventory import all_nas_volumes, discover, nas_volumes, volumes_of_vm
from safehaul.vsphere.properties import PAGE_SIZE, read_object
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import create
from safehaul.vsphere.stub import Stub
from safehaul.vsphere.vm_disks import DiskChange
from safehaul.vsphere.vms import snapshot_config, snapshot_disks, vm_config, vm_state
from tests.contract.vcenter_server import PLAIN_VM, Server, vm_named

PACKAGE = Path(next(iter(safehaul.vsphere.__path__)))
READERS = {"read_object", "read_objects", "walk"}
# The layer of properties itself is no user of it.
BELOW = {"properties.py", "client.py", "stub.py"}
# Read a task only when another one was forgotten, or when the VM lists any, which one of vcsim never does.
AFTER_TROUBLE = {"_readable_tasks", "_running_tasks"}
# Set only while what they tell is so; vm.snapshot is unset without a snapshot, a fault without a failure, ….
SOMETIMES = {"VirtualMachine.parentVApp", "Task.info.error"}


class Recorder:
    """What was asked of the PropertyCollector, what came back, and which code asked."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.answered: set[str] = set()
        self.refused: dict[str, str] = {}
        self.methods: set[str] = set()
        self.readers: set[tuple[str, int]] = set()
        """File and line in our package."""

    def call(self, original: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        _stub, _managed, info, values, *_ = arguments
        self.methods.add(info.wsdlName)
        answer = original(*arguments)
        if info.wsdlName in {"RetrievePropertiesEx", "ContinueRetrievePropertiesEx"}:
            frame: Any = sys._getframe()
            while frame is not None:
                path = Path(frame.f_code.co_filename)
                if path.parent == PACKAGE and path.name not in BELOW:
                    self.readers.add((path.name, frame.f_lineno))
                frame = frame.f_back
            if info.wsdlName == "RetrievePropertiesEx":
                self._note_asked(values[0])
            self._note_answered(answer)
        return answer

    def _note_asked(self, specs: Any) -> None:
        for spec in specs:
            for wanted in spec.propSet:
                self.asked |= {f"{wanted.type._wsdlName}.{path}" for path in wanted.pathSet}

    def _note_answered(self, answer: Any) -> None:
        for content in (answer.objects if answer else None) or []:
            # An object of a subclass answers for each class that was asked about.
            kinds = {kind._wsdlName for kind in type(content.obj).__mro__ if hasattr(kind, "_wsdlName")}
            for each in content.propSet or []:
                self.answered |= {f"{kind}.{each.name}" for kind in kinds}
            for each in content.missingSet or []:
                fault = each.fault.fault if hasattr(each.fault, "fault") else each.fault
                self.refused |= {f"{kind}.{each.path}": str(type(fault)) for kind in kinds}


@pytest.fixture(scope="module")
def recorded(server: Server) -> Iterator[Recorder]:
    recorder = Recorder()
    original = Stub.InvokeMethod
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stub, "InvokeMethod", lambda *arguments: recorder.call(original, arguments))
        read_everything(server.administrator(), server)
        yield recorder


def read_everything(vcenter: VCenter, server: Server) -> None:
    """Calls every function of safehaul.vsphere that reads something."""
    inventory = discover(vcenter, details=(InventoryDetail.ATTRIBUTES,), page_size=PAGE_SIZE)
    all_nas_volumes(vcenter)
    volumes_of_vm(vcenter, inventory.records[0].moref)
    nas_volumes(vcenter, inventory.records[0].host_moref)
    find_datastore(vcenter, "gold")
    list_directory(vcenter, "[gold] ")
    database = vm_named(server, "数据库")
    state = vm_state(vcenter, database.moref, list_directories=True)
    snapshot_disks(vcenter, state.snapshots[0].moref)
    snapshot_config(vcenter, state.snapshots[0].moref)
    vm_config(vcenter, database.moref)
    all_snapshots.all_snapshots(vcenter)
    plain = vm_named(server, PLAIN_VM)
    all_snapshots._named_by_others(vcenter, [plain.datastore_morefs["gold"]], tasks.no_heartbeat)
    create(vcenter, plain.moref, "recorded", "for a moment")
    remove(vcenter, plain.moref, name="recorded", description="for a moment", timeout_s=30)
    tasks.running_snapshot_tasks(vcenter, plain.moref)
    place = registration.find_place(vcenter, "gold", folder="prod/web")
    registration.find_registered(vcenter, plain.vmx_path)
    registration.power_off(vcenter, plain.moref)
    free = vm_named(server, "off")
    registration.unregister(vcenter, free.moref)
    change = DiskChange(plain.disks[0].controller_key, 9, "", free.disks[0].path)
    vm_disks.change_disks(vcenter, plain.moref, [change])
    vm_disks.present_places(vcenter, plain.moref)
    vm_disks.named_by_vms(vcenter, plain.datastore_morefs["gold"], ["[gold] nobody/nobody.vmdk"])
    vm_disks.power_on(vcenter, plain.moref)
    vm_disks.wait_out_tasks(vcenter, plain.moref)
    available = networks.networks_of(vcenter, place.compute)
    cards = networks.cards_of(vcenter, plain.moref)
    networks.addresses_in_use(vcenter, [each.mac for each in cards])
    registration.power_off(vcenter, plain.moref)
    networks.put_cards(vcenter, plain.moref, available[:1], connect=False)
    privileges.require(vcenter, {privileges.entity("Folder", place.folder): ["System.Read"]})
    task = vcenter.mutate(lambda session: session.managed(vim.VirtualMachine, plain.moref).PowerOnVM_Task())
    vcenter.read(lambda session: tasks._readable_tasks(session, [task]))


def test_every_property_that_we_ask_for_is_known_to_the_server(recorded: Recorder) -> None:
    assert len(recorded.asked) > 40
    unknown = {path: fault for path, fault in recorded.refused.items() if path in recorded.asked}
    assert {path: fault for path, fault in unknown.items() if "InvalidProperty" in fault} == {}


def test_every_property_has_a_value_somewhere_or_is_written_down(server: Server, recorded: Recorder) -> None:
    unset = recorded.asked - recorded.answered - SOMETIMES
    assert unset == server.never_set, "write the difference down: never_set and docs/vcenter-contract.md"


def test_every_place_that_reads_was_reached(recorded: Recorder) -> None:
    unreached = []
    for path in sorted(PACKAGE.glob("*.py")):
        for function, call in reading_calls(path):
            # A walk is lazy: it asks where its function uses what it yields.
            span = function if getattr(call.func, "id", "") == "walk" else call
            lines = range(span.lineno, (span.end_lineno or span.lineno) + 1)
            if not any((path.name, line) in recorded.readers for line in lines):
                unreached.append(f"{path.name}:{call.lineno} {function.name}")
    assert unreached == [], "call it in read_everything"


def reading_calls(path: Path) -> Iterator[tuple[ast.FunctionDef, ast.Call]]:
    """Calls of a reader in a module of our package, each with a function around it."""
    if path.name in BELOW:
        return
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef) and function.name not in AFTER_TROUBLE:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in READERS:
                    yield function, call


def test_no_property_is_read_as_an_attribute(server: Server, recorded: Recorder) -> None:
    assert "RetrievePropertiesEx" in recorded.methods
    assert server.calls()["RetrievePropertiesEx"] > 20
    assert server.calls()["Fetch"] == 0


def test_reading_an_attribute_is_refused_before_any_call(server: Server) -> None:
    vcenter, vm = server.connect(), vm_named(server, PLAIN_VM).moref
    with pytest.raises(TypeError, match="snapshot of VirtualMachine"):
        vcenter.read(lambda session: session.managed(vim.VirtualMachine, vm).snapshot)
    assert server.calls()["Fetch"] == 0
    # An unset property is nothing special when it is asked for properly.
    found = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm, ["snapshot"]))
    assert found.get("snapshot") is None
    assert found.unreadable == {}
