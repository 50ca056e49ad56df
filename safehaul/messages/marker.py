"""The marker in a snapshot's description: proves whose snapshot it is."""

from __future__ import annotations

import json
from typing import Annotated, Final

from pydantic import Field, ValidationError

from safehaul.messages.base import Message

PREFIX: Final = "safehaul-snapshot "
# Ours is under 500 characters in practice; vCenter keeps some thousand. A longer one is not ours.
MAX_CHARS: Final = 4096

# Without one of them nobody could tell the owner, so a marker with an empty field is none.
_Owner = Annotated[str, Field(min_length=1)]


class SnapshotMarker(Message):
    """Who made a snapshot, for which VM, in which workflow."""

    installation: _Owner
    namespace: _Owner
    """UUID of the Temporal namespace."""
    workflow_id: _Owner
    first_run_id: _Owner
    vc_guid: _Owner

    @property
    def snapshot_name(self) -> str:
        """The snapshot's name, which its marker decides."""
        return f"safehaul {self.first_run_id}"

    def text(self) -> str:
        """The description: one line, the same text for the same marker."""
        return PREFIX + json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, description: str) -> SnapshotMarker | None:
        """The marker in a description; None when the snapshot is not provably ours (foreign, cut, incomplete)."""
        if not description.startswith(PREFIX) or len(description) > MAX_CHARS:
            return None
        try:
            return cls.model_validate_json(description[len(PREFIX) :])
        except ValidationError:
            return None


def removal_id(snapshot_name: str) -> str:
    """Id of the RemoveSnapshot workflow of a snapshot: there is one for each at most."""
    return f"remove-snapshot {snapshot_name}"
