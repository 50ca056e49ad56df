"""Steps 6, 7 and 13: the look before, the snapshot, and its removal."""

from __future__ import annotations

from temporalio import activity

from activities.beat import beat, keep_alive
from activities.errors import step
from activities.peers import Peers
from safehaul.errors import InvalidInputError, PolicyError, QuiesceRefusedError, UnsupportedError
from safehaul.messages.inventory import VmState
from safehaul.messages.marker import SnapshotMarker
from safehaul.messages.snapshots import TakenSnapshot
from safehaul.messages.steps import (
    CreateSnapshotInput,
    InspectInput,
    Inspection,
    Removal,
    RemovalInput,
    SnapshotRef,
    VmRef,
)
from safehaul.messages.vm import VmOptions
from safehaul.vsphere import inventory, removal, snapshots, vms

# vSphere's limit is 32 snapshots in a chain; one place is left for whoever comes next.
MAX_SNAPSHOTS = 31


class Snapshots:
    """Activities of an access node's control queue; `remove_snapshot` also of the common queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("inspect_vm")
    def inspect_vm(self, arg: InspectInput) -> Inspection:
        """Before step 6: records the VM's snapshot tree, files, directories and debt, and checks the policies.

        Changes nothing; a second run looks again. Heartbeats while directories are listed. Errors: the VM is
        gone, a template, out of reach, in debt (by policy), or its datastores are too full.
        """
        vcenter = self._peers.vcenter(arg.vm.vcenter)
        state = vms.vm_state(vcenter, arg.vm.moref, list_directories=True, heartbeat=beat)
        warnings = _judge(arg.vm, state, arg.options, str(self._peers.settings.installation_id))
        volumes = {volume.datastore: volume for volume in inventory.all_nas_volumes(vcenter)}
        used = sorted({disk.path[1:].split("]", 1)[0] for disk in state.disks})
        for name in used:
            volume = volumes.get(name)
            if volume is not None and volume.free_bytes < arg.options.min_free_bytes:
                raise PolicyError(
                    f"datastore {name!r} of VM {arg.vm.name!r} has {volume.free_bytes:,} bytes free, and "
                    f"min_free_bytes asks for {arg.options.min_free_bytes:,} before a snapshot is made"
                )
        if not any(volumes[name].is_nas for name in used if name in volumes):
            raise UnsupportedError(
                f"VM {arg.vm.name!r} has no disk on an NFS datastore: the NAS transport cannot read it"
            )
        return Inspection(state=state, warnings=warnings)

    @step("create_snapshot")
    def create_snapshot(self, arg: CreateSnapshotInput) -> SnapshotRef:
        """Steps 6 and 7: asks vCenter for the VM's snapshot and waits until it is made.

        Keyed by the snapshot's name and marker, known beforehand: a second run finds what the first one made
        and adopts it. A cancel does not stop it: the workflow waits for its end and removes the snapshot.
        Heartbeats with the task's progress. Errors: vCenter refuses.
        """
        warnings: list[str] = []
        try:
            taken = self._create(arg, quiesce=arg.options.quiesce)
        except QuiesceRefusedError as error:
            if not arg.options.quiesce_fallback:
                raise
            warnings.append(f"the guest refused to quiesce, the snapshot is crash-consistent: {error}")
            taken = self._create(arg, quiesce=False)
        return SnapshotRef(
            moref=taken.moref,
            name=taken.name,
            description=taken.description,
            created=taken.created,
            quiesced=taken.quiesced,
            warnings=warnings,
        )

    @step("remove_snapshot")
    def remove_snapshot(self, arg: RemovalInput) -> Removal:
        """Step 13: removes the snapshot of step 7, and only that one, until nothing of it is left.

        Keyed by the recorded moref, checked against name and marker; without a moref the snapshot is looked for
        by name and marker, after running snapshot tasks of the VM have ended. A second run finds it gone. A
        cancel does not stop it. Files that the VM still has in this node's spool go with it. Heartbeats while
        vCenter consolidates. Errors: a locked file, no space, a snapshot that is not ours.
        """
        record = removal.remove(
            self._peers.vcenter(arg.vm.vcenter),
            arg.vm.moref,
            snapshot_moref=arg.moref,
            name=arg.plan.name,
            description=arg.plan.description,
            before=arg.before,
            heartbeat=keep_alive,
        )
        self._drop_files(arg.vm)
        return Removal(gone=True, moref=arg.moref, record=record.model_dump(mode="json"))

    def _drop_files(self, vm: VmRef) -> None:
        try:
            self._peers.spool(vm.node).drop_unstored(vm)
        except (InvalidInputError, OSError) as error:
            # The node has left the configuration, or its disk is broken: the snapshot is gone all the same.
            activity.logger.warning("the spool of VM %r on %s stays: %s", vm.name, vm.node, error)

    def _create(self, arg: CreateSnapshotInput, *, quiesce: bool) -> TakenSnapshot:
        return snapshots.create(
            self._peers.vcenter(arg.vm.vcenter),
            arg.vm.moref,
            arg.plan.name,
            arg.plan.description,
            quiesce=quiesce,
            heartbeat=keep_alive,
            not_before=arg.not_before,
        )


def _judge(vm: VmRef, state: VmState, options: VmOptions, installation: str) -> list[str]:
    """Refuse what must not be touched; return what must be said."""
    warnings: list[str] = []
    if state.template:
        raise UnsupportedError(
            f"VM {vm.name!r} is a template, which has no snapshots: convert it to a VM or exclude it"
        )
    if state.connection_state != "connected":
        raise UnsupportedError(
            f"VM {vm.name!r} is {state.connection_state} in vCenter: bring its host or datastore back"
        )
    if state.consolidation_needed:
        debt = f"VM {vm.name!r} needed consolidation before this backup"
        if options.debt == "refuse":
            raise PolicyError(
                f'{debt}: consolidate its disks in vCenter, or set snapshot_debt = "warn" for the group'
            )
        warnings.append(debt)
    if len(state.snapshots) >= MAX_SNAPSHOTS:
        raise PolicyError(f"VM {vm.name!r} has {len(state.snapshots)} snapshots already: remove some")
    for snapshot in state.snapshots:
        marker = SnapshotMarker.parse(snapshot.description)
        if marker is None or marker.installation != installation:
            continue
        pending = f"VM {vm.name!r} still holds our snapshot {snapshot.moref} of {marker.workflow_id}"
        if options.pending_snapshot == "refuse":
            raise PolicyError(
                f'{pending}: see its RemoveSnapshot workflow, or set pending_snapshot = "proceed" for the group'
            )
        warnings.append(pending)
    if "CreateSnapshot_Task" in state.disabled_methods:
        warnings.append("another product has disabled snapshots of this VM (disabledMethod)")
    return warnings
