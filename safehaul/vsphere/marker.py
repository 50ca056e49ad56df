"""The marker in a snapshot's description, as functions: built for a new snapshot, parsed from anybody's.

Its form is `safehaul.messages.marker.SnapshotMarker`, which workflows use too; here stand vCenter's bounds.
"""

from __future__ import annotations

from typing import Final

from safehaul.errors import InvalidInputError
from safehaul.messages.marker import SnapshotMarker

# Ours is under 500 characters in practice; vCenter keeps some thousand. A longer one is not ours.
MAX_CHARS: Final = 4096


def marker(installation: str, namespace_id: str, workflow_id: str, first_run_id: str, vc_guid: str) -> str:
    """The description of a snapshot that these own: one line, the same for the same arguments.

    Raises:
        InvalidInputError: a field is empty, or the whole is longer than `MAX_CHARS`.
    """
    fields = SnapshotMarker(
        installation=installation,
        namespace=namespace_id,
        workflow_id=workflow_id,
        first_run_id=first_run_id,
        vc_guid=vc_guid,
    )
    empty = [name for name, value in fields if not value]
    if empty:
        raise InvalidInputError(
            f"a snapshot's marker needs {', '.join(empty)}: without it the owner is not known"
        )
    text = fields.text()
    if len(text) > MAX_CHARS:
        raise InvalidInputError(f"the marker of workflow {workflow_id[:80]!r} has {len(text)} characters")
    return text


def parse_marker(description: str) -> SnapshotMarker | None:
    """The marker in a description; None when the snapshot is not provably ours (foreign, damaged, incomplete)."""
    if len(description) > MAX_CHARS:
        return None
    found = SnapshotMarker.parse(description)
    return found if found is not None and all(value for _, value in found) else None
