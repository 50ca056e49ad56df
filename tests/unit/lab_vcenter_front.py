"""Starts the front as a process of its own and connects the real pyVmomi client to it."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from lab.vcenter.admin import VCenterAdmin

PC = vmodl.query.PropertyCollector


class Front:
    """A running front; `close` ends it."""

    def __init__(self, hosts_url: str, state_dir: Path, *options: str) -> None:
        self._hosts_url = hosts_url
        self._options = options
        self.state_dir = state_dir
        self.log_path = state_dir / "calls.jsonl"
        self.port = 0
        self._stubs: list[Any] = []
        self.start()

    def start(self) -> None:
        """Start (again, on the same port)."""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lab.vcenter",
                f"--esx={self._hosts_url}",
                f"--port={self.port}",
                f"--state={self.state_dir}",
                f"--log={self.log_path}",
                *self._options,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self.port = int(urlsplit(self.ready["url"]).port or 0)
        self.admin = VCenterAdmin(self.ready["url"], self.state_dir)

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self._reap()

    def close(self) -> None:
        """End it, and every client connection: pyVmomi leaves them to the garbage collector otherwise."""
        for each in self._stubs:
            each.DropConnections()
        self.process.terminate()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ready["certificate"])

    def smart_connect(self) -> Any:
        """Connect as most scripts do, with the version probe."""
        si = SmartConnect(
            host="127.0.0.1", port=self.port, user="backup", pwd="right", sslContext=self.context()
        )
        self._stubs.append(si._stub)
        return si

    def anonymous(self) -> Any:
        """A connection without a login."""
        stub = SoapStubAdapter(
            "127.0.0.1", self.port, version="vim.version.v8_0_3_0", sslContext=self.context()
        )
        self._stubs.append(stub)
        return vim.ServiceInstance("ServiceInstance", stub)

    def connect(self, user: str = "backup", password: str = "right") -> Any:
        """A connection that has logged in; closed with the front."""
        si = self.anonymous()
        si.RetrieveContent().sessionManager.Login(user, password, None)
        return si

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


def vm_view(si: Any, kind: Any = vim.VirtualMachine) -> Any:
    content = si.RetrieveContent()
    return content.viewManager.CreateContainerView(content.rootFolder, [kind], True)


def view_filter(view: Any, kind: Any, paths: list[str]) -> Any:
    """Skip the view itself, traverse to what it lists: what every client asks."""
    traversal = PC.TraversalSpec(name="view", type=type(view), path="view", skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[traversal])],
        propSet=[PC.PropertySpec(type=kind, pathSet=paths)],
    )


def object_filter(reference: Any, paths: list[str]) -> Any:
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=reference)],
        propSet=[PC.PropertySpec(type=type(reference), pathSet=paths)],
    )


def retrieve(si: Any, spec: Any, page: int | None = None) -> list[Any]:
    """All pages."""
    collector = si.RetrieveContent().propertyCollector
    result = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=page))
    objects = []
    while result is not None:
        objects += result.objects
        if not result.token:
            break
        result = collector.ContinueRetrievePropertiesEx(result.token)
    return objects


def values(content: Any) -> dict[str, Any]:
    return {each.name: each.val for each in content.propSet}


def in_background(work: Any) -> tuple[threading.Thread, list[Any]]:
    """Run `work` in a thread; the list gets its result or its exception."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome
