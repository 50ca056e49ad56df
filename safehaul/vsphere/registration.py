"""A restored VM enters vCenter: registration, and the few changes of a VM that a restore needs."""

from __future__ import annotations

import time
from typing import Any, Final

from pyVmomi import vim

from safehaul.errors import (
    AlreadyExistsError,
    ConnectionLostError,
    InvalidInputError,
    NotFoundError,
    SessionLostError,
)
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import escape, parse_datastore_path, path_component, unescape
from safehaul.vsphere.properties import Properties, read_object, walk
from safehaul.vsphere.tasks import DEFAULT_TIMEOUT_S, Heartbeat, no_heartbeat, pause, wait

# A registration takes seconds; whoever tries again earlier would meet its own VM and call it somebody else's.
_LOST_ANSWER_S: Final = 30.0
_LOOK_AGAIN_S: Final = 1.0
# vSphere's limit on a VM's name.
_MAX_NAME_CHARS: Final = 80

_PLACE_PATHS: Final[dict[Any, list[str]]] = {
    vim.Datacenter: ["name", "vmFolder", "hostFolder", "datastore"],
    vim.Folder: ["name", "parent"],
    vim.ComputeResource: ["name", "parent", "resourcePool", "datastore"],
    vim.HostSystem: ["name", "parent"],
    vim.ResourcePool: ["name", "owner"],
    vim.Datastore: ["name"],
}


class Place:
    """Where a VM will stand: a folder and a resource pool of one datacentre."""

    def __init__(
        self,
        folder: str,
        pool: str,
        datacenter: str,
        *,
        datacenter_moref: str = "",
        compute: str = "",
        host: str = "",
    ) -> None:
        """Takes morefs, and the datacentre's name. `compute`: the cluster or lone host; `host` empty: any of it."""
        self.folder = folder
        self.pool = pool
        self.datacenter = datacenter
        self.datacenter_moref = datacenter_moref
        self.compute = compute
        self.host = host


def find_place(
    vcenter: VCenter,
    datastore: str,
    *,
    folder: str = "",
    cluster: str = "",
    datacenter: str = "",
    resource_pool: str = "",
    host: str = "",
) -> Place:
    """Chooses folder and resource pool for a VM on a datastore.

    Args:
        vcenter: the session.
        datastore: its name; decides the datacentre unless that is named.
        folder: path below the datacentre's `vm` folder, as `VmRecord.folder` has it; empty for that folder itself.
        cluster: of a cluster or lone host; by default the first by name that mounts the datastore.
        datacenter: its name or moref; needed when several datacentres have a datastore of this name.
        resource_pool: name of a pool of that cluster; by default its root pool.
        host: name of a host of that cluster; by default vCenter chooses.

    Raises:
        NotFoundError: there is no such datacentre, datastore, folder, cluster, host or resource pool.
        InvalidInputError: several datacentres or pools fit.
    """
    objects = {each.moref: each for each in vcenter.read(lambda session: list(walk(session, _PLACE_PATHS)))}
    names = {found: unescape(str(each.get("name", ""))) for found, each in objects.items()}
    centre, store = _datacenter(vcenter, objects, names, datastore, datacenter)
    parent = moref(centre.get("vmFolder"))
    for component in [each for each in folder.split("/") if each]:
        parent = _child_folder(objects, parent, component, folder)
    pools = [
        each
        for each in sorted(objects.values(), key=lambda each: names[each.moref])
        if each.kind in {"ClusterComputeResource", "ComputeResource"}
        and _below(objects, each, moref(centre.get("hostFolder")))
        and store in {moref(mounted) for mounted in each.get("datastore") or []}
        and cluster in {"", names[each.moref]}
    ]
    hosts = [each for each in objects.values() if each.kind == "HostSystem" and names[each.moref] == host]
    if host:
        owners = {moref(each.get("parent")) for each in hosts}
        pools = [each for each in pools if each.moref in owners]
    if not pools:
        wanted = f"cluster {cluster!r}" if cluster else f"host {host!r}" if host else "a cluster or host"
        raise NotFoundError(f"datacentre {names[centre.moref]!r} has not {wanted} that mounts {datastore!r}")
    chosen = pools[0]
    return Place(
        parent,
        _pool(objects, names, chosen, resource_pool),
        names[centre.moref],
        datacenter_moref=centre.moref,
        compute=chosen.moref,
        host=next((each.moref for each in hosts if moref(each.get("parent")) == chosen.moref), ""),
    )


