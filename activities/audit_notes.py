"""Entries of the audit log for what reads: a restore goes on when no entry can be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safehaul.errors import PermissionRefusedError, RepositoryFullError
from safehaul.media import audit
from safehaul.media.audit import Action
from safehaul.media.repository import Repository


def note_reading(repository: Repository, action: Action, backup: str, details: Mapping[str, Any]) -> str:
    """Write that a backup is read. Returns why that could not be written, or nothing.

    A repository that is full, or that this identity may only read, is no reason to refuse a restore. Raises whatever
    else the store raises: it is not to be reached, and so is the backup.
    """
    try:
        audit.append(repository, action, backup, details)
    except (PermissionRefusedError, RepositoryFullError) as error:
        return f"the audit log has no entry of this: {error}"
    return ""
