"""Steps 6 and 7: finds our snapshot, or has vCenter make it. Asked twice, there is still one snapshot.

Never RevertToSnapshot, never RemoveAllSnapshots: neither name occurs in this package's code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from pyVmomi import vim

from safehaul.errors import BusyError, ConnectionLostError, InvalidInputError, NotFoundError, SessionLostError
from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.snapshots import TakenSnapshot
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import escape
from safehaul.vsphere.properties import read_object
from safehaul.vsphere.snapshot_tree import snapshot_nodes
from safehaul.vsphere.tasks import DEFAULT_TIMEOUT_S, Heartbeat, no_heartbeat, wait, wait_out_snapshot_tasks

log = logging.getLogger(__name__)

# vSphere's limit on a snapshot's name.
_MAX_NAME_CHARS: Final = 80


def tree(vcenter: VCenter, vm_moref: str) -> list[SnapshotNode]:
    """All snapshots of a VM, parents before children.

    Raises:
        NotFoundError: no such VM.
        BusyError: vCenter cannot read the VM now.
    """
    paths = ["snapshot", "runtime.connectionState"]
    vm = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm_moref, paths))
    vm.require("snapshot")
    # An unreadable tree is not an empty one: deciding on it would leave a snapshot behind.
    if vm.get("runtime.connectionState") != "connected":
        raise BusyError(
            f"VM {vm_moref} is {vm.get('runtime.connectionState')}: vCenter cannot tell its snapshots now"
        )
    return snapshot_nodes(vm.get("snapshot"))


def find_all(vcenter: VCenter, vm_moref: str, name: str, description: str) -> list[SnapshotNode]:
    """Every snapshot whose name and description are exactly these, parents first.

    There can be two after a lost answer; both are ours.

    Raises:
        NotFoundError: no such VM.
    """
    return [node for node in tree(vcenter, vm_moref) if (node.name, node.description) == (name, description)]


def find(vcenter: VCenter, vm_moref: str, name: str, description: str) -> SnapshotNode | None:
    """The first of `find_all`."""
    return next(iter(find_all(vcenter, vm_moref, name, description)), None)


def create(
    vcenter: VCenter,
    vm_moref: str,
    name: str,
    description: str,
    *,
    quiesce: bool = False,
    memory: bool = False,
    heartbeat: Heartbeat = no_heartbeat,
    before_asking: Callable[[], None] = lambda: None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> TakenSnapshot:
    """The VM's snapshot of this name and description, made if it is not there. Idempotent by that pair.

    Waits out snapshot tasks of the VM that run already, since one of them may be an earlier try of this very call.
    No clock decides what is adopted: the pair holds the id of the run that asks, which no earlier snapshot can have,
    and a comparison with vCenter's time would refuse our own snapshot where that clock is a second behind.

    Args:
        vcenter: the session.
        vm_moref: the VM's.
        name: deterministic, at most 80 characters.
        description: our marker.
        quiesce: ask the guest to bring its file systems to rest.
        memory: save the memory too; a backup does not.
        heartbeat: told the task's progress; may raise, and then the task goes on in vCenter.
        before_asking: called right before vCenter is asked, after all waiting; may raise, and then it is not asked.
        timeout_s: for the whole.

    Raises:
        QuiesceRefusedError: the guest could not be quiesced; there is no snapshot.
        ConnectionLostError, SessionLostError: it is not known whether there will be one; ask again.
        SafehaulError: vCenter's refusal, translated.
    """
    if not name or len(name) > _MAX_NAME_CHARS or not description:
        raise InvalidInputError(
            f"snapshot name {name[:100]!r}: 1 to {_MAX_NAME_CHARS} characters, with a marker"
        )
    deadline = time.monotonic() + timeout_s
    found = _adopt(vcenter, vm_moref, name, description)
    if found is None and wait_out_snapshot_tasks(vcenter, vm_moref, heartbeat, timeout_s=timeout_s):
        found = _adopt(vcenter, vm_moref, name, description)
    if found is not None:
        return found

    def ask(session: Session) -> Any:
        before_asking()
        return session.managed(vim.VirtualMachine, vm_moref).CreateSnapshot_Task(
            name=escape(name), description=description, memory=memory, quiesce=quiesce
        )

    try:
        task = vcenter.mutate(ask)
        created = moref(
            wait(vcenter, moref(task), heartbeat, timeout_s=max(1.0, deadline - time.monotonic()))
        )
    except (ConnectionLostError, SessionLostError, NotFoundError) as error:
        log.warning("the answer about snapshot %r of %s was lost, looking for it: %s", name, vm_moref, error)
        wait_out_snapshot_tasks(vcenter, vm_moref, heartbeat, timeout_s=max(1.0, deadline - time.monotonic()))
        found = _adopt(vcenter, vm_moref, name, description)
        if found is None:
            raise
        return found
    return _made(vcenter, vm_moref, created, name, description)


def _adopt(vcenter: VCenter, vm_moref: str, name: str, description: str) -> TakenSnapshot | None:
    node = find(vcenter, vm_moref, name, description)
    if node is None:
        return None
    log.info("snapshot %s of %s is there already: adopted", node.moref, vm_moref)
    return _taken(node, adopted=True)


def _made(vcenter: VCenter, vm_moref: str, created: str, name: str, description: str) -> TakenSnapshot:
    """Looks at what the task says it made: the tree is the truth."""
    for node in find_all(vcenter, vm_moref, name, description):
        if not created or node.moref == created:
            return _taken(node, adopted=False)
    raise NotFoundError(
        f"vCenter {vcenter.name} says that it made snapshot {created} of {vm_moref}, and its tree does not show it: "
        "somebody removed it at once, or the VM's snapshot file is damaged"
    )


def _taken(node: SnapshotNode, *, adopted: bool) -> TakenSnapshot:
    return TakenSnapshot(
        moref=node.moref,
        name=node.name,
        description=node.description,
        created=node.created,
        quiesced=node.quiesced,
        adopted=adopted,
    )
