"""Sums over backups as a person sees them: a line for each group, status or MediaAgent, then the whole."""

from __future__ import annotations

from collections.abc import Sequence

from safehaul.catalog.rows import BackupSum
from workers.cli.output import say, size, table

_KEYS = {"group": "vm_group", "status": "status", "media-agent": "media_agent"}


def show_sums(found: Sequence[BackupSum], by: str) -> None:
    """Print the sums by `group`, `status` or `media-agent`."""
    if not found:
        say("no backup was found: drop a filter, or see `safehaul backups list`")
        return
    lines: dict[str, list[BackupSum]] = {}
    for item in found:
        lines.setdefault(getattr(item, _KEYS[by]), []).append(item)
    rows = [_row(name, lines[name]) for name in sorted(lines)]
    if len(rows) > 1:
        rows.append(_row("in all", found))
    table([by, "backups>", "not completed>", "on disk>", "read>", "stored>", "oldest", "newest"], rows)


def _row(name: str, items: Sequence[BackupSum]) -> tuple[object, ...]:
    return (
        name,
        sum(item.backups for item in items),
        sum(item.backups for item in items if item.status != "Completed"),
        size(sum(item.capacity_bytes for item in items)),
        size(sum(item.read_bytes for item in items)),
        size(sum(item.stored_bytes for item in items)),
        min(item.oldest for item in items),
        max(item.newest for item in items),
    )
