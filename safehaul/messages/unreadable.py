"""What stands for a workflow's or signal's input that cannot even be read, so that the workflow can refuse it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unreadable:
    """An input that is no JSON, is nested too deep to be read, or comes in an unknown encoding. It never travels on."""

    reason: str
    """For a person; never the input itself."""
