"""BackupJob's input as a person writes it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import field_validator

from safehaul.messages.base import Request

MAX_GROUP_NAME_CHARS = 200
INLINE_GROUP_NAME = "inline"
"""Of a group that was given whole and without a name."""
MAX_DEPTH = 32
"""Lists and objects inside each other. Eight rules deep need half of it, and what is passed on must be serialisable:
a message that is not would fail the workflow's task for ever."""
MAX_GROUP_BYTES = 256 * 1024
"""As JSON. The group goes along when the job continues as new, in one message (of 2 MB at most) with the ledger."""


class BackupJobRequest(Request):
    """What a person gives to BackupJob: `{"vm_group": "nightly"}`, or a whole group in place of the name."""

    vm_group: str | dict[str, Any]
    """A name, or an inline group: the keys of `[[vm_groups]]`, checked when the job is opened."""

    @field_validator("vm_group", mode="before")
    @classmethod
    def _name_or_group(cls, value: object) -> object:
        if isinstance(value, str) and 1 <= len(value) <= MAX_GROUP_NAME_CHARS:
            return value
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            return _bounded(value)
        msg = (
            f"must be the name of a VM group (1 to {MAX_GROUP_NAME_CHARS} characters), or a group as an object "
            "with the keys of [[vm_groups]]"
        )
        raise ValueError(msg)

    @property
    def inline_group(self) -> dict[str, Any] | None:
        """The group when it was given whole."""
        return self.vm_group if isinstance(self.vm_group, dict) else None

    @property
    def group_name(self) -> str:
        """The group's name, `inline` for one that was given whole without a (usable) name."""
        name = self.vm_group.get("name") if isinstance(self.vm_group, dict) else self.vm_group
        usable = isinstance(name, str) and 1 <= len(name) <= MAX_GROUP_NAME_CHARS
        return name if isinstance(name, str) and usable else INLINE_GROUP_NAME


def _bounded(group: dict[str, Any]) -> dict[str, Any]:
    if _is_deeper(group, MAX_DEPTH):
        msg = f"is nested more than {MAX_DEPTH} deep: no VM group is"
        raise ValueError(msg)
    if len(json.dumps(group)) > MAX_GROUP_BYTES:
        msg = f"is larger than {MAX_GROUP_BYTES // 1024} KiB: put the group into the configuration and give its name"
        raise ValueError(msg)
    return group


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects stand more than `limit` deep inside each other; itself without recursion."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)