def _pool(objects: dict[str, Properties], names: dict[str, str], compute: Properties, wanted: str) -> str:
    if not wanted:
        return moref(compute.get("resourcePool"))
    own = [
        each
        for each in objects.values()
        if each.kind in {"ResourcePool", "VirtualApp"} and moref(each.get("owner")) == compute.moref
    ]
    found = [each.moref for each in own if names[each.moref] == wanted]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted({repr(names[each.moref]) for each in own}))
    where = f"cluster {names[compute.moref]!r}"
    if found:
        raise InvalidInputError(f"{where} has {len(found)} resource pools {wanted!r}: rename all but one")
    raise NotFoundError(f"{where} has no resource pool {wanted!r}; it has: {known}")


def _datacenter(
    vcenter: VCenter, objects: dict[str, Properties], names: dict[str, str], datastore: str, datacenter: str
) -> tuple[Properties, str]:
    """The datacentre that has the datastore, and the datastore's moref."""
    fitting = [
        (each, store)
        for each in objects.values()
        if each.kind == "Datacenter" and datacenter in {"", names[each.moref], each.moref}
        for store in (moref(mounted) for mounted in each.get("datastore") or [])
        if names.get(store) == datastore
    ]
    if not fitting:
        where = f"datacentre {datacenter!r} of " if datacenter else ""
        raise NotFoundError(f"{where}vCenter {vcenter.name} has no datastore {datastore!r}")
    if len(fitting) > 1:
        choices = ", ".join(sorted(f"{names[each.moref]!r} ({each.moref})" for each, _ in fitting))
        raise InvalidInputError(
            f"datastore {datastore!r} is in several datacentres ({choices}): name one as `datacenter`"
        )
    return fitting[0]


def _child_folder(objects: dict[str, Properties], parent: str, component: str, path: str) -> str:
    for each in objects.values():
        same = path_component(str(each.get("name", ""))) == component
        if each.kind == "Folder" and same and moref(each.get("parent")) == parent:
            return each.moref
    raise NotFoundError(f"there is no folder {component!r} of path {path!r} below the datacentre's VM folder")


def _below(objects: dict[str, Properties], found: Properties, top: str) -> bool:
    above: Properties | None = found
    for _ in range(200):
        if above is None:
            return False
        parent = moref(above.get("parent"))
        if parent == top:
            return True
        above = objects.get(parent)
    return False


