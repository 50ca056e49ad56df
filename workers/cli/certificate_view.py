"""How a command shows that a snapshot is gone: the certificate of its removal."""

from __future__ import annotations

from pydantic import ValidationError

from safehaul.media.manifest import BackupIndex
from safehaul.messages.certificate import RemovalCertificate
from safehaul.messages.inventory import SnapshotNode
from workers.cli.output import safe, say

MAX_NAMED = 20


def show_removal(index: BackupIndex) -> None:
    """The certificate in a backup's index; of one that an earlier version wrote, what it recorded of the removal."""
    if not index.certificate:
        removal = index.removal
        say(
            f"snapshot removed: from {safe(str(removal.get('started_at', '?')))} to "
            f"{safe(str(removal.get('finished_at', '?')))}, consolidation needed afterwards: "
            f"{safe(str(removal.get('consolidation_needed_after', '?')))}; no certificate: it is of an earlier version"
        )
        return
    try:
        made = RemovalCertificate.model_validate(index.certificate)
    except ValidationError as error:
        # Nothing of ours writes such a one.
        problem = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors())
        say(f"the certificate of the snapshot's removal is NOT VALID: {safe(problem)}")
        return
    for line in certificate_lines(made):
        say(line)


def certificate_lines(made: RemovalCertificate) -> list[str]:
    """A certificate for people; foreign text made harmless."""
    debt = " (as before the backup)" if made.consolidation_needed_before else ""
    asked = f"asked for {safe(made.asked_at)}, " if made.asked_at else ""
    needed = f"{'yes' if made.consolidation_needed_after else 'no'}{debt}"
    which = f"{safe(', '.join(made.morefs))} ({safe(made.name)})"
    return [
        f"certificate: snapshot {which} is gone from the VM and the datastore",
        f"  {asked}made {safe(made.created_at)}",
        f"  removed from {safe(made.started_at)} to {safe(made.finished_at)}",
        f"  snapshots before: {_tree(made.tree_before)}; after: {_tree(made.tree_after)}",
        f"  consolidation needed: {needed}; consolidated by us: {made.consolidations} times",
        f"  files that went with it: {_files(made.snapshot_files)}; files left: {_files(made.files_left)}",
    ]


def _tree(nodes: list[SnapshotNode]) -> str:
    return _first([f"{node.moref} ({node.name})" for node in nodes])


def _files(paths: list[str]) -> str:
    return _first([path.rpartition("/")[2] for path in paths])


def _first(items: list[str]) -> str:
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return safe(", ".join(items[:MAX_NAMED]) + more) if items else "none"
