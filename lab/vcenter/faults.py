"""From what went wrong to the vim fault that a real vCenter would send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from lab.vcenter.reflect import moid_of, properties_of, property_info

_KINDS = {
    "vm": vim.VirtualMachine,
    "snapshot": vim.vm.Snapshot,
    "task": vim.Task,
    "host": vim.HostSystem,
    "datastore": vim.Datastore,
}
_NAMESPACES = ("vim.fault", "vmodl.fault", "vmodl.query", "vmodl")


def fault_named(name: str, message: str = "", fields: Mapping[str, Any] | None = None) -> Any:
    """The fault with the WSDL name `name` (`FileLocked`, `NoPermission`, ...), its `fields` filled.

    A name that the API does not have becomes `SystemError` with the name in its message; fields that the fault
    does not have are left out: a fault plan is typed by people, and the client must get some fault.
    """
    fault_type = _fault_type(name)
    if fault_type is None:
        return vmodl.fault.SystemError(msg=f"{name}: {message}" if message else name, reason=name)
    fault = fault_type()
    for key, value in (fields or {}).items():
        try:
            declared = property_info(fault_type, key).type
            setattr(fault, key, _converted(value, declared))
        except (AttributeError, TypeError, ValueError):
            continue  # not a field of this fault, or not a value of its type
    fault.msg = message or _default_message(name)
    return _with_required(fault)


def not_authenticated(target: Any | None = None) -> Any:
    """The session is not known (any more)."""
    root = target if isinstance(target, vim.ManagedEntity) else vim.Folder("group-d1")
    return vim.fault.NotAuthenticated(
        msg="The session is not authenticated.", object=root, privilegeId="System.View"
    )


def no_permission(target: Any, privilege: str) -> Any:
    """The user lacks `privilege` on `target`; both stand in the fault."""
    entity = target if isinstance(target, vim.ManagedEntity) else vim.Folder("group-d1")
    return vim.fault.NoPermission(
        msg=f"Permission to perform this operation was denied: {privilege}",
        object=entity,
        privilegeId=privilege,
        missingPrivileges=[vim.fault.NoPermission.EntityPrivileges(entity=entity, privilegeIds=[privilege])],
    )


def object_gone(target: Any) -> Any:
    """The managed object does not exist (any more)."""
    name = VmomiSupport.GetWsdlName(type(target))
    return vmodl.fault.ManagedObjectNotFound(
        msg=f"The object 'vim.{name}:{moid_of(target)}' has already been deleted or has not been completely created",
        obj=target,
    )


def invalid_argument(name: str, reason: str = "") -> Any:
    """A parameter holds what the method cannot use."""
    return vmodl.fault.InvalidArgument(
        msg=reason or f"A specified parameter was not correct: {name}", invalidProperty=name
    )


def not_supported(what: str) -> Any:
    """The lab's vCenter does not do this."""
    return vmodl.fault.NotSupported(msg=f"The operation is not supported on the object: {what}")


def _fault_type(name: str) -> Any | None:
    for namespace in _NAMESPACES:
        try:
            fault_type = VmomiSupport.GetVmodlType(f"{namespace}.{name}")
        except (KeyError, AttributeError):
            continue
        if isinstance(fault_type, type) and issubclass(fault_type, vmodl.MethodFault):
            return fault_type
    return None


def _default_message(name: str) -> str:
    return f"The operation failed: {name}."


def _converted(value: Any, declared: Any) -> Any:
    """The hosts give every field as text; the fault wants its own types."""
    if not isinstance(value, str) or issubclass(declared, str):
        return value
    if issubclass(declared, VmomiSupport.ManagedObject):
        return _reference(value, declared)
    return value.lower() == "true" if declared is bool else declared(value)


def _reference(moid: str, declared: Any) -> Any:
    """A reference of the declared kind; where that is abstract, the kind that the moid's prefix tells."""
    if declared not in (VmomiSupport.ManagedObject, vim.ManagedEntity):
        return declared(moid)
    return _KINDS.get(moid.partition("-")[0], vim.Folder)(moid)


def _with_required(fault: Any) -> Any:
    """Fill required fields that nobody gave, since an unset one cannot be serialised."""
    for prop in properties_of(fault):
        if prop.flags & VmomiSupport.F_OPTIONAL or getattr(fault, prop.name) is not None:
            continue
        if issubclass(prop.type, VmomiSupport.ManagedObject):
            setattr(fault, prop.name, _reference("group-d1", prop.type))
        elif issubclass(prop.type, str):
            first = next(iter(getattr(prop.type, "values", [])), "unknown")
            setattr(fault, prop.name, first)
    return fault
