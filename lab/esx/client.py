"""The hosts' client: one method for each call, synchronous, over HTTP on loopback.

    host = HostClient("http://127.0.0.1:8801")
    started = host.create_snapshot("vm-101", "nightly", quiesce=False)
    task = host.wait_task(started.task, timeout_s=30)          # raises HostFault when the task failed
    for vm in host.state().vms: ...

A client may be shared by threads; connections are kept and reused. A refusal is a `HostFault` with the
vSphere fault's name in `.fault.type`; a host that does not answer is `HostUnreachableError`.
"""

from __future__ import annotations

import http.client
import json
import select
import time
import weakref
from collections import deque
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from lab.esx.api import (
    DirectoryEntry,
    Event,
    Fault,
    FaultRule,
    FrozenDigest,
    FrozenRecord,
    Layout,
    ReconfigSpec,
    Settings,
    State,
    Task,
    TaskStarted,
    User,
    Violation,
    Vm,
    WaitAnswer,
)

T = TypeVar("T")


class HostFault(Exception):  # noqa: N818 - "fault" is the vSphere API's word for it
    """The hosts refused a call, or a task that was waited for failed. `fault.type` is vSphere's name."""

    def __init__(self, fault: Fault, task: str | None = None) -> None:
        super().__init__(f"{fault.type}: {fault.message}")
        self.fault = fault
        self.task = task


class HostUnreachableError(Exception):
    """The hosts' process does not answer."""


