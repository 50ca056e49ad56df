"""How the snapshot tests of the contract ask, and who they are."""

from __future__ import annotations

from pyVmomi import vim

from safehaul.messages.inventory import VmState
from safehaul.messages.marker import SnapshotMarker
from safehaul.messages.snapshots import RemovalRecord
from safehaul.vsphere import tasks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import tree
from safehaul.vsphere.vms import vm_state

NAME = "safehaul-nightly-1"
OURS = SnapshotMarker(
    installation="site",
    namespace="namespace",
    workflow_id="backup-vm/1",
    first_run_id="run-1",
    vc_guid="vc.vm",
).text()


def before(vcenter: VCenter, vm: str) -> VmState:
    """The VM as step 6 finds it."""
    return vm_state(vcenter, vm, list_directories=True)


def removed(
    vcenter: VCenter, vm: str, state: VmState | None, snapshot: str = "", timeout_s: float = 30
) -> RemovalRecord:
    """Removes our snapshot as step 13 does; without a state its files are not looked at."""
    return remove(
        vcenter, vm, name=NAME, description=OURS, snapshot_moref=snapshot, before=state, timeout_s=timeout_s
    )


def remove_all(vcenter: VCenter, vm: str) -> None:
    """Takes away whatever a test has left, whoever it belonged to."""
    tasks.wait_out_snapshot_tasks(vcenter, vm)
    for node in tree(vcenter, vm):
        tasks.wait(vcenter, _start_removal(vcenter, node.moref), timeout_s=30)


def _start_removal(vcenter: VCenter, snapshot: str) -> str:
    return moref(
        vcenter.mutate(
            lambda session: session.managed(vim.vm.Snapshot, snapshot).RemoveSnapshot_Task(
                removeChildren=False
            )
        )
    )
