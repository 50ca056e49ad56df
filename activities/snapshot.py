"""Steps 6, 7 and 13: the look before, the snapshot, and its removal."""

from __future__ import annotations

import time

from temporalio import activity

from activities.beat import beat, keep_alive
from activities.disks import volumes_of
from activities.errors import step
from activities.hold import check_hold, too_full
from activities.peers import Peers
from safehaul.errors import BusyError, InvalidInputError, PolicyError, UnsupportedError
from safehaul.messages.inventory import VmState
from safehaul.messages.marker import SnapshotMarker
from safehaul.messages.steps import (
    CreateSnapshotInput,
    HoldInput,
    InspectInput,
    Inspection,
    Removal,
    RemovalInput,
    SnapshotRef,
    VmRef,
)
from safehaul.messages.vm import VmOptions
from safehaul.vsphere import removal, snapshots, vms, whereabouts
from safehaul.vsphere.names import parse_datastore_path

# vSphere's limit is 32 snapshots in a chain; one place is left for whoever comes next.
MAX_SNAPSHOTS = 31
# A try of step 6 asks vCenter this soon after its start or not at all. The server takes a worker for dead after 12 s
# or more without a heartbeat: a try of which nobody hears any more, on a node that is cut off, has then lost its right
# to ask. Removals that do not know the snapshot's moref count on it (`policies.LATE_CREATION_WITHIN`).
ASK_WITHIN_S = 12.0
# A snapshot task that takes longer is looked at again by a fresh try, before this one's time-out.
CREATE_WITHIN_S = 45 * 60.0


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
        installation = str(self._peers.settings.installation_id)
        warnings = _judge(arg.vm, state, arg.options, installation, arg.own)
        volumes = volumes_of(self._peers, arg.vm)
        used = sorted({parse_datastore_path(disk.path).datastore for disk in state.disks})
        full = too_full(arg.options, state.disks, volumes)
        if full is not None:
            raise PolicyError(
                f"datastore {full.datastore!r} of VM {arg.vm.name!r} has {full.free_bytes:,} bytes free, and "
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
        and adopts it. A cancel stops it until vCenter is asked, and never after: the workflow waits for its end and
        removes the snapshot. Heartbeats with the task's progress. Errors: vCenter refuses, the guest does not
        quiesce, or waiting for other snapshot tasks took so long that a fresh try must ask.
        """
        ask = _Asking(arg.vm.name)
        taken = snapshots.create(
            self._peers.vcenter(arg.vm.vcenter),
            arg.vm.moref,
            arg.plan.name,
            arg.plan.description,
            quiesce=arg.options.quiesce,
            heartbeat=ask.heartbeat,
            before_asking=ask.begin,
            timeout_s=CREATE_WITHIN_S,
        )
        return SnapshotRef(
            moref=taken.moref,
            name=taken.name,
            description=taken.description,
            created=taken.created,
            quiesced=taken.quiesced,
            unheard=activity.info().attempt > 1,
        )

    @step("watch_snapshot")
    def watch_snapshot(self, arg: HoldInput) -> None:
        """While the snapshot is held: looks whether it may still be, by its age and its datastores' room.

        Changes nothing; a second run looks again. Errors: it is held too long, or a datastore is too full; both have
        the workflow remove it.
        """
        state = vms.vm_state(self._peers.vcenter(arg.vm.vcenter), arg.vm.moref)
        check_hold(arg.vm, arg.options, arg.created_at, state.disks, volumes_of(self._peers, arg.vm))

    @step("remove_snapshot")
    def remove_snapshot(self, arg: RemovalInput) -> Removal:
        """Step 13: removes the snapshot of step 7, and only that one, until nothing of it is left.

        Keyed by the recorded moref, checked against name and marker; without a moref the snapshot is looked for
        by name and marker, after running snapshot tasks of the VM have ended. The VM is found by its instanceUuid
        where its moref is gone. A second run finds the snapshot gone. A cancel does not stop it, the end of its
        time does, and so does a server that has given this try up. Files that the VM still has in this node's spool
        go with it. Heartbeats while vCenter consolidates. Errors: a locked file, no space, a missing privilege, a
        snapshot that is not ours, a VM out of the inventory.
        """
        record = removal.remove(
            self._peers.vcenter(arg.vm.vcenter),
            arg.vm.moref,
            snapshot_moref=arg.moref,
            name=arg.plan.name,
            description=arg.plan.description,
            before=arg.before,
            instance_uuid=whereabouts.instance_uuid_of(arg.vm.vc_guid),
            heartbeat=_while_wanted,
            timeout_s=arg.within_s,
        )
        self._drop_files(arg.vm)
        unproved = record.vm_gone and not record.files_checked
        return Removal(
            gone=not unproved,
            vm_gone=record.vm_gone,
            moref=arg.moref,
            record=record.model_dump(mode="json"),
            reason=_NOBODY_CAN_TELL.format(arg.vm.name) if unproved else "",
        )

    def _drop_files(self, vm: VmRef) -> None:
        if not vm.node:  # an orphan's, which a sweep has found: its marker does not say which node it was
            return
        try:
            self._peers.spool(vm.node).drop_unstored(vm)
        except (InvalidInputError, OSError) as error:
            # The node has left the configuration, or its disk is broken: the snapshot is gone all the same.
            activity.logger.warning("the spool of VM %r on %s stays: %s", vm.name, vm.node, error)


_NOBODY_CAN_TELL = (
    "VM {!r} is in vCenter's inventory no more, and where its files were is not recorded: if it was only taken out of "
    "the inventory, register it again, and the snapshot is removed"
)


class _Asking:
    """A try of step 6: may be stopped until it asks vCenter, and has only so long to ask."""

    def __init__(self, vm_name: str) -> None:
        self._vm_name = vm_name
        self._begun_at = time.monotonic()
        self._asked = False

    def heartbeat(self, progress: int | None) -> None:
        """Heartbeat; raises for a cancel as long as vCenter has not been asked."""
        if self._asked:
            keep_alive(progress)
        else:
            beat(progress)

    def begin(self) -> None:
        """VCenter is asked next: raises when this try must not ask (any more)."""
        if time.monotonic() - self._begun_at > ASK_WITHIN_S:
            raise BusyError(
                f"VM {self._vm_name!r}: other snapshot tasks or a slow vCenter took this try's time; a fresh one asks"
            )
        beat()
        self._asked = True


def _while_wanted(progress: int | None) -> None:
    """A removal's heartbeat: goes on through a cancel, and stops when the server counts on this try no more."""
    keep_alive(progress)
    details = activity.cancellation_details()
    if details is not None and (details.not_found or details.timed_out):
        raise BusyError("the server has given this try of the removal up; vCenter's task goes on")


def _judge(vm: VmRef, state: VmState, options: VmOptions, installation: str, own: str) -> list[str]:
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
        if marker is None or marker.installation != installation or snapshot.description == own:
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
