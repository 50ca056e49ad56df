"""Managed objects as values: a reference, and its properties, each built when it is first asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pyVmomi import VmomiSupport, vmodl

from lab.vcenter.reflect import moid_of, property_info

Properties = Mapping[str, Callable[[], Any]]

_STEP = re.compile(r"^(?P<name>[A-Za-z_]\w*)(?:\[(?P<key>[^\]]{1,200})\])?$")
_MAX_PATH = 400


class Node:
    """One managed object at one moment. Properties are built once and then kept: a node never changes."""

    __slots__ = ("_builders", "_values", "reference")

    def __init__(self, reference: Any, builders: Properties) -> None:
        self.reference = reference
        self._builders = builders
        self._values: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """The properties that this object can have set."""
        return list(self._builders)

    def value(self, name: str) -> Any:
        """The property `name`, typed as the API declares it, or None when it is unset."""
        if name not in self._values:
            builder = self._builders.get(name)
            declared = property_info(type(self.reference), name).type
            self._values[name] = None if builder is None else typed(builder(), declared)
        return self._values[name]


def invalid_property(name: str) -> Any:
    """The fault for a property path that the type does not have."""
    return vmodl.query.InvalidProperty(msg=f"The property path {name!r} is not valid", name=name)


def check_path(managed_type: Any, path: str) -> None:
    """Raise `InvalidProperty` unless the first name of `path` is a property of `managed_type`."""
    if len(path) > _MAX_PATH:
        raise invalid_property(path[:80])
    match = _STEP.match(path.split(".", 1)[0])
    if match is None:
        raise invalid_property(path)
    try:
        property_info(managed_type, match["name"])
    except AttributeError as error:
        raise invalid_property(path) from error


def read_path(node: Node, path: str) -> Any:
    """Read a property path (`config.hardware.device`, `config.hardware.device[2000]`); None when unset.

    Raises:
        InvalidProperty (a vmodl fault): the path does not exist, or leads through a reference to another object.
    """
    check_path(type(node.reference), path)
    steps = path.split(".")
    first = _STEP.match(steps[0])
    assert first is not None
    value = _select(node.value(first["name"]), first["key"], path)
    for step in steps[1:]:
        if value is None:
            return None
        match = _STEP.match(step)
        if match is None or not isinstance(value, VmomiSupport.DataObject):
            raise invalid_property(path)
        try:
            declared = property_info(value, match["name"]).type
        except AttributeError as error:
            raise invalid_property(path) from error
        value = _select(typed(getattr(value, match["name"]), declared), match["key"], path)
    return None if isinstance(value, list) and not value and not _is_set_array(node, steps) else value


def typed(value: Any, declared: Any) -> Any:
    """Give a plain value the API's type: where the API says `anyType`, the type goes on the wire."""
    if value is None or declared is object:
        return value
    if issubclass(declared, list):
        if isinstance(value, VmomiSupport.Array):
            return value
        return declared(typed(item, declared.Item) for item in value)
    if isinstance(value, declared):
        return value
    if issubclass(declared, (str, int, float)) and not issubclass(declared, bool):
        return declared(value)
    return value


def _select(value: Any, key: str | None, path: str) -> Any:
    """The element of an array that `[key]` names: by its `key` property, as vCenter does."""
    if key is None or value is None:
        return value
    if not isinstance(value, list):
        raise invalid_property(path)
    wanted = key.strip('"')
    for item in value:
        if str(getattr(item, "key", "")) == wanted or (
            isinstance(item, VmomiSupport.ManagedObject) and moid_of(item) == wanted
        ):
            return item
    return None


def _is_set_array(node: Node, steps: list[str]) -> bool:
    """Arrays of the object itself are sent empty; optional arrays inside data objects count as unset."""
    return len(steps) == 1 and steps[0] in node.names
