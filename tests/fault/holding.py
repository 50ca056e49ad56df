"""A data centre in which each VM of a job can be held at a step of its own (tests.fault.held_worker)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.esx.api import Settings
from lab.processes import LabProcess
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    DatastoreSpec,
    DiskSpec,
    Site,
    SnapshotSpec,
    UserSpec,
    VmSpec,
)
from tests.e2e.site import data_centre

NODE = "node-1"
VMS = 16
"""At least as many as a VM's backup has steps."""


def many_small_vms() -> Site:
    """VMs with a disk of 4 MiB each, every other one with a user's snapshot."""
    vms = [
        VmSpec(
            name=f"vm-{number:02}",
            datastore="nfs-gold",
            disks=[DiskSpec(size_bytes=4 * 2**20)],
            snapshots=[SnapshotSpec(name="mine", description="keep", writes_after=5)] if number % 2 else [],
            writes_before=50,
        )
        for number in range(VMS)
    ]
    return Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=vms,
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=BACKUP_PRIVILEGES),
        ],
        settings=Settings(default_duration_s=0.0),
    )


class Holds:
    """Holds VMs at steps, by name, and lets them go."""

    def __init__(self, lab: DataCentre) -> None:
        self._lab = lab
        self.directory = lab.directory / "holds"
        self.directory.mkdir()
        self.directory.chmod(0o777)
        self.guids = {vm.name: vm.instance_uuid for vm in lab.hosts.state().vms}

    def start_workers(self) -> None:
        """The three kinds of workers, with steps that can be held."""
        for role in (("commserve",), ("media-agent", MEDIA_AGENT), ("access-node", NODE)):
            name = ".".join(role)
            worker = LabProcess(
                name,
                [sys.executable, "-m", "tests.fault.held_worker", str(self.directory), *role],
                self._lab.directory / "logs" / f"{name}.log",
                environment=self._lab.environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
                uid=self._lab.worker_uid,
                directory=self._lab.home,
            )
            self._lab.workers[name] = worker
            worker.wait_until(worker.says_ready)

    @contextmanager
    def at(self, steps: Mapping[str, str], phase: str) -> Iterator[None]:
        """VM → step: each VM is held there, `before` or `after` it; all are let go at the end."""
        for vm, step in steps.items():
            self.hold(step, phase, self.guids[vm])
        try:
            yield
        finally:
            self.release()

    def hold(self, step: str, phase: str, key: str) -> None:
        """Hold a step of the workflow with that key: see held_worker."""
        (self.directory / f"{step}.{phase}.{key}").touch()

    def all_held(self, seconds: float = 120.0) -> None:
        """Wait until every VM stands at its step."""
        wanted = {path.name for path in self.directory.iterdir() if not path.name.endswith(".held")}
        deadline = time.monotonic() + seconds
        while missing := [name for name in wanted if not (self.directory / f"{name}.held").exists()]:
            assert time.monotonic() < deadline, f"never came to {missing}"
            time.sleep(0.05)

    def release(self) -> None:
        """Let all VMs go on."""
        for path in self.directory.iterdir():
            path.unlink()


@contextmanager
def holding_data_centre() -> Iterator[tuple[DataCentre, Holds]]:
    """The data centre, with workers that run."""
    with data_centre(many_small_vms(), nodes=(NODE,), streams=VMS) as lab:
        holds = Holds(lab)
        holds.start_workers()
        yield lab, holds
