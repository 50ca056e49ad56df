"""vcsim, the vCenter simulator of govmomi's authors: a server under test that none of us wrote.

Its launcher (vcsim/main.go) is built once for each version of Debian's govmomi and Go, below build/. The data
centre is made through vSphere's API, from the description that the lab builds its own from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pyVmomi import vim

from lab.site import DatastoreSpec, Site, SnapshotSpec, VmSpec
from lab.vcenter.certificate import ensure_certificate
from safehaul.vsphere import tasks
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import escape
from safehaul.vsphere.properties import Properties, walk
from tests.contract.vcenter_server import PASSWORD, USER, Ability, Connections, site

GOVMOMI: Final = "/usr/share/gocode/src/github.com/vmware/govmomi/simulator"
_ROOT: Final = Path(__file__).parents[2]
_SOURCE: Final = Path(__file__).parent / "vcsim" / "main.go"
_BUILD_TIMEOUT_S: Final = 600
_REQUEST: Final = re.compile(r"^Request: .*?<soapenv:Body>\s*<(\w+)", re.MULTILINE | re.DOTALL)
_Device: Any = vim.vm.device
_CONTROLLER_KEY: Final = 1000


class VcsimServer:
    """One vcsim in a process of its own; `close` ends it. Nothing of it survives."""

    abilities: Final = frozenset[Ability]()
    never_set: Final = frozenset(
        {
            "HostSystem.config.fileSystemVolume.mountInfo",
            "VirtualMachine.config.changeTrackingEnabled",
            "VirtualMachine.config.changeVersion",
            "VirtualMachine.runtime.consolidationNeeded",
        }
    )

    def __init__(self, state_dir: Path, described: Site) -> None:
        self._connections = Connections("vcsim")
        self._trace = state_dir / "calls"
        certificate = ensure_certificate(state_dir)
        self.thumbprint, self.ca_file = certificate.thumbprint, certificate.certificate_path
        self._log = (state_dir / "log").open("w")
        self._process = subprocess.Popen(
            [
                str(launcher()),
                *("-certificate", str(certificate.certificate_path), "-key", str(certificate.key_path)),
                *("-user", USER, "-calls", str(self._trace)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=dict(os.environ) | {"VCSIM_PASSWORD": PASSWORD},
        )
        try:
            self.url = self._ready(state_dir / "log")
            _Builder(self.connect(), described, state_dir).build()
        except BaseException:
            self.close()
            raise

    def _ready(self, log: Path) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vcsim did not start: {log.read_text()}")
        return str(json.loads(line)["url"])

    def close(self) -> None:
        self._connections.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()  # the end of its standard input ends it
        self._process.wait(timeout=20)
        self._log.close()

    def connect(self, *, user: str = USER, password: str = PASSWORD, **options: Any) -> VCenter:
        """A session; by default it trusts the certificate's thumbprint."""
        trust = {} if {"ca_file", "insecure"} & set(options) else {"thumbprint_sha256": self.thumbprint}
        return self._connections.open(self.url, user, password, trust | options)

    def administrator(self) -> VCenter:
        """It has one account, which may do everything."""
        return self.connect()

    def calls(self) -> Counter[str]:
        return Counter(_REQUEST.findall(self._trace.read_text(errors="replace")))


@contextmanager
def vcsim_server(state_dir: Path) -> Iterator[VcsimServer]:
    """Vcsim with `site()`, running."""
    server = VcsimServer(state_dir, site())
    try:
        yield server
    finally:
        server.close()


def launcher() -> Path:
    """The program, built when this version of it is not there yet: about half a minute."""
    versions = subprocess.run(
        ["dpkg-query", "--show", "golang-go", "golang-github-vmware-govmomi-dev"],
        check=True,
        capture_output=True,
    ).stdout
    key = hashlib.sha256(_SOURCE.read_bytes() + versions).hexdigest()[:16]
    directory = _ROOT / "build" / "vcsim"
    program = directory / f"vcsim-{key}"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            built = Path(scratch) / "vcsim"
            subprocess.run(
                ["go", "build", "-o", str(built), str(_SOURCE)],
                check=True,
                timeout=_BUILD_TIMEOUT_S,
                env=dict(os.environ)
                | {
                    "GO111MODULE": "off",  # Debian's packages are plain directories below GOPATH
                    "GOPATH": "/usr/share/gocode",
                    "GOCACHE": str(directory / "cache"),
                    "GOFLAGS": "",
                    "CGO_ENABLED": "0",  # no C compiler is needed
                },
            )
            built.rename(program)  # another run of the tests may build it at the same time
    return program


