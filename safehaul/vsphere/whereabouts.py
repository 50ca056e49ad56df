"""Where a VM is now: under its moref, under another one after it was registered anew, or nowhere.

A moref lasts as long as its registration; the instanceUuid (the second half of VC.GUID) stands in the .vmx and stays.
"""

from __future__ import annotations

from pyVmomi import vim

from safehaul.errors import BusyError, NotFoundError
from safehaul.messages.inventory import VmFile, VmState
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.datastores import find_datastore, list_directory
from safehaul.vsphere.faults import moref
from safehaul.vsphere.leftovers import compare
from safehaul.vsphere.names import parse_datastore_path
from safehaul.vsphere.tasks import Heartbeat
from safehaul.vsphere.vms import vm_state


def instance_uuid_of(vc_guid: str) -> str:
    """The VM's own half of a VC.GUID."""
    return vc_guid.rpartition(".")[2]


def find_by_instance_uuid(vcenter: VCenter, instance_uuid: str) -> list[str]:
    """Morefs of the VMs with this instanceUuid that the account may see; two of them are a mistake of the site."""
    found = vcenter.read(
        lambda session: session.content.searchIndex.FindAllByUuid(None, instance_uuid, True, True)
    )
    return sorted(moref(each) for each in found or [])


def find_holder(vcenter: VCenter, vm_moref: str, instance_uuid: str, description: str) -> VmState | None:
    """The VM that a snapshot of ours is to be looked for on; None when vCenter knows the VM no more.

    Args:
        vcenter: the session.
        vm_moref: the VM's when the snapshot was asked for.
        instance_uuid: the VM's; empty: only the moref decides.
        description: the snapshot's, which tells whose it is wherever it stands.

    Raises:
        NotFoundError: no such moref, and no instanceUuid was given.
    """
    here: VmState | None = None
    try:
        here = vm_state(vcenter, vm_moref)
    except NotFoundError:
        if not instance_uuid:
            raise
    if here is not None and (
        instance_uuid.lower() in {"", here.instance_uuid.lower()} or _holds(here, description)
    ):
        return here
    # A vCenter that was built anew gives an old moref to another VM: the instanceUuid tells it.
    elsewhere = [
        vm_state(vcenter, each) for each in find_by_instance_uuid(vcenter, instance_uuid) if each != vm_moref
    ]
    holders = [each for each in elsewhere if _holds(each, description)]
    return next(iter(holders or elsewhere), here)


def check_deleted(
    vcenter: VCenter, vm_name: str, before: VmState | None, heartbeat: Heartbeat
) -> list[VmFile] | None:
    """Proves that a VM which vCenter knows no more was deleted, and not only taken out of the inventory.

    Args:
        vcenter: the session.
        vm_name: for messages.
        before: the VM before its snapshot was made; without it nobody knows where its files were.
        heartbeat: while directories are listed.

    Returns:
        What is left in the VM's directories; None when they are not known, so that nothing is proved.

    Raises:
        BusyError: its .vmx or files of the snapshot are still there, or their datastore cannot be looked at.
    """
    if before is None or not before.directories:
        return None
    listed: list[VmFile] = []
    # By moref: another datacentre may call one of its own by the same name.
    among = [vim.Datastore(each) for each in before.datastore_morefs] or None
    for directory in before.directories:
        name = parse_datastore_path(directory).datastore
        try:
            find_datastore(vcenter, name, among=among)
        except NotFoundError as error:
            raise BusyError(
                f"VM {vm_name!r} is not in vCenter, and neither is its datastore {name!r}: nobody can tell whether "
                "its snapshot is still there; mount the datastore, or terminate this removal"
            ) from error
        try:
            listed += list_directory(vcenter, directory, among=among, heartbeat=heartbeat)
        except NotFoundError:
            continue  # the directory went with the VM
    paths = {file.path for file in listed}
    left = [path for path in (before.vmx_path,) if path in paths]
    left += compare(before, before.model_copy(update={"listed": listed, "files": []})).ours
    if left:
        raise BusyError(
            f"VM {vm_name!r} is not in vCenter's inventory, but its files are on the datastore "
            f"({', '.join(left[:5])}): it was taken out with our snapshot; register it again, or delete its files"
        )
    return listed


def _holds(state: VmState, description: str) -> bool:
    return any(node.description == description for node in state.snapshots)
