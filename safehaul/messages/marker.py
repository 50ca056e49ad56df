"""The marker in a snapshot's description: proves whose snapshot it is."""

from __future__ import annotations

import json

from pydantic import ValidationError

from safehaul.messages.base import Message

PREFIX = "safehaul-snapshot "


class SnapshotMarker(Message):
    """Who made a snapshot, for which VM, in which workflow."""

    installation: str
    namespace: str
    """UUID of the Temporal namespace."""
    workflow_id: str
    first_run_id: str
    vc_guid: str

    def text(self) -> str:
        """The description: one line, the same text for the same marker."""
        return PREFIX + json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, description: str) -> SnapshotMarker | None:
        """The marker in a description, or None when the snapshot is not provably ours."""
        if not description.startswith(PREFIX):
            return None
        try:
            return cls.model_validate_json(description[len(PREFIX) :])
        except ValidationError:
            return None