class _Builder:
    """Makes a data centre of `Site` in an empty one of vcsim, through vSphere's API."""

    def __init__(self, vcenter: VCenter, described: Site, state_dir: Path) -> None:
        self._vcenter = vcenter
        self._site = described
        self._state_dir = state_dir
        self._folders: dict[str, str] = {}
        self._pools: dict[str, str] = {}
        self._attributes: dict[str, int] = {}

    def build(self) -> None:
        centre = self._only(vim.Datacenter, ["vmFolder"])
        cluster = self._only(vim.ClusterComputeResource, ["resourcePool"])
        host = self._only(vim.HostSystem, ["configManager"])
        self._folders[""] = moref(centre.get("vmFolder"))
        self._pools[""] = moref(cluster.get("resourcePool"))
        self._rename(vim.Datacenter, centre.moref, self._site.datacenter)
        self._rename(vim.ClusterComputeResource, cluster.moref, self._site.cluster)
        for datastore in self._site.datastores:
            self._mount(moref(host.get("configManager").datastoreSystem), datastore)
        for path in self._site.folders:
            self._folder(path)
        for described in self._site.vms:
            if described.connection_state == "connected":
                self._make(described)

    def _only(self, kind: Any, paths: list[str]) -> Properties:
        (found,) = self._vcenter.read(lambda session: list(walk(session, {kind: paths})))
        return found

    def _run(self, call: Callable[[Session], Any]) -> Any:
        return tasks.wait(self._vcenter, moref(self._vcenter.mutate(call)), timeout_s=20)

    def _rename(self, kind: Any, entity: str, name: str) -> None:
        self._run(lambda session: session.managed(kind, entity).Rename_Task(name))

    def _mount(self, system: str, datastore: DatastoreSpec) -> None:
        # Its datastores are directories, named by their last component.
        directory = self._state_dir / datastore.name
        directory.mkdir()

        def mount(session: Session) -> None:
            host = session.managed(vim.host.DatastoreSystem, system)
            if datastore.type == "VMFS":
                host.CreateLocalDatastore(datastore.name, str(directory))
                return
            host.CreateNasDatastore(
                vim.host.NasVolume.Specification(
                    remoteHost=datastore.remote_host,
                    remotePath=datastore.remote_path,
                    localPath=str(directory),
                    accessMode="readWrite",
                    type=datastore.type,
                    securityType=datastore.security_type if datastore.type == "NFS41" else None,
                )
            )

        self._vcenter.mutate(mount)

    def _folder(self, path: str) -> str:
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            parent = self._folder(above)
            self._folders[path] = moref(
                self._vcenter.mutate(lambda session: session.managed(vim.Folder, parent).CreateFolder(name))
            )
        return self._folders[path]

    def _pool(self, path: str) -> str:
        if path not in self._pools:
            above, _, name = path.rpartition("/")
            parent = self._pool(above)
            shares = vim.SharesInfo(level="normal", shares=4000)
            allocation = vim.ResourceAllocationInfo(
                reservation=0, expandableReservation=True, limit=-1, shares=shares
            )
            spec = vim.ResourceConfigSpec(cpuAllocation=allocation, memoryAllocation=allocation)
            self._pools[path] = moref(
                self._vcenter.mutate(
                    lambda session: session.managed(vim.ResourcePool, parent).CreateResourcePool(name, spec)
                )
            )
        return self._pools[path]

    def _attribute(self, vm: str, name: str, value: str) -> None:
        if name not in self._attributes:
            self._attributes[name] = self._vcenter.mutate(
                lambda session: session.content.customFieldsManager.AddCustomFieldDef(
                    name, vim.VirtualMachine
                )
            ).key
        self._vcenter.mutate(
            lambda session: session.content.customFieldsManager.SetField(
                session.managed(vim.VirtualMachine, vm), self._attributes[name], value
            )
        )

    def _make(self, described: VmSpec) -> None:
        folder, pool = self._folder(described.folder), self._pool(described.pool)
        spec = vim.vm.ConfigSpec(
            name=escape(described.name),
            guestId=described.guest_id,
            version=described.hardware_version,
            annotation=described.annotation,
            instanceUuid=described.instance_uuid,
            files=vim.vm.FileInfo(vmPathName=f"[{described.datastore}]"),
            numCPUs=1,
            memoryMB=64,
            deviceChange=_devices(described),
        )
        vm = moref(
            self._run(
                lambda session: session.managed(vim.Folder, folder).CreateVM_Task(
                    spec, session.managed(vim.ResourcePool, pool)
                )
            )
        )
        if described.power_state == "poweredOn":
            self._run(lambda session: session.managed(vim.VirtualMachine, vm).PowerOnVM_Task())
        for snapshot in described.snapshots:
            self._snapshot(vm, snapshot)
        for name, value in described.attributes.items():
            self._attribute(vm, name, value)
        if described.template:
            self._vcenter.mutate(lambda session: session.managed(vim.VirtualMachine, vm).MarkAsTemplate())

    def _snapshot(self, vm: str, described: SnapshotSpec) -> None:
        self._run(
            lambda session: session.managed(vim.VirtualMachine, vm).CreateSnapshot_Task(
                name=described.name, description=described.description, memory=False, quiesce=False
            )
        )


def _devices(described: VmSpec) -> list[Any]:
    controller = _Device.ParaVirtualSCSIController(key=_CONTROLLER_KEY, busNumber=0, sharedBus="noSharing")
    network = _Device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    added = [
        _Device.VirtualDeviceSpec(operation="add", device=controller),
        _Device.VirtualDeviceSpec(operation="add", device=_Device.VirtualVmxnet3(key=4000, backing=network)),
    ]
    for number, disk in enumerate(described.disks):
        backing = _Device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{disk.datastore or described.datastore}]", diskMode=disk.mode
        )
        device = _Device.VirtualDisk(
            key=2000 + number,
            controllerKey=_CONTROLLER_KEY,
            unitNumber=number,
            capacityInKB=disk.size_bytes // 1024,
            backing=backing,
        )
        added.append(_Device.VirtualDeviceSpec(operation="add", fileOperation="create", device=device))
    return added
