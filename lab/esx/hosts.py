"""The hosts: world, runtimes, tasks and guests joined; every call of `lab.esx.client` ends here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lab.esx import devices, registration, snapshots, vms
from lab.esx.api import (
    DirectoryEntry,
    Event,
    FaultRule,
    FrozenDigest,
    FrozenRecord,
    Layout,
    Operation,
    ReconfigSpec,
    Settings,
    Task,
    TaskStarted,
    User,
    Violation,
    Vm,
)
from lab.esx.chains import discard, settle_merge
from lab.esx.layout import layout_of
from lab.esx.paths import HostError
from lab.esx.runtime import VmRuntime
from lab.esx.tasks import OperationCode, TaskContext, TaskRunner
from lab.esx.world import UserRecord, World

_PASSWORD_ROUNDS = 2_000
_MAX_NAME_BYTES = 80 * 4


def hash_password(name: str, password: str) -> str:
    """How passwords are kept: the user's name is the salt."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), name.encode(), _PASSWORD_ROUNDS).hex()


class Hosts:
    """See the module. `start` resumes what an earlier process left unfinished; `stop` leaves it resumable."""

    def __init__(self, state_dir: Path) -> None:
        self.world = World(state_dir)
        self._runtimes = {moref: VmRuntime(self.world, moref) for moref in self.world.vms}
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self.runner = TaskRunner(
            self.world,
            {
                Operation.CREATE_SNAPSHOT: self._create_snapshot,
                Operation.REMOVE_SNAPSHOT: _without_result(snapshots.remove_snapshot),
                Operation.CONSOLIDATE: _without_result(snapshots.consolidate),
                Operation.RECONFIGURE: _without_result(devices.reconfigure),
                Operation.POWER_ON: _without_result(vms.power_on),
                Operation.POWER_OFF: _without_result(vms.power_off),
                Operation.REGISTER: lambda context: registration.register(context, self._adopt),
                Operation.RELOCATE: _without_result(vms.relocate),
                Operation.DESTROY: _without_result(vms.destroy),
            },
            self.runtime,
        )

    def start(self) -> None:
        """Clean up what a killed process had in the making, then resume guests and tasks."""
        for runtime in list(self._runtimes.values()):
            discard(self.world, runtime)
            settle_merge(runtime)
            runtime.start_guest()
        self.runner.resume()

    def stop(self) -> None:
        """Stop guests and interrupt tasks; the next process goes on with them."""
        self.runner.stop()
        self._digests.shutdown(wait=True, cancel_futures=True)
        for runtime in list(self._runtimes.values()):
            runtime.stop_guest()
        with self.world.changes:
            self.world.store.close()

    def runtime(self, reference: str) -> VmRuntime:
        """A VM's runtime, by moref or name. Errors: HostError ManagedObjectNotFound."""
        return self._runtimes[self.world.vm(reference).moref]

    def _adopt(self, vm: Vm) -> None:
        self.world.put_vm(vm)
        self._runtimes[vm.moref] = VmRuntime(self.world, vm.moref)

    def _create_snapshot(self, context: TaskContext) -> str:
        moref = snapshots.create_snapshot(context)
        if self.world.site.settings.record_frozen:
            runtime = context.runtime(context.text("vm"))
            self._digests.submit(self._record, runtime, moref)
        return moref

    def _record(self, runtime: VmRuntime, moref: str) -> None:
        # Removed meanwhile: then the removal has made the record before it began.
        with suppress(HostError):
            snapshots.record_frozen(self.world, runtime, moref)

    # Calls that start a task.

    def create_snapshot(
        self, vm: str, name: str, description: str, *, memory: bool, quiesce: bool, user: str
    ) -> TaskStarted:
        """See `HostClient.create_snapshot`."""
        if not name or len(name.encode()) > _MAX_NAME_BYTES:
            raise HostError("InvalidName", "a snapshot's name has 1 to 80 characters", name=name[:80])
        if memory:
            raise HostError("NotSupported", "the lab's VMs have no memory to store")
        if self.world.vm(vm).template:
            raise HostError("NotSupported", f"{self.world.vm(vm).name} is a template")
        arguments: dict[str, object] = {"name": name, "description": description, "quiesce": quiesce}
        return self._start(Operation.CREATE_SNAPSHOT, vm, user, arguments)

    def remove_snapshot(
        self, snapshot: str, *, remove_children: bool, consolidate: bool, user: str
    ) -> TaskStarted:
        """See `HostClient.remove_snapshot`."""
        vm = self.world.vm_of_snapshot(snapshot)
        arguments: dict[str, object] = {
            "snapshot": snapshot,
            "remove_children": remove_children,
            "consolidate": consolidate,
        }
        return self._start(Operation.REMOVE_SNAPSHOT, vm.moref, user, arguments)

    def consolidate(self, vm: str, *, user: str) -> TaskStarted:
        """See `HostClient.consolidate`."""
        return self._start(Operation.CONSOLIDATE, vm, user, {})

    def reconfigure(self, vm: str, spec: ReconfigSpec, *, user: str) -> TaskStarted:
        """See `HostClient.reconfigure`."""
        return self._start(Operation.RECONFIGURE, vm, user, {"spec": spec.model_dump(mode="json")})

    def power_on(self, vm: str, *, user: str) -> TaskStarted:
        """See `HostClient.power_on`."""
        return self._start(Operation.POWER_ON, vm, user, {})

    def power_off(self, vm: str, *, user: str) -> TaskStarted:
        """See `HostClient.power_off`."""
        return self._start(Operation.POWER_OFF, vm, user, {})

    def relocate(self, vm: str, datastore: str, *, user: str) -> TaskStarted:
        """See `HostClient.relocate`."""
        target = self.world.datastore(datastore)
        if target.moref == self.world.vm(vm).datastore:
            raise HostError("InvalidDatastore", f"{self.world.vm(vm).name} is on {target.name} already")
        return self._start(Operation.RELOCATE, vm, user, {"datastore": target.moref})

    def destroy(self, vm: str, *, user: str) -> TaskStarted:
        """See `HostClient.destroy`."""
        vms.require_off(self.world.vm(vm))
        return self._start(Operation.DESTROY, vm, user, {})

    def register(
        self,
        path: str,
        *,
        name: str | None,
        folder: str | None,
        resource_pool: str | None,
        host: str | None,
        as_template: bool,
        user: str,
    ) -> TaskStarted:
        """See `HostClient.register`."""
        arguments: dict[str, object] = {
            "path": path,
            "name": name,
            "folder": folder,
            "resource_pool": resource_pool,
            "host": host,
            "as_template": as_template,
        }
        entity = folder or self.world.site.datacenter.vm_folder
        return self.runner.start(Operation.REGISTER, entity, name or path, user, arguments)

    def _start(self, operation: Operation, vm: str, user: str, arguments: dict[str, object]) -> TaskStarted:
        found = self.world.vm(vm)
        return self.runner.start(operation, found.moref, found.name, user, {"vm": found.moref, **arguments})

    # Calls that answer at once.

    def unregister(self, vm: str, *, user: str) -> None:
        """See `HostClient.unregister`."""
        runtime = self.runtime(vm)
        busy = [
            t.id for t in self.world.tasks.values() if t.entity == runtime.moref and t.complete_time is None
        ]
        if busy:
            raise HostError("TaskInProgress", f"{runtime.vm.name} is busy", task=busy[0])
        vms.unregister(self.world, runtime, user)

    def wait_task(self, task: str, timeout_s: float) -> Task:
        """The task when it is over, or after `timeout_s` as it is then."""
        changes = self.world.changes
        with changes:
            changes.wait_for(lambda: self.world.task(task).complete_time is not None, timeout_s)
            return self.world.task(task)

    def set_guest_rate(self, vm: str, rate: int) -> None:
        """See `HostClient.set_guest_rate`."""
        runtime = self.runtime(vm)
        runtime.stop_guest()
        with runtime.edit() as changed:
            changed.guest_rate = rate
        runtime.start_guest()

    def layout(self, vm: str) -> Layout:
        """See `HostClient.layout`."""
        return layout_of(self.world.vm(vm), self.world.local)

    def list_directory(self, path: str) -> list[DirectoryEntry]:
        """See `HostClient.list_directory`."""
        local = self.world.local(path)
        if not local.is_dir():
            raise HostError("FileNotFound", f"{path} does not exist", file=path)
        entries = []
        for entry in sorted(local.iterdir()):
            with suppress(FileNotFoundError):
                status = entry.lstat()
                entries.append(
                    DirectoryEntry(
                        path=entry.name,
                        size_bytes=status.st_size,
                        modified=datetime.fromtimestamp(status.st_mtime, UTC),
                        directory=entry.is_dir(),
                    )
                )
        return entries

    def events(self, after: int, limit: int) -> list[Event]:
        """See `HostClient.events`."""
        with self.world.changes:
            return [event for event in self.world.events if event.id > after][:limit]

    def login(self, user: str, password: str) -> User:
        """See `HostClient.login`."""
        for found in self.world.site.users:
            if found.name == user and hmac.compare_digest(found.password_hash, hash_password(user, password)):
                return User(name=found.name, privileges=found.privileges)
        raise HostError("InvalidLogin", "incorrect user name or password")

    def set_user(self, name: str, privileges: list[str], password: str | None) -> None:
        """See `HostClient.set_user`."""
        with self.world.edit_site() as site:
            old = next((user for user in site.users if user.name == name), None)
            if password is not None:
                digest = hash_password(name, password)
            elif old is not None:
                digest = old.password_hash
            else:
                raise HostError("InvalidArgument", f"{name} is new and has no password")
            site.users = [user for user in site.users if user.name != name]
            site.users.append(UserRecord(name=name, privileges=privileges, password_hash=digest))

    def add_fault(self, rule: FaultRule) -> None:
        """See `HostClient.add_fault`."""
        if rule.operation not in {*Operation, "Quiesce"}:
            raise HostError(
                "InvalidArgument", f"no operation {rule.operation!r}", invalidProperty="operation"
            )
        if rule.datastore is not None:
            self.world.datastore(rule.datastore)
        with self.world.edit_site() as site:
            site.fault_rules.append(rule)

    def clear_faults(self) -> None:
        """See `HostClient.clear_faults`."""
        with self.world.edit_site() as site:
            site.fault_rules = []

    def set_settings(self, settings: Settings) -> None:
        """See `HostClient.set_settings`."""
        with self.world.edit_site() as site:
            site.settings = settings

    def check_frozen(self) -> list[Violation]:
        """See `HostClient.check_frozen`."""
        for runtime in list(self._runtimes.values()):
            if runtime.moref in self.world.vms:
                runtime.check_frozen()
        return self.world.site.violations

    def frozen_digest(self, snapshot: str, disk_key: int, export: Path | None = None) -> FrozenDigest:
        """See `HostClient.frozen_digest` and `HostClient.read_frozen`."""
        try:
            vm = self.world.vm_of_snapshot(snapshot)
            return snapshots.frozen_digest(self.world, self._runtimes[vm.moref], snapshot, disk_key, export)
        except HostError:
            record = self.world.frozen.get(snapshot)
            found = [disk for disk in record.disks if disk.disk_key == disk_key] if record else []
            if export is not None or not found:
                raise
            return found[0]

    def frozen_records(self, vm: str | None) -> list[FrozenRecord]:
        """See `HostClient.frozen_records`."""
        return [r for r in list(self.world.frozen.values()) if vm is None or vm in {r.vm, r.vm_name}]


def _without_result(operation: Callable[[TaskContext], None]) -> OperationCode:
    def run(context: TaskContext) -> None:
        operation(context)

    return run
