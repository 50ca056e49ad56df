"""A double of the simulated hosts, for the front's own tests: any number of VMs without a byte on disk.

It speaks the hosts' HTTP protocol (`lab.esx.client`) for what the tests need: state by version, waits, logins,
events, and snapshot tasks that take a given time. Everything about files is the real hosts' affair.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from lab.esx.api import (
    Backing,
    Cluster,
    Controller,
    Datacenter,
    Datastore,
    Disk,
    Event,
    Fault,
    Folder,
    Hardware,
    Host,
    Layout,
    LayoutFile,
    Network,
    Nic,
    Operation,
    Snapshot,
    State,
    Task,
    User,
    Vm,
)

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
PASSWORDS = {"backup": "right", "reader": "right", "nobody": "right"}


class HostsDouble:
    """Serves on a free port of 127.0.0.1 until `close`."""

    def __init__(self, vm_count: int = 3, task_s: float = 0.05) -> None:
        self.lock = threading.Condition()
        self.state = make_state(vm_count)
        self.task_s = task_s
        self.events: list[Event] = []
        self.drop_next = False
        self.refuse_next: Fault | None = None
        self.calls: list[str] = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = self.path.rsplit("/", 1)[-1]
                double.calls.append(name)
                try:
                    answer = {"result": getattr(double, f"call_{name}")(**arguments)}
                except RefusedError as refusal:
                    answer = {"fault": refusal.fault.model_dump(mode="json")}
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def changed(self) -> int:
        """Count a change; hold the lock."""
        self.state.version += 1
        self.lock.notify_all()
        return self.state.version

    def vm(self, moref: str) -> Vm:
        return next(each for each in self.state.vms if each.moref == moref)

    def replace_vm(self, moref: str, **fields: Any) -> None:
        """Change one VM, as the hosts do: a new object with a new version."""
        with self.lock:
            version = self.changed()
            index = next(i for i, each in enumerate(self.state.vms) if each.moref == moref)
            self.state.vms[index] = self.state.vms[index].model_copy(update={**fields, "changed": version})

    def call_state(self, since: int) -> Any:
        with self.lock:
            newer = self.state.model_copy(
                update={
                    "vms": [each for each in self.state.vms if each.changed > since],
                    "tasks": [each for each in self.state.tasks if each.changed > since],
                    "vm_morefs": [each.moref for each in self.state.vms],
                    "task_ids": [each.id for each in self.state.tasks],
                }
            )
            return newer.model_dump(mode="json")

    def call_wait(self, version: int, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        with self.lock:
            while self.state.version <= version and time.monotonic() < deadline:
                self.lock.wait(deadline - time.monotonic())
            return {"version": self.state.version, "last_event": self.state.last_event}

    def call_login(self, user: str, password: str) -> Any:
        if PASSWORDS.get(user) != password:
            raise RefusedError(Fault(type="InvalidLogin", message="wrong"))
        return next(each for each in self.state.users if each.name == user).model_dump(mode="json")

    def call_events(self, after: int, limit: int) -> Any:
        return [each.model_dump(mode="json") for each in self.events if each.id > after][:limit]

    def call_create_snapshot(self, vm: str, name: str, description: str, user: str, **_: Any) -> Any:
        def effect() -> str:
            found = self.vm(vm)
            made = make_snapshot(found, name, description)
            self.replace_vm(vm, snapshots=[*found.snapshots, made], current_snapshot=made.moref)
            return made.moref

        return self._start(Operation.CREATE_SNAPSHOT, vm, user, effect)

    def call_remove_snapshot(self, snapshot: str, user: str, **_: Any) -> Any:
        owner = next(vm for vm in self.state.vms if any(each.moref == snapshot for each in vm.snapshots))

        def effect() -> None:
            found = self.vm(owner.moref)
            gone = next(each for each in found.snapshots if each.moref == snapshot)
            left = [
                each.model_copy(update={"parent": gone.parent}) if each.parent == snapshot else each
                for each in found.snapshots
                if each.moref != snapshot
            ]
            self.replace_vm(owner.moref, snapshots=left, current_snapshot=gone.parent)

        return self._start(Operation.REMOVE_SNAPSHOT, owner.moref, user, effect)

    def call_cancel_task(self, task: str) -> None:
        self.update_task(
            task, state="error", cancelled=True, error=Fault(type="RequestCanceled", message="cancelled")
        )

    def update_task(self, key: str, **fields: Any) -> None:
        with self.lock:
            version = self.changed()
            index = next(i for i, each in enumerate(self.state.tasks) if each.id == key)
            self.state.tasks[index] = self.state.tasks[index].model_copy(
                update={**fields, "changed": version}
            )

    def _start(self, operation: Operation, vm: str, user: str, effect: Any) -> Any:
        if self.refuse_next is not None:
            fault, self.refuse_next = self.refuse_next, None
            raise RefusedError(fault)
        with self.lock:
            version = self.changed()
            key = f"task-{len(self.state.tasks) + 1}"
            self.state.tasks.append(
                Task(
                    id=key,
                    operation=operation,
                    entity=vm,
                    entity_name=self.vm(vm).name,
                    user=user,
                    state="running",
                    progress=10,
                    queue_time=dt.datetime.now(dt.UTC),
                    changed=version,
                )
            )

        def finish() -> None:
            if next(each for each in self.state.tasks if each.id == key).state == "running":
                result = effect()
                self.update_task(key, state="success", progress=100, result=result)

        timer = threading.Timer(self.task_s, finish)
        timer.daemon = True
        timer.start()
        drop, self.drop_next = self.drop_next, False
        return {"task": key, "drop_connection": drop}


class RefusedError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.type)
        self.fault = fault


def make_snapshot(vm: Vm, name: str, description: str) -> Snapshot:
    return Snapshot(
        moref=f"snapshot-{uuid.uuid4().hex[:8]}",
        number=len(vm.snapshots) + 1,
        name=name,
        description=description,
        create_time=NOW,
        parent=vm.current_snapshot,
        power_state=vm.power_state,
        hardware=vm.hardware,
        data_path=f"{vm.directory}{vm.name}-Snapshot1.vmsn",
    )


def make_vm(number: int) -> Vm:
    name = f"vm {number:04d}"
    home = f"[nfs-gold] {name}/"
    disk = Disk(
        key=2000,
        label="Hard disk 1",
        controller_key=1000,
        unit_number=0,
        capacity_bytes=5 << 30,
        datastore="nfs-gold",
        uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"disk-{number}")),
        chain=[
            Backing(
                path=f"{home}{name}-000001.vmdk",
                extent_path=f"{home}{name}-000001-delta.vmdk",
                kind="cowd",
                content_id="00000002",
                parent_content_id="00000001",
            ),
            Backing(
                path=f"{home}{name}.vmdk",
                extent_path=f"{home}{name}-flat.vmdk",
                kind="flat",
                content_id="00000001",
            ),
        ],
    )
    return Vm(
        moref=f"vm-{1000 + number}",
        name=name,
        parent="group-v3",
        host="host-10",
        resource_pool="resgroup-9",
        datastore="nfs-gold",
        directory=home,
        vmx_path=f"{home}{name}.vmx",
        bios_uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"bios-{number}")),
        instance_uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"instance-{number}")),
        power_state="poweredOn",
        change_version="2026-03-01T12:00:00Z",
        hardware=Hardware(
            controllers=[Controller(key=1000, bus_number=0)],
            disks=[disk],
            nics=[
                Nic(
                    key=4000, label="Network adapter 1", network="network-20", mac_address="00:50:56:00:00:01"
                )
            ],
        ),
        layout=Layout(files=[LayoutFile(key=0, path=f"{home}{name}.vmx", type="config", size_bytes=2000)]),
        create_time=NOW,
        changed=1,
    )


def make_state(vm_count: int) -> State:
    stores: list[tuple[str, str, Literal["NFS", "NFS41", "VMFS"], list[str]]] = [
        ("datastore-11", "nfs-gold", "NFS", ["filer.lab"]),
        ("datastore-12", "nfs41-silver", "NFS41", ["filer-a.lab", "filer-b.lab"]),
        ("datastore-13", "local-vmfs", "VMFS", []),
    ]
    vms = [make_vm(number) for number in range(vm_count)]
    return State(
        version=1,
        site="double",
        instance_uuid="7a0f3d0e-2a53-4a67-a0b1-cfd1d7a3e1b5",
        last_event=0,
        datacenter=Datacenter(
            moref="datacenter-2",
            name="Lab",
            parent="group-d1",
            vm_folder="group-v3",
            host_folder="group-h4",
            datastore_folder="group-s5",
            network_folder="group-n6",
        ),
        clusters=[
            Cluster(
                moref="domain-c8",
                name="cluster",
                parent="group-h4",
                resource_pool="resgroup-9",
                hosts=["host-10"],
            )
        ],
        hosts=[Host(moref="host-10", name="esx1.lab", cluster="domain-c8")],
        networks=[Network(moref="network-20", name="VM Network")],
        folders=[
            Folder(moref="group-d1", name="Datacenters", parent=None, kind="datacenter"),
            Folder(moref="group-v3", name="vm", parent="datacenter-2", kind="vm"),
            Folder(moref="group-v7", name="50%/off", parent="group-v3", kind="vm"),
            Folder(moref="group-h4", name="host", parent="datacenter-2", kind="host"),
            Folder(moref="group-s5", name="datastore", parent="datacenter-2", kind="datastore"),
            Folder(moref="group-n6", name="network", parent="datacenter-2", kind="network"),
        ],
        datastores=[
            Datastore(
                moref=moref,
                name=name,
                type=kind,
                remote_host=hosts[0] if hosts else "",
                remote_hosts=hosts if kind == "NFS41" else [],
                remote_path=f"/vol/{name}" if hosts else "",
                uuid=f"0000-{moref}",
                directory=f"/nowhere/{name}",
                capacity_bytes=8 << 40,
                free_bytes=5 << 40,
            )
            for moref, name, kind, hosts in stores
        ],
        users=[
            User(name="backup", privileges=["*"]),
            User(name="reader", privileges=["System.Read"]),
            User(name="nobody", privileges=[]),
        ],
        vms=vms,
        tasks=[],
        vm_morefs=[each.moref for each in vms],
        task_ids=[],
        fault_rules=[],
        violations=[],
    )
