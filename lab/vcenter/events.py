"""Events: the hosts' log as vCenter's `EventManager` tells it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pyVmomi import vim

from lab.esx.api import Event
from lab.esx.client import HostClient
from lab.vcenter.inventory import Inventory
from lab.vcenter.names import escaped
from lab.vcenter.reflect import moid_of

_PAGE = 1000
_MAX_READ = 50_000  # events looked through by one query
_DEFAULT_COUNT = 1000  # what vCenter returns when the filter does not say

_TYPES: dict[str, Any] = {
    "vm-registered": vim.event.VmRegisteredEvent,
    "vm-unregistered": vim.event.VmRemovedEvent,
    "vm-removed": vim.event.VmRemovedEvent,
    "vm-reconfigured": vim.event.VmReconfiguredEvent,
    "vm-relocated": vim.event.VmRelocatedEvent,
    "vm-mac-conflict": vim.event.VmMacConflictEvent,
    "vm-poweredOn": vim.event.VmPoweredOnEvent,
    "vm-poweredOff": vim.event.VmPoweredOffEvent,
}


def project_event(event: Event, inventory: Inventory) -> Any:
    """One event. Kinds without a class of their own are `EventEx` with the lab's type in `eventTypeId`."""
    common: dict[str, Any] = {
        "key": event.id,
        "chainId": event.id,
        "createdTime": event.time,
        "userName": event.user,
        "fullFormattedMessage": event.message,
        "vm": _vm_argument(event, inventory),
    }
    kind = _TYPES.get(event.type)
    if kind is vim.event.VmReconfiguredEvent:
        return kind(**common, template=False, configSpec=vim.vm.ConfigSpec())
    if kind is vim.event.VmRelocatedEvent:
        return kind(**common, template=False, sourceHost=_host_argument(event, inventory))
    if kind is vim.event.VmMacConflictEvent:
        other = _vm_named(event.other or "", inventory)
        return kind(**common, template=False, conflictedVm=other, mac=event.mac or "")
    if kind is not None:
        return kind(**common, template=False)
    return vim.event.EventEx(
        **common,
        eventTypeId=f"lab.{event.type}",
        severity="info",
        message=event.message,
        objectId=event.entity,
        objectName=escaped(event.entity_name),
    )


def latest_event(hosts: HostClient, inventory: Inventory) -> Any:
    """The newest event, or None before the first."""
    newest = hosts.events(after=max(0, inventory.state.last_event - 1), limit=_PAGE)
    return project_event(newest[-1], inventory) if newest else None


def query_events(hosts: HostClient, inventory: Inventory, wanted: Any) -> list[Any]:
    """Events that the `EventFilterSpec` lets through: the newest ones, oldest of them first."""
    entities = _entities(inventory, wanted.entity)
    chosen: list[Any] = []
    after = 0
    for _ in range(_MAX_READ // _PAGE):
        page = hosts.events(after=after, limit=_PAGE)
        if not page:
            break
        after = page[-1].id
        for event in page:
            if entities is not None and event.entity not in entities:
                continue
            if _in_time(event.time, wanted.time) and _by_user(event.user, wanted.userName):
                projected = project_event(event, inventory)
                if _of_type(projected, wanted):
                    chosen.append(projected)
    count = wanted.maxCount or _DEFAULT_COUNT
    return chosen[-min(count, _DEFAULT_COUNT) :]


def _entities(inventory: Inventory, by_entity: Any) -> set[str] | None:
    """The morefs that an entity filter means; None: all (the root folder with its descendants)."""
    if by_entity is None:
        return None
    own, recursion = moid_of(by_entity.entity), by_entity.recursion
    if own == moid_of(inventory.root) and recursion != "self":
        return None
    if recursion == "self":
        return {own}
    node = inventory.find(by_entity.entity)
    below: set[str] = set()
    pending = [node] if node else []
    while pending:
        current = pending.pop()
        for name in ("childEntity", "vmFolder", "vm"):
            if name not in current.names:
                continue
            value = current.value(name)
            for each in value if isinstance(value, list) else [value]:
                child = inventory.find(each)
                if child is not None and moid_of(each) not in below:
                    below.add(moid_of(each))
                    pending.append(child)
    return below if recursion == "children" else below | {own}


def _in_time(when: dt.datetime, span: Any) -> bool:
    if span is None:
        return True
    begins = span.beginTime is None or when >= _aware(span.beginTime)
    return begins and (span.endTime is None or when <= _aware(span.endTime))


def _aware(when: dt.datetime) -> dt.datetime:
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def _by_user(user: str, wanted: Any) -> bool:
    return wanted is None or not wanted.userList or user in wanted.userList


def _of_type(event: Any, wanted: Any) -> bool:
    names = {type(event).__name__.rsplit(".", 1)[-1], getattr(event, "eventTypeId", None)}
    if wanted.eventTypeId and not names & set(wanted.eventTypeId):
        return any(name and each.endswith(f".{name}") for name in names for each in wanted.eventTypeId)
    return not wanted.type or isinstance(event, tuple(wanted.type))


def _host_argument(event: Event, inventory: Inventory) -> Any:
    """The VM's host: a relocation of the lab changes the datastore only."""
    vm = inventory.vms.get(event.entity)
    host = next((each for each in inventory.state.hosts if vm is not None and each.moref == vm.host), None)
    known = host or inventory.state.hosts[0]
    return vim.event.HostEventArgument(name=known.name, host=vim.HostSystem(known.moref))


def _vm_named(moref: str, inventory: Inventory) -> Any:
    vm = inventory.vms.get(moref)
    return vim.event.VmEventArgument(name=escaped(vm.name if vm else moref), vm=vim.VirtualMachine(moref))


def _vm_argument(event: Event, inventory: Inventory) -> Any:
    """Present also for a VM that is gone: vCenter keeps the name."""
    if not event.entity.startswith("vm-") and event.entity not in inventory.vms:
        return None
    return vim.event.VmEventArgument(name=escaped(event.entity_name), vm=vim.VirtualMachine(event.entity))
