"""Whether the account holds what a restore will need, asked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pyVmomi import vim

from safehaul.errors import PermissionRefusedError
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.properties import read_object

REGISTER_PRIVILEGES: Final = ("VirtualMachine.Inventory.Register",)
"""On the folder of a new VM; see vmware-facts 23."""
POOL_PRIVILEGES: Final = ("Resource.AssignVMToPool",)
NETWORK_PRIVILEGES: Final = ("Network.Assign",)
NEW_VM_PRIVILEGES: Final = ("VirtualMachine.Config.EditDevice", "VirtualMachine.Inventory.Unregister")
"""On the folder, for the VM that will be in it: its cards, and its removal when the restore fails."""
ADD_DISK_PRIVILEGES: Final = ("VirtualMachine.Config.AddExistingDisk",)
SWITCH_DISK_PRIVILEGES: Final = (*ADD_DISK_PRIVILEGES, "VirtualMachine.Config.RemoveDisk")
POWER_ON_PRIVILEGES: Final = ("VirtualMachine.Interact.PowerOn",)


class Entity(NamedTuple):
    """A managed object, such as `(vim.Folder, "group-v3")`."""

    kind: Any
    moref: str


def entity(kind: str, moref: str) -> Entity:
    """An entity by its class's name in the vSphere API, such as `Folder`."""
    return Entity(getattr(vim, kind), moref)


def require(vcenter: VCenter, needs: Mapping[Entity, Sequence[str]]) -> None:
    """Makes sure that this session's account holds each privilege on its object. Changes nothing.

    Raises:
        PermissionRefusedError: names every missing privilege with its object.
        NotFoundError: one of the objects is gone.
    """
    missing = vcenter.read(lambda session: _missing(session, needs))
    if missing:
        raise PermissionRefusedError(
            f"vCenter {vcenter.name}: no permission for this restore: give the account {', '.join(missing)}"
        )


def _missing(session: Session, needs: Mapping[Entity, Sequence[str]]) -> list[str]:
    content = session.content
    manager, sessions = content.authorizationManager, content.sessionManager
    own = read_object(session, vim.SessionManager, moref(sessions), ["currentSession"])
    key = own.get("currentSession").key
    missing = []
    for entity, privileges in needs.items():
        answers = manager.HasPrivilegeOnEntities(
            [session.managed(entity.kind, entity.moref)], key, list(privileges)
        )
        granted = {each.privId for answer in answers for each in answer.privAvailability if each.isGranted}
        name = getattr(entity.kind, "_wsdlName", "object")
        missing += [f"{each} on {name} {entity.moref}" for each in privileges if each not in granted]
    return missing
