"""Discovery: every VM of a vCenter as a `VmRecord`, and the NAS volumes below the hosts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from pydantic import Field
from pyVmomi import vim

from safehaul.messages.base import Message
from safehaul.messages.inventory import (
    InventoryDetail,
    NasVolume,
    Unidentified,
    UnidentifiedReason,
    VmDisk,
    VmRecord,
)
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.devices import disks
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import unescape
from safehaul.vsphere.properties import PAGE_SIZE, Properties, read_object, read_objects, walk
from safehaul.vsphere.snapshot_tree import snapshot_nodes
from safehaul.vsphere.tags import tags_of
from safehaul.vsphere.topology import Topology

__all__ = [
    "Inventory",
    "Unidentified",
    "all_nas_volumes",
    "discover",
    "method_names",
    "nas_volumes",
    "volumes_around",
    "volumes_of_vm",
]

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

_ATTRIBUTE_PATH: Final = "customValue"
# A reason names so many of the VMs that share a VC.GUID, of which there may be thousands.
_TWINS_NAMED: Final = 5
_DATASTORE_PATHS: Final = ["name", "summary", "info"]
_DATACENTER_PATHS: Final = ["name", "datastore"]


class Inventory(Message):
    """What one discovery found."""

    records: list[VmRecord] = Field(default_factory=list)
    """Ordered by `vc_guid`, which is unique here."""
    unidentified: list[Unidentified] = Field(default_factory=list)
    """The other VMs: each with its reason, so that rules which select one can say why it is not backed up."""


def discover(
    vcenter: VCenter,
    *,
    details: Collection[InventoryDetail] = (),
    page_size: int = PAGE_SIZE,
    heartbeat: Callable[[], None] | None = None,
) -> Inventory:
    """Every VM and template of a vCenter.

    Two VMs with one VC.GUID are both left out, and each names the other: nobody can tell whose a backup
    would be. The rest of the inventory is not affected.

    Args:
        vcenter: the session.
        details: what else to read: custom attributes, and tags, which need the REST endpoint.
        page_size: VMs a round trip.
        heartbeat: called once a page; may raise to stop.

    Raises:
        SafehaulError: vCenter could not be asked.
    """
    instance_uuid = vcenter.about().instance_uuid
    # Records are made page by page: pyVmomi's objects of 10,000 VMs would fill the memory.
    wants_attributes = InventoryDetail.ATTRIBUTES in details
    found = vcenter.read(
        lambda session: _discover(
            session, vcenter.name, instance_uuid, wants_attributes, page_size, heartbeat
        )
    )
    return _with_tags(vcenter, found, heartbeat) if InventoryDetail.TAGS in details else found


def _with_tags(vcenter: VCenter, found: Inventory, heartbeat: Callable[[], None] | None) -> Inventory:
    known = [each.record for each in found.unidentified if each.record is not None]
    tags = tags_of(vcenter.rest(), [each.moref for each in (*found.records, *known)], heartbeat)

    def tagged(record: VmRecord) -> VmRecord:
        return record.model_copy(update={"tags": tags[record.moref]}) if record.moref in tags else record

    return Inventory(
        records=[tagged(each) for each in found.records],
        unidentified=[
            each.model_copy(update={"record": tagged(each.record)}) if each.record else each
            for each in found.unidentified
        ],
    )


def _discover(
    session: Session,
    vcenter_name: str,
    instance_uuid: str,
    wants_attributes: bool,
    page_size: int,
    heartbeat: Callable[[], None] | None,
) -> Inventory:
    topology = Topology.read(session, heartbeat)
    fields = _attribute_names(session) if wants_attributes else {}
    paths = [*_VM_PATHS, _ATTRIBUTE_PATH] if wants_attributes else _VM_PATHS
    by_guid: dict[str, list[VmRecord]] = {}
    unidentified: list[Unidentified] = []
    for found in walk(session, {vim.VirtualMachine: paths}, page_size=page_size, heartbeat=heartbeat):
        state = _reason(found, str(found.get("runtime.connectionState", "unknown")))
        vc_guid = "" if state else f"{instance_uuid}.{found.get('config.instanceUuid')}"
        record = _record(found, vcenter_name, vc_guid, topology, fields)
        if state is not None:
            unidentified.append(_unidentified(record, *state))
            continue
        # A VM that moves between folders while a walk goes on may be met twice.
        if all(each.moref != record.moref for each in by_guid.setdefault(record.vc_guid, [])):
            by_guid[record.vc_guid].append(record)
    for same in by_guid.values():
        if len(same) > 1:
            unidentified += _duplicates(same)
    unique = [same[0] for _, same in sorted(by_guid.items()) if len(same) == 1]
    return Inventory(records=unique, unidentified=sorted(unidentified, key=lambda each: each.moref))


def _attribute_names(session: Session) -> dict[int, str]:
    """Custom attributes by key. Their values come with each VM."""
    manager = session.content.customFieldsManager
    if manager is None:
        return {}
    found = read_object(session, vim.CustomFieldsManager, moref(manager), ["field"])
    return {int(each.key): str(each.name) for each in found.get("field") or []}


def _unidentified(
    record: VmRecord, kind: UnidentifiedReason, reason: str, *, vc_guid: str = ""
) -> Unidentified:
    return Unidentified(
        moref=record.moref,
        name=record.name,
        kind=kind,
        reason=reason,
        vcenter=record.vcenter,
        connection_state=record.connection_state,
        datacenter=record.datacenter,
        folder=record.folder,
        vc_guid=vc_guid,
        record=record,
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


def _record(
    found: Properties, vcenter_name: str, vc_guid: str, topology: Topology, fields: dict[int, str]
) -> VmRecord:
    host, parent = found.get("runtime.host"), found.get("parent")
    snapshot = found.get("snapshot")
    stores = {topology.name(each): moref(each) for each in found.get("datastore") or []}
    disk_list: list[VmDisk] = disks(found.get("config.hardware.device"))
    return VmRecord(
        vc_guid=vc_guid,
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
        resource_pool=topology.pool_path(found.get("parentVApp") or found.get("resourcePool")),
        vmx_path=str(found.get("config.files.vmPathName", "")),
        datastores=sorted(stores),
        datastore_morefs=stores,
        disks=disk_list,
        change_tracking=bool(found.get("config.changeTrackingEnabled", False)),
        consolidation_needed=bool(found.get("runtime.consolidationNeeded", False)),
        snapshot_count=len(snapshot_nodes(snapshot)),
        disabled_methods=method_names(found.get("disabledMethod")),
        change_version=str(found.get("config.changeVersion", "")),
        attributes={
            fields[each.key]: str(each.value)
            for each in found.get(_ATTRIBUTE_PATH) or []
            if each.key in fields and isinstance(each, vim.CustomFieldsManager.StringValue) and each.value
        },
    )


def _duplicates(same: list[VmRecord]) -> list[Unidentified]:
    named = ", ".join(f"{each.name!r} ({each.moref})" for each in same[:_TWINS_NAMED])
    more = f" and {len(same) - _TWINS_NAMED} more" if len(same) > _TWINS_NAMED else ""
    return [
        _unidentified(
            each,
            UnidentifiedReason.DUPLICATE,
            f"VC.GUID {each.vc_guid} belongs to several VMs: {named}{more}: give all but one a new vc.uuid",
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

    Names are unique in a datacentre only: `volumes_of_vm` tells those that a VM's paths mean. Hosts may mount one NAS
    volume under different server names; `nas_volumes` tells a single host's view.
    """
    paths = {vim.Datastore: _DATASTORE_PATHS, vim.Datacenter: _DATACENTER_PATHS}
    found = vcenter.read(lambda session: list(walk(session, paths)))
    homes = {
        moref(store): each
        for each in found
        if each.kind == "Datacenter"
        for store in each.get("datastore") or []
    }
    volumes = [_nas_volume(each, None, homes.get(each.moref)) for each in found if each.kind == "Datastore"]
    return sorted(volumes, key=lambda volume: (volume.datastore, volume.moref))