def register(
    vcenter: VCenter,
    place: Place,
    vmx_path: str,
    name: str,
    heartbeat: Heartbeat = no_heartbeat,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> str:
    """Registers the VM of a .vmx, powered off, and returns its moref.

    When the answer is lost, the VM of that .vmx and name is looked for: then it is the one that this call made.

    Args:
        vcenter: the session.
        place: from `find_place`.
        vmx_path: datastore path of the .vmx.
        name: unescaped, at most 80 characters.
        heartbeat: told the task's progress.
        timeout_s: for the task.

    Raises:
        AlreadyExistsError: the folder has a VM of this name, or the .vmx is registered already. Nothing is changed.
        InvalidInputError: not a datastore path or not a name.
    """
    path = str(parse_datastore_path(vmx_path))
    if not 1 <= len(name) <= _MAX_NAME_CHARS or not name.isprintable():
        raise InvalidInputError(f"VM name {name[:100]!r}: 1 to {_MAX_NAME_CHARS} printable characters")
    refuse_existing(vcenter, place, path, name)
    try:
        task = vcenter.mutate(
            lambda session: session.managed(vim.Folder, place.folder).RegisterVM_Task(
                path=path,
                name=escape(name),
                asTemplate=False,
                pool=session.managed(vim.ResourcePool, place.pool),
                host=session.managed(vim.HostSystem, place.host) if place.host else None,
            )
        )
        return moref(wait(vcenter, moref(task), heartbeat, timeout_s=timeout_s))
    except (ConnectionLostError, SessionLostError):
        found = _look_for(vcenter, place, path, name, heartbeat)
        if found is None:
            raise
        return found


def _look_for(vcenter: VCenter, place: Place, path: str, name: str, heartbeat: Heartbeat) -> str | None:
    """Waits a while for the effect of a registration whose answer was lost: its task may still run."""
    deadline = time.monotonic() + _LOST_ANSWER_S
    while True:
        found = find_registered(vcenter, path, place.datacenter_moref)
        if found is not None:
            return found[0] if found[1] == name else None
        if time.monotonic() >= deadline:
            return None
        pause(_LOOK_AGAIN_S, heartbeat)


def find_registered(vcenter: VCenter, vmx_path: str, datacenter_moref: str = "") -> tuple[str, str] | None:
    """Moref and name of the VM that is registered from a .vmx, or None.

    The same path means another file in another datacentre: without `datacenter_moref` all are searched.
    """
    path = str(parse_datastore_path(vmx_path))
    for each in _registered(vcenter, datacenter_moref):
        if str(each.get("summary.config.vmPathName", "")) == path:
            return each.moref, unescape(str(each.get("name", "")))
    return None


def _registered(vcenter: VCenter, datacenter_moref: str) -> list[Properties]:
    # The path of the summary is known for an inaccessible VM too, that of `config` is not.
    paths = {vim.VirtualMachine: ["name", "parent", "summary.config.vmPathName"]}

    def read(session: Session) -> list[Properties]:
        root = session.managed(vim.Datacenter, datacenter_moref) if datacenter_moref else None
        return list(walk(session, paths, root=root))

    return vcenter.read(read)


def refuse_existing(vcenter: VCenter, place: Place, path: str, name: str) -> None:
    """Makes sure that a VM can be registered from a .vmx under a name.

    Raises:
        AlreadyExistsError: the .vmx is registered, or the folder has a VM of that name (whatever its case).
    """
    for each in _registered(vcenter, place.datacenter_moref):
        other = unescape(str(each.get("name", "")))
        if str(each.get("summary.config.vmPathName", "")) == path:
            raise AlreadyExistsError(
                f"{path} is registered already, as {other!r} ({each.moref}): choose another name, or unregister it"
            )
        # vCenter compares names without case.
        if moref(each.get("parent")) == place.folder and other.casefold() == name.casefold():
            raise AlreadyExistsError(
                f"the folder has a VM {other!r} ({each.moref}) already: choose another name"
            )


def unregister(vcenter: VCenter, vm_moref: str) -> None:
    """Takes a VM out of the inventory; its files stay. A VM that is gone already is no error.

    Raises:
        BusyError: it is powered on.
    """
    try:
        vcenter.mutate(lambda session: session.managed(vim.VirtualMachine, vm_moref).UnregisterVM())
    except NotFoundError:
        return


def power_off(vcenter: VCenter, vm_moref: str, heartbeat: Heartbeat = no_heartbeat) -> None:
    """Powers a VM off, hard. A VM that is off already is no error.

    Raises:
        NotFoundError: no such VM.
    """

    def state(session: Session) -> Any:
        return read_object(session, vim.VirtualMachine, vm_moref, ["runtime.powerState"]).get(
            "runtime.powerState"
        )

    if vcenter.read(state) == "poweredOff":
        return
    task = vcenter.mutate(lambda session: session.managed(vim.VirtualMachine, vm_moref).PowerOffVM_Task())
    wait(vcenter, moref(task), heartbeat)
