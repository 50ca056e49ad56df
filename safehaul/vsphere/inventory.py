"""Discovery: every VM of a vCenter as a `VmRecord`, and the NAS volumes below the hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic import Field
from pyVmomi import vim

from safehaul.messages.base import Message
from safehaul.messages.inventory import NasVolume, Unidentified, UnidentifiedReason, VmDisk, VmRecord
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.devices import disks
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import unescape
from safehaul.vsphere.properties import PAGE_SIZE, Properties, read_object, read_objects, walk
from safehaul.vsphere.snapshot_tree import snapshot_nodes
from safehaul.vsphere.topology import Topology

__all__ = ["Inventory", "Unidentified", "all_nas_volumes", "discover", "method_names", "nas_volumes"]

_VM_PATHS: Final = [
    "name",
    "parent",
    "parentVApp",
    "resourcePool",
    "datastore",
    "disabledMethod",
    "snapshot",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.host",
    "runtime.consolidationNeeded",
    "config.instanceUuid",
    "config.template",
    "config.guestId",
    "config.guestFullName",
    "config.annotation",
    "config.version",
    "config.changeVersion",
    "config.changeTrackingEnabled",
    "config.files.vmPathName",
    "config.hardware.device",
]

_DATASTORE_PATHS: Final = ["name", "summary", "info"]


class Inventory(Message):
    """What one discovery found."""

    records: list[VmRecord] = Field(default_factory=list)
    """Ordered by `vc_guid`, which is unique here."""
    unidentified: list[Unidentified] = Field(default_factory=list)
    """The other VMs: each with its reason, so that rules which select one can say why it is not backed up."""


def discover(
    vcenter: VCenter, *, page_size: int = PAGE_SIZE, heartbeat: Callable[[], None] | None = None
) -> Inventory:
    """Every VM and template of a vCenter.

    Two VMs with one VC.GUID are both left out, and each names the other: nobody can tell whose a backup
    would be. The rest of the inventory is not affected.

    Args:
        vcenter: the session.
        page_size: VMs a round trip.
        heartbeat: called once a page; may raise to stop.

    Raises:
        SafehaulError: vCenter could not be asked.
    """
    instance_uuid = vcenter.about().instance_uuid
    # Records are made page by page: pyVmomi's objects of 10,000 VMs would fill the memory.
    return vcenter.read(lambda session: _discover(session, vcenter.name, instance_uuid, page_size, heartbeat))


def _discover(
    session: Session,
    vcenter_name: str,
    instance_uuid: str,
    page_size: int,
    heartbeat: Callable[[], None] | None,
) -> Inventory:
    topology = Topology.read(session, heartbeat)
    by_guid: dict[str, list[VmRecord]] = {}
    unidentified: list[Unidentified] = []
    for found in walk(session, {vim.VirtualMachine: _VM_PATHS}, page_size=page_size, heartbeat=heartbeat):
        refused = _identify_failure(found, vcenter_name, topology)
        if refused is not None:
            unidentified.append(refused)
            continue
        record = _record(found, vcenter_name, instance_uuid, topology)
        # A VM that moves between folders while a walk goes on may be met twice.
        if all(each.moref != record.moref for each in by_guid.setdefault(record.vc_guid, [])):
            by_guid[record.vc_guid].append(record)
    for same in by_guid.values():
        if len(same) > 1:
            unidentified += _duplicates(same)
    unique = [same[0] for _, same in sorted(by_guid.items()) if len(same) == 1]
    return Inventory(records=unique, unidentified=sorted(unidentified, key=lambda each: each.moref))


def _identify_failure(found: Properties, vcenter_name: str, topology: Topology) -> Unidentified | None:
    """Why a VM cannot become a record, or None when it can."""
    connection = str(found.get("runtime.connectionState", "unknown"))
    state = _reason(found, connection)
    if state is None:
        return None
    kind, reason = state
    return Unidentified(
        moref=found.moref,
        name=unescape(str(found.get("name", ""))),
        kind=kind,
        reason=reason,
        vcenter=vcenter_name,
        connection_state=connection,
        datacenter=topology.datacenter(found.get("parent")),
        folder=topology.folder_path(found.get("parent")),
    )


def _reason(found: Properties, connection: str) -> tuple[UnidentifiedReason, str] | None:
    unread = {
        path: why for path, why in found.unreadable.items() if path in {"config.hardware.device", "snapshot"}
    }
    if found.get("config.instanceUuid") and not unread:
        return None
    if connection in {"orphaned", "inaccessible", "invalid", "disconnected"}:
        return UnidentifiedReason.NOT_CONNECTED, (
            f"the VM is {connection}, its configuration unreadable: repair its registration or datastore"
        )
    if found.unreadable:
        path, why = next(iter(found.unreadable.items()))
        return UnidentifiedReason.UNREADABLE, f"{path} cannot be read: {why}"
    return UnidentifiedReason.NO_CONFIGURATION, (
        "vCenter tells no instanceUuid: the VM is being created, or the account may not read it"
    )


def _record(found: Properties, vcenter_name: str, instance_uuid: str, topology: Topology) -> VmRecord:
    host, parent = found.get("runtime.host"), found.get("parent")
    snapshot = found.get("snapshot")
    disk_list: list[VmDisk] = disks(found.get("config.hardware.device"))
    return VmRecord(
        vc_guid=f"{instance_uuid}.{found.get('config.instanceUuid')}",
        vcenter=vcenter_name,
        moref=found.moref,
        name=unescape(str(found.get("name", ""))),
        power_state=str(found.get("runtime.powerState", "unknown")),
        connection_state=str(found.get("runtime.connectionState", "unknown")),
        template=bool(found.get("config.template", False)),
        guest_id=str(found.get("config.guestId", "")),
        guest_name=str(found.get("config.guestFullName", "")),
        annotation=str(found.get("config.annotation", "")),
        hardware_version=str(found.get("config.version", "")),
        datacenter=topology.datacenter(parent) or topology.datacenter(host),
        folder=topology.folder_path(parent),
        host=topology.name(host),
        host_moref=moref(host),
        cluster=topology.cluster(host),
        resource_pool=topology.name(found.get("parentVApp") or found.get("resourcePool")),
        vmx_path=str(found.get("config.files.vmPathName", "")),
        datastores=sorted(topology.name(each) for each in found.get("datastore") or []),
        disks=disk_list,
        change_tracking=bool(found.get("config.changeTrackingEnabled", False)),
        consolidation_needed=bool(found.get("runtime.consolidationNeeded", False)),
        snapshot_count=len(snapshot_nodes(snapshot)),
        disabled_methods=method_names(found.get("disabledMethod")),
        change_version=str(found.get("config.changeVersion", "")),
    )


def _duplicates(same: list[VmRecord]) -> list[Unidentified]:
    named = ", ".join(f"{each.name!r} ({each.moref})" for each in same)
    return [
        Unidentified(
            moref=each.moref,
            name=each.name,
            kind=UnidentifiedReason.DUPLICATE,
            reason=f"VC.GUID {each.vc_guid} belongs to several VMs: {named}: give all but one a new vc.uuid",
            vcenter=each.vcenter,
            connection_state=each.connection_state,
            datacenter=each.datacenter,
            folder=each.folder,
            vc_guid=each.vc_guid,
        )
        for each in same
    ]


def method_names(methods: Any) -> list[str]:
    """`disabledMethod` as names, such as `RelocateVM_Task`; unknown methods included."""
    return sorted(
        str(getattr(getattr(each, "info", None), "wsdlName", None) or each.name) for each in methods or []
    )


def all_nas_volumes(vcenter: VCenter) -> list[NasVolume]:
    """Every datastore of a vCenter, NAS or not, by vCenter's own record of it: one walk of the inventory.

    Hosts may mount one NAS volume under different server names; `nas_volumes` tells a single host's view.
    """

    def read(session: Session) -> list[NasVolume]:
        found = walk(session, {vim.Datastore: _DATASTORE_PATHS})
        return [_nas_volume(each, None) for each in found]

    return sorted(vcenter.read(read), key=lambda volume: volume.datastore)


def nas_volumes(vcenter: VCenter, host_moref: str) -> list[NasVolume]:
    """The datastores that a host mounts, by its own view of them; those that are not NAS too.

    Raises:
        NotFoundError: no such host.
    """
    return vcenter.read(lambda session: _nas_volumes(session, host_moref))


def _nas_volumes(session: Session, host_moref: str) -> list[NasVolume]:
    host = read_object(
        session, vim.HostSystem, host_moref, ["config.fileSystemVolume.mountInfo", "datastore"]
    )
    mounts = host.get("config.fileSystemVolume.mountInfo") or []
    by_path = {_volume_id(each.mountInfo.path): each for each in mounts if each.mountInfo}
    by_name = {each.volume.name: each for each in mounts if each.volume and each.volume.name}
    datastores = read_objects(session, host.get("datastore") or [], {vim.Datastore: _DATASTORE_PATHS})
    volumes = []
    for datastore in datastores:
        summary, name = datastore.get("summary"), unescape(str(datastore.get("name", "")))
        mount = by_path.get(_volume_id(summary.url if summary else "")) or by_name.get(name)
        volumes.append(_nas_volume(datastore, mount))
    return sorted(volumes, key=lambda volume: volume.datastore)


def _volume_id(location: str | None) -> str:
    """The id in `ds:///vmfs/volumes/ID/` and in `/vmfs/volumes/ID`, which join a datastore with its mount."""
    return (location or "").rstrip("/").rpartition("/")[2]


def _nas_volume(datastore: Properties, mount: Any) -> NasVolume:
    summary, info = datastore.get("summary"), datastore.get("info")
    # A host that lost its mount table still has the datastore's own record of what was mounted.
    volume = mount.volume if mount is not None else getattr(info, "nas", None)
    nas = volume if isinstance(volume, vim.host.NasVolume) else None
    accessible = bool(summary.accessible) if summary else False
    if mount is not None and mount.mountInfo.accessible is not None:
        accessible = accessible and bool(mount.mountInfo.accessible)
    return NasVolume(
        datastore=unescape(str(datastore.get("name", ""))),
        moref=datastore.moref,
        type=str(
            (volume.type if volume is not None else None) or (summary.type if summary else "") or "unknown"
        ),
        remote_host=str(nas.remoteHost or "") if nas else "",
        remote_path=str(nas.remotePath or "") if nas else "",
        security_type=str(nas.securityType or "") if nas else "",
        capacity_bytes=int(summary.capacity or 0) if summary else 0,
        free_bytes=int(summary.freeSpace or 0) if summary else 0,
        accessible=accessible,
    )