def volumes_of_vm(vcenter: VCenter, vm_moref: str) -> list[NasVolume]:
    """The datastores of a VM's datacentre, each name once: what the datastore paths of the VM and its snapshots mean.

    Raises:
        NotFoundError: no such VM.
    """
    vm = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm_moref, ["datastore"]))
    vm.require("datastore")
    return volumes_around(all_nas_volumes(vcenter), [moref(each) for each in vm.get("datastore") or []])


def volumes_around(volumes: Iterable[NasVolume], own: Collection[str]) -> list[NasVolume]:
    """Those of `volumes` (a whole vCenter's) in the datacentre of some datastores, each name once.

    Args:
        volumes: from `all_nas_volumes`.
        own: morefs of the datastores that a VM uses: all that is known where its datacentre may not be seen.
    """
    listed = list(volumes)
    mine = [each for each in listed if each.moref in own]
    homes = {each.datacenter_moref for each in mine} - {""}
    others = [each for each in listed if each.datacenter_moref in homes]
    return list({each.datastore: each for each in (*others, *mine)}.values())


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
        volumes.append(_nas_volume(datastore, mount, None))
    return sorted(volumes, key=lambda volume: volume.datastore)


def _volume_id(location: str | None) -> str:
    """The id in `ds:///vmfs/volumes/ID/` and in `/vmfs/volumes/ID`, which join a datastore with its mount."""
    return (location or "").rstrip("/").rpartition("/")[2]


def _nas_volume(datastore: Properties, mount: Any, home: Properties | None) -> NasVolume:
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
        datacenter=unescape(str(home.get("name", ""))) if home else "",
        datacenter_moref=home.moref if home else "",
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
