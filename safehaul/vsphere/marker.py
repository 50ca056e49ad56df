"""The marker in a snapshot's description: the proof that the snapshot is ours, and whose.

One line: `safehaul:` and a JSON object with sorted keys. A person reads it in vSphere's snapshot window; the
sweeper parses it. Everything that is not exactly such a line belongs to somebody else.
"""

from __future__ import annotations

import json
from typing import Final

from pydantic import ConfigDict, Field, ValidationError

from safehaul.messages.base import Message

PREFIX: Final = "safehaul:"
VERSION: Final = 1
# vCenter keeps descriptions of a few thousand characters; ours is under 1,000 with every field at its bound.
MAX_LENGTH: Final = 2048


class Marker(Message):
    """Who owns a snapshot: everything needed to look the owner up, and nothing secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: int = Field(default=VERSION, ge=VERSION, le=VERSION)
    installation: str = Field(min_length=1, max_length=200)
    """Id of this installation of safehaul."""
    namespace_id: str = Field(min_length=1, max_length=100)
    """UUID of the Temporal namespace (its name may be used again, its UUID is not)."""
    workflow_id: str = Field(min_length=1, max_length=1000)
    first_run_id: str = Field(min_length=1, max_length=100)
    """`first_execution_run_id`: survives a reset, differs when a workflow id is used again."""
    vc_guid: str = Field(min_length=1, max_length=100)


def marker(installation: str, namespace_id: str, workflow_id: str, first_run_id: str, vc_guid: str) -> str:
    """The description of a snapshot that these own: one line, the same for the same arguments.

    Raises:
        pydantic.ValidationError: a field is empty or too long; a caller's mistake.
    """
    fields = Marker(
        installation=installation,
        namespace_id=namespace_id,
        workflow_id=workflow_id,
        first_run_id=first_run_id,
        vc_guid=vc_guid,
    )
    # ASCII only: vCenter hands descriptions back unchanged then, whatever its language settings.
    text = PREFIX + json.dumps(fields.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"marker of workflow {workflow_id!r} has {len(text)} characters, {MAX_LENGTH} are possible"
        )
    return text


def parse_marker(description: str) -> Marker | None:
    """The marker in a snapshot's description, or None when it is not ours to the letter."""
    if not description.startswith(PREFIX) or len(description) > MAX_LENGTH:
        return None
    try:
        return Marker.model_validate_json(description.removeprefix(PREFIX))
    except ValidationError:
        # Somebody typed our prefix, or a newer version wrote it: not provably ours, so not ours to touch.
        return None
