"""Goal: one value that pyVmomi does not know costs that one property, and never hides or repeats an object.

The collector here is a fake: no server at hand answers with values from the future.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyVmomi import vim, vmodl

from safehaul.errors import PermissionRefusedError, SessionLostError
from safehaul.messages.inventory import UnidentifiedReason
from safehaul.vsphere.client import Session
from safehaul.vsphere.faults import UnreadableAnswerError
from safehaul.vsphere.inventory import _reason
from safehaul.vsphere.properties import Properties, read_object, walk

PC = vmodl.query.PropertyCollector
PATHS = {vim.VirtualMachine: ["name", "runtime.powerState"]}


class FakeCollector:
    """Answers like a vCenter with `count` VMs; refuses to be read where `strange` properties are asked for."""

    def __init__(
        self, count: int, strange: set[tuple[str, str]], missing: dict[str, Any] | None = None
    ) -> None:
        self.vms = [vim.VirtualMachine(f"vm-{number}") for number in range(count)]
        self.strange = strange
        self.missing = missing or {}
        self.calls = 0
        self._pages: dict[str, tuple[list[Any], list[str], int]] = {}

    def RetrievePropertiesEx(self, specs: Any, options: Any) -> Any:  # noqa: N802 - vSphere's name
        self.calls += 1
        start, paths = specs[0].objectSet[0], list(specs[0].propSet[0].pathSet)
        if isinstance(start.obj, vim.view.ContainerView) and not start.skip:
            return self._answer([], [], self.vms)
        targets = self.vms if start.skip else [each.obj for each in specs[0].objectSet]
        return self._page(targets, paths, options.maxObjects or len(targets))

    def ContinueRetrievePropertiesEx(self, token: str) -> Any:  # noqa: N802 - vSphere's name
        self.calls += 1
        return self._page(*self._pages[token])

    def _page(self, targets: list[Any], paths: list[str], size: int) -> Any:
        page, rest = targets[:size], targets[size:]
        for vm in page:
            for path in paths:
                if (vm._moId, path) in self.strange:
                    raise UnreadableAnswerError(f"{path} of {vm._moId} is from the future")
        token = f"token-{self.calls}" if rest else None
        if token:
            self._pages[token] = (rest, paths, size)
        return self._answer(page, paths, None, token)

    def _answer(
        self, page: list[Any], paths: list[str], view: list[Any] | None, token: str | None = None
    ) -> Any:
        if view is not None:
            content = SimpleNamespace(
                obj=vim.view.ContainerView("view-1"),
                propSet=[SimpleNamespace(name="view", val=view)],
                missingSet=[],
            )
            return SimpleNamespace(objects=[content], token=None)
        contents = [
            SimpleNamespace(
                obj=vm,
                propSet=[
                    SimpleNamespace(name=p, val=f"{p} of {vm._moId}") for p in paths if p not in self.missing
                ],
                missingSet=[
                    SimpleNamespace(path=p, fault=self.missing[p]) for p in paths if p in self.missing
                ],
            )
            for vm in page
        ]
        return SimpleNamespace(objects=contents, token=token)


def session(collector: FakeCollector) -> Session:
    view = vim.view.ContainerView("view-1")
    views = SimpleNamespace(CreateContainerView=lambda *_: view)
    content = SimpleNamespace(propertyCollector=collector, viewManager=views, rootFolder=None)
    stub = SimpleNamespace(InvokeMethod=lambda *_: None)
    view.__dict__["_stub"] = stub  # DestroyView goes nowhere
    return Session(cast("Any", stub), content)


@pytest.mark.parametrize("page_size", [1, 3, 10, 100])
@pytest.mark.parametrize("bad", [0, 4, 9])
def test_every_vm_comes_once_and_only_the_strange_property_is_missing(page_size: int, bad: int) -> None:
    collector = FakeCollector(10, {(f"vm-{bad}", "runtime.powerState")})
    found = list(walk(session(collector), PATHS, page_size=page_size))
    assert sorted(each.moref for each in found) == sorted(f"vm-{number}" for number in range(10))
    for each in found:
        strange = each.moref == f"vm-{bad}"
        assert each.get("name") == f"name of {each.moref}"
        assert ("runtime.powerState" in each.values) is not strange
        assert set(each.unreadable) == ({"runtime.powerState"} if strange else set())


def test_a_thousand_vms_with_one_strange_value_cost_few_calls() -> None:
    collector = FakeCollector(1000, {("vm-500", "runtime.powerState")})
    assert len(list(walk(session(collector), PATHS, page_size=200))) == 1000
    assert collector.calls < 40


def test_a_property_without_permission_names_the_privilege() -> None:
    fault = vim.fault.NoPermission(privilegeId="System.Read", object=vim.VirtualMachine("vm-0"))
    collector = FakeCollector(1, set(), {"name": fault})
    found = read_object(session(collector), vim.VirtualMachine, "vm-0", ["name"])
    assert found.get("name", "?") == "?"
    with pytest.raises(PermissionRefusedError, match=r"System\.Read on VirtualMachine vm-0"):
        found.require("name")


def test_properties_missing_for_want_of_a_session_are_a_lost_session() -> None:
    collector = FakeCollector(1, set(), {"name": vim.fault.NotAuthenticated()})
    with pytest.raises(SessionLostError):
        read_object(session(collector), vim.VirtualMachine, "vm-0", ["name"])


def test_a_vm_whose_hardware_cannot_be_read_is_not_a_vm_without_disks() -> None:
    found = Properties(
        "VirtualMachine",
        "vm-0",
        {"config.instanceUuid": "u"},
        {"config.hardware.device": UnreadableAnswerError("new")},
    )
    reason = _reason(found, "connected")
    assert reason is not None
    assert reason[0] is UnidentifiedReason.UNREADABLE
