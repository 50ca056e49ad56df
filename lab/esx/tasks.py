"""Tasks: started by a call, run here, whoever asked; unfinished ones are taken up again after a kill.

An operation is a function of a `TaskContext`. It must be able to run again from its start: a task that was
interrupted is run again with what it had noted (`note`), and without the fault that was planned for it.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from lab.esx.api import Fault, FaultRule, Operation, Task, TaskStarted, Vm
from lab.esx.paths import HostError
from lab.esx.runtime import VmRuntime
from lab.esx.world import World, now

MAX_RUNNING = 32
MAX_UNFINISHED = 2_000
_STEP_S = 0.05
Phase = Literal["start", "middle", "end"]


class StoppedError(Exception):
    """The hosts' process ends: the task stays as it is and goes on with the next process."""


class TaskContext:
    """What an operation has to do with its task."""

    def __init__(self, runner: TaskRunner, task: Task, planned: FaultRule | None) -> None:
        self._runner = runner
        self.world = runner.world
        self.id = task.id
        self.user = task.user
        self.arguments = dict(task.arguments)
        self._planned = planned

    @property
    def task(self) -> Task:
        """The task as it is now."""
        return self.world.tasks[self.id]

    def runtime(self, moref: str) -> VmRuntime:
        """A VM's runtime. Errors: HostError ManagedObjectNotFound."""
        return self._runner.runtime(moref)

    def text(self, name: str) -> str:
        """An argument that must be text."""
        value = self.arguments.get(name)
        if not isinstance(value, str):
            raise HostError("InvalidArgument", f"{name} is missing", invalidProperty=name)
        return value

    def note(self, name: str, value: object) -> None:
        """Remember an argument for a second run."""
        self.arguments[name] = value
        self.update(arguments=dict(self.arguments))

    def update(self, **changes: object) -> None:
        """Change the task's record."""
        self.world.put_task(self.task.model_copy(update=changes))

    def progress(self, percent: float) -> None:
        """Tell how far it is; steps under 5 % are not told."""
        if percent >= self.task.progress + 5:
            self.update(progress=min(99, int(percent)))

    def spend(self, share: float, until_percent: int) -> None:
        """Let a share of the operation's configured duration pass. Errors: HostError RequestCanceled."""
        settings = self.world.site.settings
        total_s = settings.durations_s.get(self.task.operation, settings.default_duration_s) * share
        first = self.task.progress
        start = time.monotonic()
        while (passed_s := time.monotonic() - start) < total_s:
            self.progress(first + (until_percent - first) * passed_s / total_s)
            self.rest(min(_STEP_S, total_s - passed_s))
        self.progress(until_percent)
        self.rest(0)

    def rest(self, seconds: float) -> None:
        """Wait; a cancel or the process's end stops it."""
        if self._runner.stopping.wait(seconds) or self._runner.stopping.is_set():
            raise StoppedError
        task = self.task
        if task.cancelled and task.cancelable:
            raise HostError("RequestCanceled", "the task was cancelled by a user")

    def no_return(self) -> None:
        """From here the operation cannot be cancelled. Errors: HostError RequestCanceled when it just was."""
        with self.world.changes:
            self.rest(0)
            self.update(cancelable=False)

    def take_quiesce_fault(self, vm: Vm) -> FaultRule | None:
        """The fault that is planned for quiescing this VM now, if any."""
        return self._runner.take_fault("Quiesce", vm.moref, vm.name)

    def phase(self, phase: Phase) -> None:
        """Let the planned fault happen if it is planned for this phase."""
        rule = self._planned
        if rule is None or _phase_of(rule) != phase:
            return
        self._planned = None
        if rule.effect == "stall":
            until = time.monotonic() + rule.seconds
            while time.monotonic() < until:
                self.rest(_STEP_S)
        elif rule.effect == "migrate":
            self._runner.migrate(self, rule.datastore)
        elif rule.effect == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif rule.effect == "locked":
            raise HostError("FileLocked", rule.message, file=self.task.entity_name)
        elif rule.effect == "no-space":
            raise HostError("NoDiskSpace", rule.message, datastore=rule.datastore or "")
        elif rule.effect == "fail":
            raise HostError(rule.fault, rule.message)


def _phase_of(rule: FaultRule) -> Phase:
    return rule.phase or ("middle" if rule.effect in {"locked", "no-space"} else "start")


OperationCode = Callable[[TaskContext], str | None]


