"""What pyVmomi knows of its types and references: members that its comments call public, its names do not."""

from __future__ import annotations

from typing import Any

from pyVmomi import VmomiSupport


def moid_of(reference: Any) -> str:
    """The id of a managed object reference."""
    value: str = reference._moId  # noqa: SLF001 - see the module
    return value


def properties_of(kind: Any) -> list[Any]:
    """The properties (name, type, flags) of an API type, inherited ones too."""
    listed: list[Any] = kind._GetPropertyList()  # noqa: SLF001 - see the module
    return listed


def property_info(kind: Any, name: str) -> Any:
    """One property of a type.

    Raises:
        AttributeError: the type has no such property.
    """
    return VmomiSupport.GetPropertyInfo(kind, name)
