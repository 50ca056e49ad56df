"""The lab's hosts and vCenter as processes: a server under test that can do everything, and fail by plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from lab.esx.client import HostClient
from lab.site import Site, build
from lab.vcenter.admin import VCenterAdmin
from safehaul.messages.inventory import VmRecord
from safehaul.vsphere.client import VCenter
from tests.contract.vcenter_server import (
    ADMINISTRATOR,
    PASSWORD,
    USER,
    Ability,
    Connections,
    site,
    vm_named,
)


class LabServer:
    """The lab, in two processes; `close` ends both."""

    abilities: Final = frozenset(Ability)
    never_set: Final = frozenset[str]()

    def __init__(self, state_dir: Path, described: Site) -> None:
        self._state_dir = state_dir
        self._connections = Connections("lab")
        build(described, state_dir / "esx")
        self._hosts, ready = _start("lab.esx", "--state", str(state_dir / "esx"))
        self.hosts = HostClient(ready["url"])
        self.call_log = state_dir / "calls.jsonl"
        self._port = 0
        self.start()

    @property
    def datastores(self) -> Path:
        """Directory of the datastores' files, as the hosts see them."""
        return self._state_dir / "esx" / "datastores"

    def start(self) -> None:
        """Starts vCenter, or starts it again on the same port."""
        state = self._state_dir / "vcenter"
        self._vcenter, ready = _start(
            "lab.vcenter",
            *("--esx", self.hosts.url, "--state", str(state)),
            *("--port", str(self._port), "--log", str(self.call_log)),
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
        self._connections.close()
        self._vcenter.terminate()
        _reap(self._vcenter)
        self._hosts.terminate()
        _reap(self._hosts)
        self.hosts.close()

    def connect(self, *, user: str = USER, password: str = PASSWORD, **options: Any) -> VCenter:
        """A session; by default it trusts the certificate's thumbprint."""
        trust = {} if {"ca_file", "insecure"} & set(options) else {"thumbprint_sha256": self.thumbprint}
        return self._connections.open(self.url, user, password, trust | options)

    def administrator(self) -> VCenter:
        return self.connect(user=ADMINISTRATOR)

    def vm(self, name: str) -> VmRecord:
        return vm_named(self, name)

    def calls(self) -> Counter[str]:
        return Counter(self.admin.call_counts())


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


@contextmanager
def lab_server(state_dir: Path, described: Site | None = None) -> Iterator[LabServer]:
    """The lab with `site()` or another data centre, running."""
    server = LabServer(state_dir, described or site())
    try:
        yield server
    finally:
        server.close()
