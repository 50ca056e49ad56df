"""The data centre on which cases are played, one after the other, with everything that watches it from outside."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from lab.datacentre import DataCentre
from lab.esx.api import Settings
from lab.esx.client import HostClient, HostFault
from lab.filers import RcloneFilers
from lab.other_user import UNUSED_UID, can_change_user
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    RESTORE_PRIVILEGES,
    DatastoreSpec,
    DiskSpec,
    Site,
    UserSpec,
    VmSpec,
)
from lab.vcenter.admin import VCenterAdmin
from safehaul.messages.marker import SnapshotMarker
from tests.crash.filer_tap import FilerTap
from tests.crash.histories import HistoryFollower
from tests.crash.history_tap import HistoryTap
from tests.crash.repository_tap import RepositoryTap
from tests.crash.sightings import Sightings

MIB = 2**20
VMS = ("one", "two")
DISK_BYTES = 32 * MIB
_TASK_WITHIN_S = 60.0
# Between two jobs it touches each MiB of its disk: every backup has new chunks, and thus packs, all over the disk.
_GUEST_RATE = 60


def crash_site() -> Site:
    """Two VMs with guests that write, on one NFS datastore; vCenter's tasks take no time of their own."""
    return Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=[
            VmSpec(
                name=name,
                datastore="nfs-gold",
                disks=[DiskSpec(size_bytes=DISK_BYTES)],
                guest_rate=_GUEST_RATE,
            )
            for name in VMS
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            ),
        ],
        settings=Settings(record_frozen=True, default_duration_s=0.0),
    )


class Stage:
    """A context manager: started and warmed up, ended and removed."""

    def __init__(self, product: Path | None = None) -> None:
        """`product`: a directory whose safehaul, workflows, activities and workers are run in place of this one's."""
        self.directory = Path(tempfile.mkdtemp(prefix="safehaul-crash-"))
        self.directory.chmod(0o755)
        uid = UNUSED_UID if can_change_user() else None
        self.lab = DataCentre(
            self.directory,
            crash_site(),
            worker_uid=uid,
            ui=False,
            gate=True,
            streams=1,
            nodes=("node-1", "node-2"),
        )
        if product is not None:
            self.lab.extra_environment["PYTHONPATH"] = str(product)
        self.sightings = Sightings()
        self.follower = HistoryFollower(self.lab.temporal.address, HistoryTap(self.sightings).told)
        self.jobs = 0
        self._foreign: list[str] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self.lab.start()
            self.lab.start_workers()
            self.filer_tap = FilerTap(self.lab.gate, self.sightings)
            repository = RepositoryTap(self.lab.repository, self.sightings, self._node_of_run)
            self._open.enter_context(repository.watch)
            self.follower.start()
            self._open.callback(self.follower.stop)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started and remove what it wrote."""
        self.sightings.release()
        try:
            self._open.close()
        finally:
            self.lab.stop()
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def hosts(self) -> HostClient:
        """The truth about every VM."""
        return self.lab.hosts

    @property
    def datastores(self) -> Path:
        """Where the datastores' files are."""
        return self.lab.state / "datastores"

    @property
    def filers(self) -> RcloneFilers:
        """Both sides of the filer."""
        assert isinstance(self.lab.filers, RcloneFilers)
        return self.lab.filers

    def admin(self) -> VCenterAdmin:
        """Orders to the vCenter of this moment."""
        return VCenterAdmin(str(self.lab.vcenter["url"]), self.lab.directory / "vcenter")

    def next_job(self) -> str:
        """A workflow id that no job has had here."""
        self.jobs += 1
        return f"crash-{self.jobs}"

    @contextlib.contextmanager
    def foreign_snapshots(self) -> Iterator[None]:
        """While it is open each VM holds snapshots of others: a user's, another product's, another safehaul's."""
        other = SnapshotMarker(
            installation=str(uuid.uuid4()),
            namespace=str(uuid.uuid4()),
            workflow_id="nightly/0a1b2c3d/x",
            first_run_id=str(uuid.uuid4()),
            vc_guid="x",
        )
        self._take("one", "before the upgrade", "taken by Ada, keep")
        self._take(
            "one", f"safehaul {uuid.uuid4()}", "a snapshot of another product whose name looks like ours"
        )
        self._take("two", f"safehaul {other.first_run_id}", other.text())
        try:
            yield
        finally:
            for moref in reversed(self._foreign):
                self._remove(moref)
            self._foreign.clear()

    def _take(self, vm: str, name: str, description: str) -> None:
        started = self.hosts.create_snapshot(self.hosts.vm(vm).moref, name, description)
        moref = self.hosts.wait_task(started.task, _TASK_WITHIN_S).result
        assert moref is not None
        self._foreign.append(moref)

    def _remove(self, moref: str) -> None:
        # One that is gone although nobody may touch it has been told as a violation.
        with contextlib.suppress(HostFault):
            self.hosts.wait_task(self.hosts.remove_snapshot(moref).task, _TASK_WITHIN_S)

    def _node_of_run(self, run_id: str) -> str:
        for history in self.follower.histories():
            if history.run_id == run_id and isinstance(history.first_input, dict):
                return str(history.first_input.get("node", ""))
        return ""
