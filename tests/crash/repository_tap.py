"""Objects of the repository as they appear, seen from outside by the folder they appear in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.crash.folder_watch import FolderWatch
from tests.crash.sightings import Sighting, Sightings

_TEMPORARY = ".new-"


def object_kind(relative: Path) -> str:
    """What an object is, by its place: `packs`, `sessions`, `sessions.disk`, `jobs.plan`, `manifests`, …."""
    parts = relative.parts
    if parts[0] in ("sessions", "jobs") and len(parts) > 3:
        return f"{parts[0]}.{re.sub(r'-[0-9]+$', '', parts[2])}"
    return parts[0]


class RepositoryTap:
    """Before an object: its temporary file has appeared; after it: it stands under its name."""

    def __init__(self, root: Path, sightings: Sightings, node_of_run: Callable[[str], str]) -> None:
        """`node_of_run` tells the access node of the BackupVm with that first run id; empty when nobody knows."""
        self._root = root
        self._sightings = sightings
        self._node_of_run = node_of_run
        self.watch = FolderWatch(root, self._told)

    def _told(self, path: Path) -> None:
        relative = path.relative_to(self._root)
        if len(relative.parts) < 2:
            return
        is_session = relative.parts[0] == "sessions"
        self._sightings.see(
            Sighting(
                "repository",
                object_kind(relative),
                "before" if path.name.startswith(_TEMPORARY) else "after",
                node=self._node_of_run(relative.parts[1].partition(".")[0]) if is_session else "",
            )
        )
