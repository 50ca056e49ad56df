"""Running a program as a user who owns nothing: so that a worker cannot peek at the datastores' directory.

Only root can do that. Where the interpreter or the project lies below a directory that others may not enter (a
home directory, say), the program gets a mount namespace of its own, in which that directory holds only the way
to them. Nothing changes outside of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

UNUSED_UID = 64999
"""No Debian user has it: 60000 to 64999 are not handed out by default."""


def can_change_user() -> bool:
    """True when this process is root and util-linux's `unshare` and `setpriv` are there."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("unshare", "setpriv", "mount"))


def as_user(uid: int, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as `uid`, without groups and capabilities, under the same pid."""
    project = Path(__file__).resolve().parent.parent
    needed = [project, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    lines = ["set -eu", *_open_ways(needed)]
    switch = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--"]
    lines.append("exec " + shlex.join([*switch, *command]))
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", "\n".join(lines)]


def _open_ways(needed: Sequence[Path]) -> list[str]:
    """Shell lines that make each needed path reachable: a closed directory is replaced by one with only the way."""
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        for ancestor in reversed(path.parents):
            if not ancestor.stat().st_mode & 0o001:
                closed.setdefault(ancestor, []).append(path)
                break
    lines: list[str] = []
    for ancestor, paths in closed.items():
        hidden = "/proc/self/fd/9"
        lines += [
            f"exec 9<{shlex.quote(str(ancestor))}",
            f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(ancestor))}",
        ]
        for path in dict.fromkeys(paths):
            place = shlex.quote(str(path))
            inside = shlex.quote(str(path.relative_to(ancestor)))
            lines += [f"mkdir -p {place}", f"mount --no-canonicalize --bind {hidden}/{inside} {place}"]
        lines.append("exec 9<&-")
    return lines
