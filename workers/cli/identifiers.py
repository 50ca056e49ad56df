"""How a person names a backup."""

from __future__ import annotations

from safehaul.errors import InvalidInputError


def parse_backup(text: str) -> tuple[str, str]:
    """VC.GUID and backup id of `VC.GUID/TIME-ID`. Raises InvalidInputError."""
    vc_guid, slash, backup_id = text.rpartition("/")
    if not (vc_guid and slash and backup_id) or "/" in vc_guid:
        raise InvalidInputError(
            f"backup {text[:200]!a} is not of the form VC.GUID/TIME-ID; see `safehaul backups list`"
        )
    return vc_guid, backup_id
