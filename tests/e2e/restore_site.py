"""What the restores' end-to-end tests share: a data centre in which every readable VM has a backup."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.client import Client

from lab.datacentre import DataCentre
from lab.esx.api import Settings, Vm
from lab.esx.paths import split
from lab.other_user import as_user
from lab.processes import tool
from lab.proof import compare_disks, frozen_record
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    RESTORE_PRIVILEGES,
    DatastoreSpec,
    DiskSpec,
    Site,
    SnapshotSpec,
    UserSpec,
    VmSpec,
)
from tests.e2e.site import data_centre, run_job, vm_of

MIB = 2**20
ALL_PRIVILEGES = [*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]


def restore_site() -> Site:
    """A VM that is off, one that is on, one with a user's snapshot, one whose configuration cannot be read."""
    return Site(
        networks=["VM Network", "Isolated"],
        distributed_networks=["dv-prod"],
        datastores=[
            DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="local-vmfs", type="VMFS"),
        ],
        vms=[
            VmSpec(
                name="off",
                datastore="nfs-gold",
                power_state="poweredOff",
                disks=[
                    DiskSpec(size_bytes=24 * MIB + 512, content="random"),
                    DiskSpec(size_bytes=32 * MIB, content="random"),
                ],
            ),
            VmSpec(name="on", datastore="nfs-gold", disks=[DiskSpec(size_bytes=16 * MIB)], guest_rate=50),
            VmSpec(
                name="kept",
                datastore="nfs-gold",
                power_state="poweredOff",
                disks=[DiskSpec(size_bytes=8 * MIB)],
                snapshots=[SnapshotSpec(name="mine", description="keep")],
            ),
            VmSpec(
                name="full",
                datastore="nfs-gold",
                power_state="poweredOff",
                disks=[DiskSpec(size_bytes=MIB, content="zero") for _ in range(15)],
            ),
            VmSpec(name="lost", datastore="nfs-gold", connection_state="inaccessible"),
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=ALL_PRIVILEGES),
        ],
        settings=Settings(record_frozen=True),
    )


@dataclass(frozen=True)
class Ran:
    """A data centre in which every readable VM has a backup."""

    lab: DataCentre
    report: dict[str, Any]

    def backup(self, name: str) -> str:
        vm = vm_of(self.report, name)
        return f"{vm['vc_guid']}/{vm['backup_id']}"

    def vm(self, name: str) -> Vm:
        return next(vm for vm in self.lab.hosts.state().vms if vm.name == name)

    def extents(self, vm: Vm) -> list[Path]:
        """The files that hold the VM's disks, in the order of their keys."""
        self.lab.filers.wait_settled()
        found = []
        for disk in sorted(vm.hardware.disks, key=lambda disk: disk.key):
            store, inner = split(disk.chain[0].extent_path)
            found.append(self.lab.state / "datastores" / store / inner)
        return found

    def differs(self, name: str, extents: list[Path]) -> list[str]:
        """How files differ from what the named VM's snapshot froze."""
        vm = vm_of(self.report, name)
        record = frozen_record(self.lab.hosts, self.vm(name).moref, vm["snapshot_moref"])
        keys = [disk["key"] for disk in vm["disks"]]
        return compare_disks(record, dict(zip(keys, extents, strict=True)))

    def files(self) -> dict[str, str]:
        """Every file of the NAS datastore that is no log, with its content's digest."""
        self.lab.filers.wait_settled()
        home = self.lab.state / "datastores" / "nfs-gold"
        found = {}
        for path in sorted(home.rglob("*")):
            if path.is_file() and path.suffix != ".log" and "on/" not in str(path.relative_to(home)):
                with path.open("rb") as file:
                    found[str(path.relative_to(home))] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `safehaul restore …` as a person would."""
        command = [tool("safehaul"), "restore", *arguments]
        uid = self.lab.worker_uid
        return subprocess.run(
            command if uid is None else as_user(uid, command),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
            cwd=self.lab.home,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.lab.home)} | self.lab.environment,
            stdin=subprocess.DEVNULL,
        )

    def restored(self, *arguments: str) -> dict[str, Any]:
        """The report of a restore that must succeed."""
        done = self.restore(*arguments, "--json")
        assert done.returncode == 0, (done.stdout, done.stderr)
        return dict(json.loads(done.stdout)["report"])


@contextmanager
def backed_up() -> Iterator[Ran]:
    """The data centre, after its first job."""
    with data_centre(restore_site(), nodes=("node-1",)) as lab:
        lab.start_workers()
        yield Ran(lab, run_job(lab, "nightly-1"))


def begin_writing(lab: DataCentre, kind: str, request: dict[str, Any], workflow_id: str) -> None:
    """Start a restore and return while it writes or compares a disk."""

    async def until_writing() -> None:
        client = await Client.connect(lab.temporal.address)
        handle = await client.start_workflow(kind, request, id=workflow_id, task_queue="commserve")
        for _ in range(3000):
            progress = await handle.query("progress")
            assert progress["status"] == "Running", progress
            if progress["disk"]:
                return
            await asyncio.sleep(0.01)

    asyncio.run(until_writing())
