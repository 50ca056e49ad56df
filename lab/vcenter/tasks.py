"""Tasks as `TaskInfo`: those of the hosts, and the front's own (datastore searches), which end at once."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import uuid
from collections import OrderedDict
from typing import Any

from pyVmomi import VmomiSupport, vim

from lab.esx.api import Operation, Task
from lab.vcenter.faults import fault_named
from lab.vcenter.names import escaped
from lab.vcenter.nodes import Node
from lab.vcenter.reflect import moid_of

_METHODS = {
    Operation.CREATE_SNAPSHOT: ("CreateSnapshot_Task", "VirtualMachine.createSnapshot"),
    Operation.REMOVE_SNAPSHOT: ("RemoveSnapshot_Task", "vm.Snapshot.remove"),
    Operation.CONSOLIDATE: ("ConsolidateVMDisks_Task", "VirtualMachine.consolidateDisks"),
    Operation.RECONFIGURE: ("ReconfigVM_Task", "VirtualMachine.reconfigure"),
    Operation.POWER_ON: ("PowerOnVM_Task", "VirtualMachine.powerOn"),
    Operation.POWER_OFF: ("PowerOffVM_Task", "VirtualMachine.powerOff"),
    Operation.REGISTER: ("RegisterVM_Task", "Folder.registerVm"),
    Operation.RELOCATE: ("RelocateVM_Task", "VirtualMachine.relocate"),
    Operation.DESTROY: ("Destroy_Task", "VirtualMachine.destroy"),
}
_KEPT_LOCAL_TASKS = 200


def entity_reference(moref: str) -> Any:
    """The reference of a task's or event's entity: its kind stands in the moref."""
    if moref.startswith("group-"):
        return vim.Folder(moref)
    return vim.VirtualMachine(moref)


def task_info(task: Task) -> Any:
    """`TaskInfo` of a task of the hosts."""
    method, description = _METHODS[task.operation]
    return vim.TaskInfo(
        key=task.id,
        task=vim.Task(task.id),
        name=VmomiSupport.GuessWsdlMethod(method),
        descriptionId=description,
        entity=entity_reference(task.entity),
        entityName=escaped(task.entity_name),
        state=task.state,
        cancelled=task.cancelled,
        cancelable=task.cancelable and task.state in ("queued", "running"),
        error=_error(task),
        result=_result(task),
        progress=task.progress if task.state == "running" else None,
        reason=vim.TaskReasonUser(userName=task.user),
        queueTime=task.queue_time,
        startTime=task.start_time,
        completeTime=task.complete_time,
        eventChainId=_chain_id(task.id),
    )


def task_node(info: Any) -> Node:
    """A `Task` as a managed object."""
    return Node(info.task, {"info": lambda: info, "value": list, "availableField": list})


class LocalTasks:
    """Tasks that the front itself runs; they are finished when the client sees them, and lost at a restart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._infos: OrderedDict[str, Any] = OrderedDict()
        self._numbers = itertools.count(1)
        self._prefix = f"task-f{uuid.uuid4().hex[:6]}"

    def finished(
        self, method: str, description: str, entity: Any, *, user: str, result: Any = None, error: Any = None
    ) -> Any:
        """Record a finished task; returns its reference."""
        now = dt.datetime.now(dt.UTC)
        with self._lock:
            key = f"{self._prefix}-{next(self._numbers)}"
            self._infos[key] = vim.TaskInfo(
                key=key,
                task=vim.Task(key),
                name=VmomiSupport.GuessWsdlMethod(method),
                descriptionId=description,
                entity=entity,
                state="error" if error is not None else "success",
                cancelled=False,
                cancelable=False,
                error=error,
                result=result,
                reason=vim.TaskReasonUser(userName=user),
                queueTime=now,
                startTime=now,
                completeTime=now,
                eventChainId=0,
            )
            while len(self._infos) > _KEPT_LOCAL_TASKS:
                self._infos.popitem(last=False)
            return vim.Task(key)

    def find(self, reference: Any) -> Node | None:
        """The task of `reference`, or None."""
        with self._lock:
            info = self._infos.get(moid_of(reference))
        return task_node(info) if info is not None and isinstance(reference, vim.Task) else None


def _error(task: Task) -> Any:
    if task.error is None:
        return None
    return fault_named(task.error.type, task.error.message, task.error.fields)


def _result(task: Task) -> Any:
    if task.result is None or task.state != "success":
        return None
    if task.operation is Operation.CREATE_SNAPSHOT:
        return vim.vm.Snapshot(task.result)
    if task.operation is Operation.REGISTER:
        return vim.VirtualMachine(task.result)
    return None


def _chain_id(task_id: str) -> int:
    digits = "".join(each for each in task_id if each.isdigit())
    return int(digits[-9:] or "0")
