"""Datastores of one name in several datacentres: the hosts know each by a name of its own, clients by the one shown.

A datastore path means something in a datacentre only. What clients read is rewritten when the hosts' state arrives, and
what they write when it goes to the hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from pyVmomi import vim

from lab.esx.api import Datacenter, Datastore, State, Vm


def shown_vms(vms: Iterable[Vm], datastores: Iterable[Datastore]) -> list[Vm]:
    """The VMs with their paths as clients read them."""
    renamed = [each for each in datastores if each.shown != each.name]
    return [_shown(vm, renamed) for vm in vms] if renamed else list(vms)


def host_path(state: State, datacenter: Datacenter, path: str) -> str:
    """A client's path as the hosts know it.

    Raises:
        vim.fault.InvalidDatastorePath: only another datacentre has that datastore.
    """
    name, bracket, rest = path.removeprefix("[").partition("]")
    for each in state.datastores_in(datacenter):
        if each.shown == name:
            return f"[{each.name}{bracket}{rest}"
    if any(name in {each.name, each.shown} for each in state.datastores):
        raise vim.fault.InvalidDatastorePath(
            msg=f"Datacentre {datacenter.name!r} has no datastore {name!r}", datastorePath=path
        )
    return path


def datacenter_of(state: State, folder: str) -> Datacenter:
    """The datacentre of a VM folder."""
    parents = {each.moref: each.parent for each in state.folders}
    homes = {each.moref: each for each in state.datacenters}
    above: str | None = folder
    while above is not None and above not in homes:
        above = parents.get(above)
    return homes[above] if above is not None else state.datacenter


def _shown(vm: Vm, renamed: list[Datastore]) -> Vm:
    text = vm.model_dump_json()
    for each in renamed:
        text = text.replace(_opening(each.name), _opening(each.shown))
    return Vm.model_validate_json(text)


def _opening(name: str) -> str:
    """How a path on the datastore begins in JSON."""
    return json.dumps(f"[{name}] ", ensure_ascii=False).removesuffix('"')
