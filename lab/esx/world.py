"""The world: everything that is true in the lab, in memory and on disk, with a version that counts its
changes.

Objects in `vms` and `tasks` are never changed in place: `edit` works on a copy and swaps it in, so a reader
may keep what it got. Locks are taken in this order: a VM's `chain_lock`, its `lock`, the world's lock.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from lab.esx import paths
from lab.esx.api import (
    Cluster,
    Datacenter,
    Datastore,
    Event,
    FaultRule,
    Folder,
    FrozenRecord,
    Host,
    Labels,
    Model,
    Network,
    Settings,
    State,
    Task,
    User,
    Violation,
    Vm,
    WaitAnswer,
)
from lab.esx.layout import layout_of
from lab.esx.store import Store

MAX_EVENTS = 10_000
MAX_TASKS = 1_000
MAX_RECORDS = 1_000
_USAGE_AGE_S = 0.5


def now() -> datetime:
    """The lab's clock."""
    return datetime.now(UTC)


class UserRecord(User):
    """A user with the salted hash of his password."""

    password_hash: str = Field(repr=False)


class SiteRecord(Model):
    """What changes rarely."""

    name: str
    instance_uuid: str = Field(default_factory=lambda: str(uuid.uuid4()))
    datacenter: Datacenter
    other_datacenters: list[Datacenter] = Field(default_factory=list)
    labels: Labels = Field(default_factory=Labels)
    clusters: list[Cluster]
    hosts: list[Host]
    networks: list[Network]
    folders: list[Folder]
    datastores: list[Datastore]
    users: list[UserRecord] = Field(default_factory=list)
    fault_rules: list[FaultRule] = Field(default_factory=list)
    violations: list[Violation] = Field(default_factory=list)
    settings: Settings = Field(default_factory=Settings)


class _Counters(Model):
    version: int = 1
    last_moref: int = 100
    last_task: int = 0
    last_event: int = 0


