"""Does a filer show at once what others do to the files that it serves? The lab's hosts write behind its back."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nfs_rs

from lab.processes import LabError


def check_coherence(client: nfs_rs.Client, inside: str, directory: Path, within_s: float) -> None:
    """Write, grow, overwrite, replace and delete a file in `directory`, which `client` knows as `inside`.

    Raises LabError unless the client sees each change within that time (0: at once), also through a file that it
    holds open.
    """
    probe = Path(tempfile.mkdtemp(prefix=".coherence-", dir=directory))
    try:
        _check(client, f"{inside}/{probe.name}".lstrip("/"), probe, within_s)
    finally:
        shutil.rmtree(probe)


def _check(client: nfs_rs.Client, place: str, probe: Path, within_s: float) -> None:
    file, name = probe / "file", f"{place}/file"

    def wait(what: str, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + within_s
        while not seen():
            if time.monotonic() >= deadline:
                raise LabError(f"an NFS client does not see a file that was {what}")
            time.sleep(0.1)

    def same() -> bool:
        if not client.exists(name):
            return False
        with client.open(name, "rb") as fresh:
            wanted = file.read_bytes()
            return fresh.read_at(0, 4096) == wanted and client.stat(name).size == len(wanted)

    file.write_bytes(b"first")
    wait("made", same)
    with client.open(name, "rb") as held:
        with file.open("ab") as append:
            append.write(b" and more")
        wait("grown", same)
        wait("grown while it was open", lambda: held.read_at(0, 100) == file.read_bytes())
        with file.open("r+b") as change:
            change.write(b"FIRST")
        wait("overwritten while it was open", lambda: held.read_at(0, 100) == file.read_bytes())
    wait("overwritten in place", same)
    (probe / "new").write_bytes(b"another")
    (probe / "new").replace(file)
    wait("replaced", same)
    file.unlink()
    wait("deleted", lambda: not client.exists(name) and not client.listdir(place))