class HostClient:
    """See the module. `timeout_s` bounds each call (a `wait` adds its own time)."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            message = f"{url!r} is not http://ADDRESS:PORT"
            raise ValueError(message)
        self.url = url
        self._address = (parts.hostname, parts.port)
        self._timeout_s = timeout_s
        # At most one for each call that was under way at the same time.
        self._idle: deque[http.client.HTTPConnection] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def state(self, since: int = 0) -> State:
        """The whole state; with `since` only the VMs and tasks that changed after that version."""
        return self._call(State, "state", since=since)

    def wait(self, version: int, timeout_s: float = 30.0) -> WaitAnswer:
        """Wait for a state newer than `version`, at most `timeout_s` (60 or less): then it answers anyway."""
        return self._call(WaitAnswer, "wait", extra_s=timeout_s, version=version, timeout_s=timeout_s)

    def vm(self, vm: str) -> Vm:
        """One VM, by moref or by name. Faults: ManagedObjectNotFound."""
        return self._call(Vm, "vm", vm=vm)

    def task(self, task: str) -> Task:
        """One task. Faults: ManagedObjectNotFound."""
        return self._call(Task, "task", task=task)

    def wait_task(self, task: str, timeout_s: float = 30.0) -> Task:
        """Wait for a task's end. Raises `HostFault` when it failed, `TimeoutError` when it still runs."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            found = self._call(
                Task, "wait_task", extra_s=30, task=task, timeout_s=max(0.0, min(left_s, 20.0))
            )
            if found.state == "error":
                raise HostFault(found.error or Fault(type="SystemError", message="no reason given"), task)
            if found.state == "success":
                return found
            if left_s <= 0:
                message = (
                    f"{task} ({found.operation} of {found.entity}) still {found.state} after {timeout_s} s"
                )
                raise TimeoutError(message)

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events with an id above `after`, oldest first."""
        return self._call(list[Event], "events", after=after, limit=limit)

    def layout(self, vm: str) -> Layout:
        """The VM's layoutEx with file sizes as they are now."""
        return self._call(Layout, "layout", vm=vm)

    def list_directory(self, path: str) -> list[DirectoryEntry]:
        """Files in a datastore directory, `[ds] dir/`. Faults: FileNotFound, InvalidDatastorePath."""
        return self._call(list[DirectoryEntry], "list_directory", path=path)

    def create_snapshot(
        self,
        vm: str,
        name: str,
        description: str = "",
        *,
        memory: bool = False,
        quiesce: bool = False,
        user: str = "root",
    ) -> TaskStarted:
        """Start a snapshot; the task's result is its moref. Faults at once: InvalidState, TaskInProgress,
        SnapshotFault, NotSupported, InvalidName, ManagedObjectNotFound.
        """
        return self._call(
            TaskStarted,
            "create_snapshot",
            vm=vm,
            name=name,
            description=description,
            memory=memory,
            quiesce=quiesce,
            user=user,
        )

    def remove_snapshot(
        self, snapshot: str, *, remove_children: bool = False, consolidate: bool = True, user: str = "root"
    ) -> TaskStarted:
        """Start the removal of a snapshot (moref): out of the tree, then its disks consolidate."""
        return self._call(
            TaskStarted,
            "remove_snapshot",
            snapshot=snapshot,
            remove_children=remove_children,
            consolidate=consolidate,
            user=user,
        )

    def consolidate(self, vm: str, *, user: str = "root") -> TaskStarted:
        """Start the consolidation of every link that no snapshot needs."""
        return self._call(TaskStarted, "consolidate", vm=vm, user=user)

    def reconfigure(self, vm: str, spec: ReconfigSpec, *, user: str = "root") -> TaskStarted:
        """Start a change of the VM's configuration."""
        return self._call(TaskStarted, "reconfigure", vm=vm, spec=spec.model_dump(mode="json"), user=user)

    def power_on(self, vm: str, *, user: str = "root") -> TaskStarted:
        """Start the VM and its guest."""
        return self._call(TaskStarted, "power_on", vm=vm, user=user)

    def power_off(self, vm: str, *, user: str = "root") -> TaskStarted:
        """Stop the VM and its guest."""
        return self._call(TaskStarted, "power_off", vm=vm, user=user)

    def register(
        self,
        path: str,
        *,
        name: str | None = None,
        folder: str | None = None,
        resource_pool: str | None = None,
        host: str | None = None,
        as_template: bool = False,
        user: str = "root",
    ) -> TaskStarted:
        """Start the registration of the `.vmx` at datastore path `path`; the result is the VM's moref.

        The task may fail: AlreadyExists, DuplicateName, FileNotFound, InvalidDatastorePath, InvalidVmConfig.
        """
        return self._call(
            TaskStarted,
            "register",
            path=path,
            name=name,
            folder=folder,
            resource_pool=resource_pool,
            host=host,
            as_template=as_template,
            user=user,
        )

    def relocate(self, vm: str, datastore: str, *, user: str = "root") -> TaskStarted:
        """Start a Storage vMotion to a datastore (moref or name): the files move, old handles go stale."""
        return self._call(TaskStarted, "relocate", vm=vm, datastore=datastore, user=user)

    def destroy(self, vm: str, *, user: str = "root") -> TaskStarted:
        """Start the deletion of a powered-off VM with its files."""
        return self._call(TaskStarted, "destroy", vm=vm, user=user)

    def unregister(self, vm: str, *, user: str = "root") -> None:
        """Take a powered-off VM out of the inventory; its files stay."""
        self._call(None, "unregister", vm=vm, user=user)

    def cancel_task(self, task: str) -> None:
        """Ask a task to stop. Faults: NotSupported when it cannot any more, InvalidState when it is over."""
        self._call(None, "cancel_task", task=task)

    def login(self, user: str, password: str) -> User:
        """Check a password. Faults: InvalidLogin."""
        return self._call(User, "login", user=user, password=password)

    def set_user(self, name: str, privileges: list[str], password: str | None = None) -> None:
        """Make or change a user; without `password` the old one stays."""
        self._call(None, "set_user", name=name, privileges=privileges, password=password)

    def add_fault(self, rule: FaultRule) -> None:
        """Plan a fault."""
        self._call(None, "add_fault", rule=rule.model_dump(mode="json"))

    def clear_faults(self) -> None:
        """Forget all planned faults."""
        self._call(None, "clear_faults")

    def settings(self) -> Settings:
        """How long tasks take, and what is recorded."""
        return self._call(Settings, "settings")

    def set_settings(self, settings: Settings) -> None:
        """Replace the settings."""
        self._call(None, "set_settings", settings=settings.model_dump(mode="json"))

    def set_guest_rate(self, vm: str, rate: int) -> None:
        """Let the VM's guest write `rate` blocks a second (0 stops it)."""
        self._call(None, "set_guest_rate", vm=vm, rate=rate)

    def check_frozen(self) -> list[Violation]:
        """Compare each frozen file's size and time with those at its freeze; tells all violations so far."""
        return self._call(list[Violation], "check_frozen")

    def frozen_digest(self, snapshot: str, disk_key: int) -> FrozenDigest:
        """SHA-256 of a disk at a snapshot, read through its chain now (or as recorded, if it is gone)."""
        return self._call(FrozenDigest, "frozen_digest", extra_s=120, snapshot=snapshot, disk_key=disk_key)

    def frozen_records(self, vm: str | None = None) -> list[FrozenRecord]:
        """What every snapshot froze, those that are gone too, oldest first (the last 1,000)."""
        return self._call(list[FrozenRecord], "frozen_records", vm=vm)

    def read_frozen(self, snapshot: str, disk_key: int, path: str) -> FrozenDigest:
        """Write the disk at the snapshot's point in time as a raw image to a local `path`."""
        return self._call(
            FrozenDigest, "read_frozen", extra_s=120, snapshot=snapshot, disk_key=disk_key, path=path
        )

    def _call(self, answer: type[T] | None, call: str, /, *, extra_s: float = 0.0, **arguments: object) -> T:
        body = json.dumps(arguments).encode()
        status, raw = self._exchange(call, body, self._timeout_s + extra_s)
        try:
            payload = json.loads(raw)
        except ValueError as error:
            message = f"{self.url} answered {call} with HTTP {status} and no JSON"
            raise HostUnreachableError(message) from error
        if "fault" in payload:
            raise HostFault(Fault.model_validate(payload["fault"]))
        return TypeAdapter(answer).validate_python(payload["result"]) if answer else payload["result"]

    def _exchange(self, name: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        connection = self._take()
        connection.timeout = timeout_s
        try:
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            connection.request("POST", f"/call/{name}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            # "Never arrived" and "answer lost" look the same from here, so no call is sent twice.
            connection.close()
            message = f"the hosts at {self.url} did not answer {name}: {error!r}"
            raise HostUnreachableError(message) from error
        self._idle.append(connection)
        return found

    def _take(self) -> http.client.HTTPConnection:
        """An idle connection that the hosts have not closed meanwhile, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return http.client.HTTPConnection(*self._address)

    def close(self) -> None:
        """Close the idle connections; the client can still be used."""
        _close_all(self._idle)


def _close_all(idle: deque[http.client.HTTPConnection]) -> None:
    while idle:
        idle.pop().close()
