"""Where a disk is read from, both through the product's exports: a local file, or nfs-ganesha over NFS v3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.ganesha import Ganesha, GaneshaExport
from lab.processes import LabError
from safehaul.messages.exports import ExportDefinition

_PATH = "/bench"


def local_export(folder: Path) -> ExportDefinition:
    """The folder as if the kernel had mounted the export there."""
    return ExportDefinition(
        name="bench", remote_hosts=("127.0.0.1",), remote_path=_PATH, mounted_at=str(folder.resolve())
    )


class NfsSource:
    """A running ganesha that serves the images' folder."""

    def __init__(self, ganesha: Ganesha) -> None:
        self._ganesha = ganesha

    @property
    def export(self) -> ExportDefinition:
        """How the product's NFS client opens it."""
        return ExportDefinition(
            name="bench",
            remote_hosts=("127.0.0.1",),
            remote_path=_PATH,
            version="3",
            nfs_port=self._ganesha.port,
            mount_port=self._ganesha.mount_port,
            reserved_port=False,
        )

    def cpu_s(self) -> float:
        """CPU seconds that the filer has used since its start."""
        fields = Path(f"/proc/{self._ganesha.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def nfs_source(folder: Path, state: Path) -> Iterator[NfsSource | str]:
    """Serve the folder while the context is open; a text instead that says why that is not possible here."""
    ganesha = Ganesha([GaneshaExport(folder, _PATH, ("3",))], state=state, versions=("3",))
    try:
        ganesha.start()
    except LabError as error:
        yield str(error).splitlines()[0]
        return
    try:
        yield NfsSource(ganesha)
    finally:
        ganesha.stop()
