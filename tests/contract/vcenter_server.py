"""The servers that the vCenter contract is tried on. Today: the lab's hosts and vCenter, as processes.

Another server is added with a class that has the members of `Server`, and a line in `SERVERS`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr

from lab.esx.api import Settings
from lab.esx.client import HostClient
from lab.site import BACKUP_PRIVILEGES, DatastoreSpec, DiskSpec, Site, SnapshotSpec, UserSpec, VmSpec, build
from lab.vcenter.admin import VCenterAdmin
from safehaul.messages.inventory import VmRecord
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.inventory import discover

USER = "backup@vsphere.local"
PASSWORD = "right-Secret-1"
MIB = 1 << 20


class Server(Protocol):
    """A running vCenter, real or simulated."""

    def connect(self) -> VCenter:
        """A session that trusts the server; closed with it."""

    def vm(self, name: str) -> VmRecord:
        """A VM by name."""

    def plain_vm(self) -> str:
        """Name of a VM with one ordinary disk and no snapshot."""


class LabServer:
    """The lab, in two processes; `close` ends both."""

    def __init__(self, state_dir: Path, site: Site) -> None:
        self._state_dir = state_dir
        self._sessions: list[VCenter] = []
        build(site, state_dir / "esx")
        self._hosts, ready = _start("lab.esx", "--state", str(state_dir / "esx"))
        self.hosts = HostClient(ready["url"])
        self._port = 0
        self.start()

    def start(self) -> None:
        """Starts vCenter, or starts it again on the same port."""
        state = self._state_dir / "vcenter"
        self._vcenter, ready = _start(
            "lab.vcenter", "--esx", self.hosts.url, "--state", str(state), "--port", str(self._port)
        )
        self.url, self.thumbprint = ready["url"], ready["thumbprint"]
        self.ca_file = Path(ready["certificate"])
        self._port = urlsplit(self.url).port or 0
        self.admin = VCenterAdmin(self.url, state)

    def kill(self) -> None:
        """Ends vCenter as a crash does; the hosts go on."""
        self._vcenter.kill()
        _reap(self._vcenter)

    def forget_certificate(self) -> None:
        """The next start makes another certificate."""
        for name in ("vcenter.pem", "vcenter.key"):
            (self._state_dir / "vcenter" / name).unlink()

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._vcenter.terminate()
        _reap(self._vcenter)
        self._hosts.terminate()
        _reap(self._hosts)
        self.hosts.close()

    def connect(self, *, user: str = USER, password: str = PASSWORD, **trust: Any) -> VCenter:
        """A session; by default it trusts the certificate's thumbprint."""
        vcenter = VCenter(
            "lab",
            url=self.url,
            user=user,
            password=SecretStr(password),
            timeout_s=20,
            **(trust or {"thumbprint_sha256": self.thumbprint}),
        )
        self._sessions.append(vcenter)
        return vcenter

    def vm(self, name: str) -> VmRecord:
        return next(each for each in discover(self.connect()).records if each.name == name)

    def plain_vm(self) -> str:
        return "plain"


def _start(module: str, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _reap(process)
        raise RuntimeError(f"{module} did not start")
    return process, json.loads(line)


def _reap(process: subprocess.Popen[str]) -> None:
    process.wait(timeout=20)
    assert process.stdout is not None
    process.stdout.close()


def site() -> Site:
    """A small data centre with one VM for each thing that the contract says."""
    disk = DiskSpec(size_bytes=MIB, content="pattern")
    return Site(
        folders=["prod/web", "prod/a%2fb"],
        distributed_networks=["dv-prod"],
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="silver", type="NFS41", remote_path="/exports/silver"),
            DatastoreSpec(name="local", type="VMFS"),
        ],
        vms=[
            VmSpec(name="plain", datastore="gold", disks=[disk], guest_rate=50),
            VmSpec(name="web 100% / blue", folder="prod/web", datastore="gold", disks=[disk]),
            VmSpec(
                name="数据库",
                datastore="silver",
                disks=[disk, disk.model_copy(update={"mode": "independent_persistent"})],
                snapshots=[SnapshotSpec(name="before the upgrade", description="keep")],
            ),
            VmSpec(
                name="split", datastore="gold", disks=[disk, disk.model_copy(update={"datastore": "local"})]
            ),
            VmSpec(name="off", datastore="gold", power_state="poweredOff", disks=[disk]),
            VmSpec(name="golden", datastore="gold", power_state="poweredOff", template=True, disks=[disk]),
            VmSpec(name="lost", datastore="gold", connection_state="inaccessible", disks=[disk]),
            VmSpec(name="twin a", datastore="gold", instance_uuid="50000000-0000-4000-8000-000000000001"),
            VmSpec(name="twin b", datastore="gold", instance_uuid="50000000-0000-4000-8000-000000000001"),
        ],
        users=[
            UserSpec(name=USER, password=PASSWORD, privileges=BACKUP_PRIVILEGES),
            UserSpec(name="root@vsphere.local", password=PASSWORD, privileges=["*"]),
            UserSpec(
                name="reader",
                password=PASSWORD,
                privileges=["System.Read", "System.View", "System.Anonymous"],
            ),
        ],
        settings=Settings(default_duration_s=0.05),
    )


@contextmanager
def lab_server(state_dir: Path) -> Iterator[LabServer]:
    """The lab with `site()`, running."""
    server = LabServer(state_dir, site())
    try:
        yield server
    finally:
        server.close()


SERVERS: dict[str, Callable[[Path], Any]] = {"lab": lab_server}