class TaskRunner:
    """Starts, runs and resumes tasks. One task at a time for each VM; a second is refused (TaskInProgress)."""

    def __init__(
        self,
        world: World,
        operations: dict[Operation, OperationCode],
        runtime: Callable[[str], VmRuntime],
    ) -> None:
        self.world = world
        self.runtime = runtime
        self.stopping = threading.Event()
        self._operations = operations
        self._pool = ThreadPoolExecutor(MAX_RUNNING, thread_name_prefix="task")

    def start(
        self, operation: Operation, entity: str, entity_name: str, user: str, arguments: dict[str, object]
    ) -> TaskStarted:
        """Start a task on an entity (a moref). Errors: HostError TaskInProgress, or what a plan refuses."""
        with self.world.changes:
            unfinished = [task for task in self.world.tasks.values() if task.complete_time is None]
            for task in unfinished:
                if task.entity == entity and operation is not Operation.REGISTER:
                    raise HostError(
                        "TaskInProgress", f"{entity_name} is busy with {task.operation}", task=task.id
                    )
            if len(unfinished) >= MAX_UNFINISHED:
                raise HostError("TooManyTasks", f"{len(unfinished)} tasks are unfinished")
            planned = self.take_fault(operation, entity, entity_name)
            task = Task(
                id=self.world.next_task_id(),
                operation=operation,
                entity=entity,
                entity_name=entity_name,
                user=user,
                queue_time=now(),
                arguments=arguments,
            )
            self.world.put_task(task)
        self._pool.submit(self._run, task, planned)
        dropped = planned is not None and planned.effect == "drop-after-start"
        return TaskStarted(task=task.id, drop_connection=dropped)

    def take_fault(self, operation: str, entity: str, entity_name: str) -> FaultRule | None:
        """Count this start in every plan that names it; the first that is due."""
        due: FaultRule | None = None
        with self.world.changes:
            concerned = [
                number
                for number, rule in enumerate(self.world.site.fault_rules)
                if rule.operation == operation and rule.vm in {None, entity, entity_name}
            ]
            if not concerned:
                return None
            with self.world.edit_site() as site:
                for number in concerned:
                    rule = site.fault_rules[number]
                    rule.seen += 1
                    hit = rule.nth is None or rule.nth <= rule.seen < rule.nth + rule.times
                    if hit and due is None:
                        rule.fired += 1
                        due = rule.model_copy()
        return due

    def resume(self) -> None:
        """Take up every unfinished task of an earlier process."""
        for task in list(self.world.tasks.values()):
            if task.complete_time is None:
                self._pool.submit(self._run, task, None)

    def cancel(self, task: str) -> None:
        """Ask a task to stop. Errors: HostError InvalidState when it is over, NotSupported when too late."""
        with self.world.changes:
            found = self.world.task(task)
            if found.complete_time is not None:
                raise HostError("InvalidState", f"{task} is over")
            if not found.cancelable:
                raise HostError("NotSupported", f"{task} cannot be cancelled any more")
            self.world.put_task(found.model_copy(update={"cancelled": True}))

    def migrate(self, context: TaskContext, datastore: str | None) -> None:
        """Move the VM of a running task to another datastore, as planned."""
        if datastore is None:
            raise HostError("InvalidArgument", "the plan names no datastore", invalidProperty="datastore")
        context.arguments["datastore"] = datastore
        self._operations[Operation.RELOCATE](context)

    def stop(self) -> None:
        """Interrupt all tasks and wait for their threads; they stay unfinished."""
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, task: Task, planned: FaultRule | None) -> None:
        context = TaskContext(self, task, planned)
        if self.stopping.is_set():
            return
        try:
            context.update(state="running", start_time=now())
            context.phase("start")
            result = self._operations[task.operation](context)
            context.phase("end")
        except StoppedError:
            return
        except HostError as error:
            self._finish(context, None, error.fault)
        except OSError as error:
            self._finish(context, None, _fault_of(error))
        except Exception as error:  # noqa: BLE001 - a task must end, and say why
            self._finish(context, None, Fault(type="SystemError", message=repr(error)))
        else:
            self._finish(context, result, None)

    def _finish(self, context: TaskContext, result: str | None, fault: Fault | None) -> None:
        task = context.task
        changes: dict[str, object] = {
            "state": "error" if fault else "success",
            "progress": task.progress if fault else 100,
            "cancelable": False,
            "result": result,
            "error": fault,
            "complete_time": now(),
        }
        # Together: who waited for the task finds its event in the log.
        with self.world.changes:
            context.update(**changes)
            vm = self.world.vms.get(result or task.entity) or self.world.vms.get(task.entity)
            if vm is not None:
                outcome = f"failed: {fault.message}" if fault else "succeeded"
                kind = "task-failed" if fault else "task-completed"
                self.world.event(kind, vm, task.user, f"{task.operation} {outcome}", task.id)


def _fault_of(error: OSError) -> Fault:
    if error.errno == errno.ENOSPC:
        return Fault(type="NoDiskSpace", message=str(error))
    name = {errno.ENOENT: "FileNotFound", errno.EEXIST: "FileAlreadyExists"}.get(
        error.errno or 0, "FileFault"
    )
    return Fault(type=name, message=str(error), fields={"file": str(error.filename or "")})
