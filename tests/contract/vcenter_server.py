"""What the vCenter contract asks of a server under test, and what each of them can do.

docs/vcenter-contract.md says why a server lacks an ability; a test holds that table and these sets together.
Another server is added with a class that has the members of `Server`, and a line in `tests.contract.servers`.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import SecretStr
from pyVmomi import vim

from lab.esx.api import Settings
from lab.site import BACKUP_PRIVILEGES, DatastoreSpec, DiskSpec, Site, SnapshotSpec, UserSpec, VmSpec
from safehaul.messages.inventory import VmRecord
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.inventory import discover
from safehaul.vsphere.properties import read_object

USER = "backup@vsphere.local"
ADMINISTRATOR = "root@vsphere.local"
PASSWORD = "right-Secret-1"
PLAIN_VM = "plain"
"""Name of a VM with one ordinary disk and no snapshot."""
MIB = 1 << 20


class Ability(StrEnum):
    """What vCenter does and a simulator may not."""

    PAGING = "paging"
    """Answers in pages of `maxObjects`."""
    UNREADABLE_VMS = "unreadable VMs"
    """Has VMs that are inaccessible, orphaned, …."""
    HOST_MOUNTS = "host mounts"
    """Tells how a host mounts a NAS volume, with its security type."""
    FILE_CONTENTS = "file contents"
    """A disk's files have the disk's size."""
    FILE_LAYOUT = "file layout"
    """`layoutEx` stays true when one of several snapshots goes, and so do the files of the others."""
    REDO_LOGS = "redo logs"
    """A snapshot freezes the disks, sends writes to new files, and is consolidated when it goes."""
    TEMPLATE_RULES = "template rules"
    """Refuses a snapshot of a template."""
    NEW_NAME = "new name"
    """Registers a .vmx under a name that its files do not have."""
    SEARCH_ALL = "search all"
    """Finds every VM with an instanceUuid, and not one of them."""
    REGISTRATION_EVENT = "registration event"
    """Tells a registration as VmRegisteredEvent."""


class Server(Protocol):
    """A running vCenter, real or simulated, with the data centre that `site` describes."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can do."""

    @property
    def never_set(self) -> frozenset[str]:
        """Properties that we ask for and that it leaves unset where vCenter sets them: `Type.path`."""

    url: str
    thumbprint: str
    """Of its certificate: 64 hexadecimal digits."""
    ca_file: Path

    def connect(self, *, user: str = USER, password: str = PASSWORD, **options: Any) -> VCenter:
        """A session, closed with the server; by default it trusts the certificate's thumbprint."""

    def administrator(self) -> VCenter:
        """A session of an account that may do everything."""

    def calls(self) -> Counter[str]:
        """How often each method was called since the server's start, refused calls included."""


def sessions(administrator: VCenter) -> list[Any]:
    """The live sessions (`vim.UserSession`), the administrator's own among them."""
    return administrator.read(lambda session: list(_of_sessions(session, "sessionList") or []))


def end_other_sessions(administrator: VCenter) -> None:
    """Ends every session but the administrator's, as vCenter itself does after their idle time."""

    def terminate(session: Session) -> None:
        own = _of_sessions(session, "currentSession").key
        others = [each.key for each in sessions(administrator) if each.key != own]
        session.content.sessionManager.TerminateSession(others)

    administrator.mutate(terminate)


def _of_sessions(session: Session, path: str) -> Any:
    manager = session.content.sessionManager
    return read_object(session, vim.SessionManager, moref(manager), [path]).get(path)


def vm_named(server: Server, name: str) -> VmRecord:
    """A VM of the data centre as discovery tells it."""
    with server.connect() as vcenter:
        return next(each for each in discover(vcenter).records if each.name == name)


def needs(*abilities: Ability) -> pytest.MarkDecorator:
    """The test runs on the servers that have all of these."""
    return pytest.mark.needs(*abilities)


def site() -> Site:
    """A small data centre with one VM for each thing that the contract says."""
    disk = DiskSpec(size_bytes=MIB, content="pattern")
    return Site(
        folders=["prod/web", "prod/a%2fb"],
        distributed_networks=["dv-prod"],
        pools=["Gold/Web"],
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="silver", type="NFS41", remote_path="/exports/silver"),
            DatastoreSpec(name="local", type="VMFS"),
        ],
        vms=[
            VmSpec(name=PLAIN_VM, datastore="gold", disks=[disk], guest_rate=50),
            VmSpec(
                name="web 100% / blue",
                folder="prod/web",
                datastore="gold",
                pool="Gold/Web",
                disks=[disk],
                annotation="blue",
                attributes={"Owner": "team-web"},
            ),
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
            UserSpec(name=ADMINISTRATOR, password=PASSWORD, privileges=["*"]),
            UserSpec(
                name="reader",
                password=PASSWORD,
                privileges=["System.Read", "System.View", "System.Anonymous"],
            ),
        ],
        settings=Settings(default_duration_s=0.05),
    )


class Connections:
    """The sessions that a server's `connect` has opened, to be closed with it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._opened: list[VCenter] = []

    def open(self, url: str, user: str, password: str, options: dict[str, Any]) -> VCenter:
        vcenter = VCenter(
            self._name,
            url=url,
            user=user,
            password=SecretStr(password),
            **({"timeout_s": 20} | options),
        )
        self._opened.append(vcenter)
        return vcenter

    def close(self) -> None:
        for vcenter in self._opened:
            vcenter.close()