class World:
    """See the module. `state_dir` holds `hosts.sqlite` and `datastores/NAME/`."""

    def __init__(self, state_dir: Path, site: SiteRecord | None = None) -> None:
        """Open the world of `state_dir`; with `site` make it. Errors: FileNotFoundError, FileExistsError."""
        database = state_dir / "hosts.sqlite"
        if site is None and not database.exists():
            message = f"{state_dir} holds no lab: build one first (lab.site.build)"
            raise FileNotFoundError(message)
        if site is not None and database.exists():
            message = f"{database} exists already"
            raise FileExistsError(message)
        self.state_dir = state_dir
        self.datastores_dir = state_dir / "datastores"
        self.store = Store(database)
        self.changes = threading.Condition(threading.RLock())
        self._usage: tuple[float, dict[str, int]] = (0.0, {})
        if site is not None:
            self._counters = _Counters()
            self.site = site
            self._put_site()
        self._load()

    def _load(self) -> None:
        site = self.store.get("site", "site")
        counters = self.store.get("counters", "counters")
        if site is None or counters is None:
            message = f"{self.state_dir}: the lab was not built to its end"
            raise FileNotFoundError(message)
        self.site = SiteRecord.model_validate_json(site)
        self._counters = _Counters.model_validate_json(counters)
        vms = [Vm.model_validate_json(body) for body in self.store.all("vm")]
        self.vms = {vm.moref: vm for vm in sorted(vms, key=lambda vm: int(vm.moref.split("-")[1]))}
        tasks = [Task.model_validate_json(body) for body in self.store.all("task")]
        self.tasks = {task.id: task for task in sorted(tasks, key=lambda task: int(task.id.split("-")[1]))}
        events = [Event.model_validate_json(body) for body in self.store.all("event")]
        self.events = deque(sorted(events, key=lambda event: event.id))
        records = [FrozenRecord.model_validate_json(body) for body in self.store.all("frozen")]
        self.frozen = {r.snapshot: r for r in sorted(records, key=lambda r: r.create_time)}

    # Reading.

    def local(self, path: str) -> Path:
        """The local file of a datastore path. Errors: HostError InvalidDatastorePath."""
        return paths.resolve(self.datastores_dir, path)

    def vm(self, vm: str) -> Vm:
        """A VM by moref or name. Errors: HostError ManagedObjectNotFound."""
        found = self.vms.get(vm)
        if found is None:
            found = next((other for other in list(self.vms.values()) if other.name == vm), None)
        if found is None:
            raise paths.HostError("ManagedObjectNotFound", f"no VM {vm!r}", obj=vm)
        return found

    def vm_of_snapshot(self, snapshot: str) -> Vm:
        """The VM that has a snapshot. Errors: HostError ManagedObjectNotFound."""
        for vm in list(self.vms.values()):
            if any(found.moref == snapshot for found in vm.snapshots):
                return vm
        raise paths.HostError("ManagedObjectNotFound", f"no snapshot {snapshot!r}", obj=snapshot)

    def task(self, task: str) -> Task:
        """A task. Errors: HostError ManagedObjectNotFound."""
        found = self.tasks.get(task)
        if found is None:
            raise paths.HostError("ManagedObjectNotFound", f"no task {task!r}", obj=task)
        return found

    def datastore(self, reference: str) -> Datastore:
        """A datastore by moref or name. Errors: HostError ManagedObjectNotFound."""
        for found in self.site.datastores:
            if reference in {found.moref, found.name}:
                return found
        raise paths.HostError("ManagedObjectNotFound", f"no datastore {reference!r}", obj=reference)

    def state(self, since: int = 0) -> State:
        """Everything, or what changed after version `since`."""
        used = self._used_bytes()
        with self.changes:
            site = self.site
            datastores = [
                ds.model_copy(update={"free_bytes": max(0, ds.capacity_bytes - used.get(ds.name, 0))})
                for ds in site.datastores
            ]
            return State(
                version=self._counters.version,
                site=site.name,
                instance_uuid=site.instance_uuid,
                last_event=self._counters.last_event,
                datacenter=site.datacenter,
                other_datacenters=site.other_datacenters,
                labels=site.labels,
                clusters=site.clusters,
                hosts=site.hosts,
                networks=site.networks,
                folders=site.folders,
                datastores=datastores,
                users=[User(name=user.name, privileges=user.privileges) for user in site.users],
                vms=[vm for vm in self.vms.values() if vm.changed > since],
                tasks=[task for task in self.tasks.values() if task.changed > since],
                vm_morefs=list(self.vms),
                task_ids=list(self.tasks),
                fault_rules=site.fault_rules,
                violations=site.violations,
            )

    def wait(self, version: int, timeout_s: float) -> WaitAnswer:
        """Wait for a state newer than `version`, at most `timeout_s`."""
        with self.changes:
            self.changes.wait_for(lambda: self._counters.version > version, timeout_s)
            return WaitAnswer(version=self._counters.version, last_event=self._counters.last_event)

    def free_bytes(self, datastore: str) -> int:
        """Capacity less what the files occupy, at most half a second old."""
        return self.datastore(datastore).capacity_bytes - self._used_bytes().get(datastore, 0)

    def _used_bytes(self) -> dict[str, int]:
        made, used = self._usage
        if time.monotonic() - made > _USAGE_AGE_S:
            used = {ds.name: _occupied_bytes(self.datastores_dir / ds.name) for ds in self.site.datastores}
            self._usage = (time.monotonic(), used)
        return used

    # Writing. All of it goes through here, so that every change is on disk, counted and announced.

    def next_moref(self, prefix: str) -> str:
        """A new object id."""
        with self.changes:
            self._counters.last_moref += 1
            self._put_counters()
            return f"{prefix}-{self._counters.last_moref}"

    def next_task_id(self) -> str:
        """A new task id."""
        with self.changes:
            self._counters.last_task += 1
            self._put_counters()
            return f"task-{self._counters.last_task}"

    def put_vm(self, vm: Vm) -> None:
        """Swap in a new or changed VM. Use `VmRuntime.edit` for a change."""
        vm.layout = layout_of(vm, self.local)
        with self._change() as version:
            vm.changed = version
            self.vms[vm.moref] = vm
            self.store.put("vm", vm.moref, vm.model_dump_json())

    def drop_vm(self, moref: str) -> None:
        """Forget a VM."""
        with self._change():
            self.vms.pop(moref, None)
            self.store.delete("vm", [moref])

    def put_guest_sequence(self, moref: str, sequence: int) -> None:
        """Remember how far a guest has come; not a change of the state."""
        with self.changes:
            self.store.put("guest", moref, str(sequence))

    def guest_sequence(self, moref: str) -> int:
        """How far a guest had come when it was remembered last."""
        with self.changes:
            return int(self.store.get("guest", moref) or "0")

    def put_task(self, task: Task) -> None:
        """Swap in a new or changed task; finished ones beyond 1,000 are forgotten, oldest first."""
        with self._change() as version:
            task.changed = version
            self.tasks[task.id] = task
            self.store.put("task", task.id, task.model_dump_json())
            if len(self.tasks) > MAX_TASKS:
                over = [t.id for t in self.tasks.values() if t.complete_time][: len(self.tasks) - MAX_TASKS]
                for old in over:
                    del self.tasks[old]
                self.store.delete("task", over)

    def put_record(self, record: FrozenRecord) -> None:
        """Keep what a snapshot froze; beyond 1,000 the oldest is forgotten."""
        with self._change():
            self.frozen[record.snapshot] = record
            self.store.put("frozen", record.snapshot, record.model_dump_json())
            while len(self.frozen) > MAX_RECORDS:
                oldest = next(iter(self.frozen))
                del self.frozen[oldest]
                self.store.delete("frozen", [oldest])

    def event(
        self,
        type_name: str,
        vm: Vm,
        user: str,
        message: str,
        task: str | None = None,
        *,
        other: str | None = None,
        mac: str | None = None,
    ) -> None:
        """Add to the event log; beyond 10,000 the oldest is forgotten."""
        with self._change():
            self._counters.last_event += 1
            event = Event(
                id=self._counters.last_event,
                time=now(),
                type=type_name,
                entity=vm.moref,
                entity_name=vm.name,
                user=user,
                message=message,
                task=task,
                other=other,
                mac=mac,
            )
            self.events.append(event)
            self.store.put("event", str(event.id), event.model_dump_json())
            if len(self.events) > MAX_EVENTS:
                self.store.delete("event", [str(self.events.popleft().id)])

    def violation(self, vm: Vm, path: str, message: str) -> None:
        """Record something that must never happen, once for each path and message."""
        with self.edit_site() as site:
            known = any((v.path, v.message) == (path, message) for v in site.violations)
            if not known and len(site.violations) < MAX_RECORDS:
                site.violations.append(Violation(time=now(), vm=vm.moref, path=path, message=message))

    @contextmanager
    def edit_site(self) -> Iterator[SiteRecord]:
        """Change the site's record; kept only when the block ends without an error."""
        with self._change():
            copy = self.site.model_copy(deep=True)
            yield copy
            self.site = copy
            self._put_site()

    @contextmanager
    def _change(self) -> Iterator[int]:
        with self.changes, self.store.transaction():
            self._counters.version += 1
            yield self._counters.version
            self._put_counters()
            self.changes.notify_all()

    def _put_site(self) -> None:
        self.store.put("site", "site", self.site.model_dump_json())
        self._put_counters()

    def _put_counters(self) -> None:
        self.store.put("counters", "counters", self._counters.model_dump_json())


def _occupied_bytes(directory: Path) -> int:
    """What a directory tree occupies; files that vanish meanwhile count nothing."""
    total = 0
    pending = [directory]
    while pending:
        try:
            entries = list(pending.pop().iterdir())
        except FileNotFoundError:
            continue
        for entry in entries:
            try:
                found = entry.lstat()
            except FileNotFoundError:
                continue
            if entry.is_dir() and not entry.is_symlink():
                pending.append(entry)
            total += found.st_blocks * 512
    return total
