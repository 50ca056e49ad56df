"""Trivial steps of restores under the real names, as tests/workflow/trivial.py has them for backups: fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safehaul.messages.restore import (
    DiscardInput,
    OldDisk,
    OldDisks,
    OpenDiskRestoreInput,
    OpenRestoreInput,
    PlannedDisk,
    PowerOnInput,
    RegisteredVm,
    RestoredDisk,
    RestoreDiskInput,
    RestoredVm,
    RestoreKind,
    RestorePlan,
    RestoreRef,
    RestoreSettings,
    RestoreStep,
)
from tests.workflow.trivial import _defn
from tests.workflow.world import World

MIB = 1 << 20


class TrivialRestore:
    """All steps of RestoreVm and RestoreDisk; `did` tells which ran, in `World.order`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _settings(self, kind: RestoreKind, name: str, **wishes: Any) -> RestoreSettings:
        return RestoreSettings(
            kind=kind,
            vc_guid="vc.1",
            backup_id="b1",
            media_agent="ma",
            vcenter="vc",
            access_nodes=list(self.world.nodes),
            name=name,
            datastore="ds",
            **wishes,
        )

    @_defn("open_restore")
    def open_restore(self, arg: OpenRestoreInput) -> RestoreSettings:
        self.world.did("open_restore", "", arg)
        request = arg.request
        kind = RestoreKind.IN_PLACE if request.in_place else RestoreKind.NEW_VM
        wishes = {"power_on": request.power_on, "delete_old_disks": request.delete_old_disks}
        return self._settings(kind, request.name or request.confirm, **wishes)

    @_defn("open_disk_restore")
    def open_disk_restore(self, arg: OpenDiskRestoreInput) -> RestoreSettings:
        self.world.did("open_disk_restore", "", arg)
        return self._settings(RestoreKind.DISK, arg.request.to_vm, disk_key=2000)

    def _plan(self, name: str, ref: RestoreRef, disks: int = 2) -> RestorePlan:
        self.world.did(name, ref.owner, ref)
        return RestorePlan(
            directory="[ds] vm",
            disks=[
                PlannedDisk(
                    key=2000 + number,
                    label=f"Hard disk {number + 1}",
                    capacity_bytes=MIB,
                    path=f"[ds] vm/new_{number}.vmdk",
                    replaces=f"[ds] vm/old_{number}.vmdk",
                )
                for number in range(disks)
            ],
            vm_moref="vm-1",
            vm_name=ref.settings.name,
            vc_guid="vc.1",
        )

    @_defn("prepare_restore")
    def prepare_restore(self, ref: RestoreRef) -> RestorePlan:
        return self._plan("prepare_restore", ref)

    @_defn("prepare_in_place")
    def prepare_in_place(self, ref: RestoreRef) -> RestorePlan:
        return self._plan("prepare_in_place", ref)

    @_defn("prepare_disk")
    def prepare_disk(self, ref: RestoreRef) -> RestorePlan:
        return self._plan("prepare_disk", ref, disks=1)

    @_defn("restore_disk")
    def restore_disk(self, arg: RestoreDiskInput) -> RestoredDisk:
        self.world.did("restore_disk", arg.disk.label, arg)
        return RestoredDisk(
            key=arg.disk.key,
            label=arg.disk.label,
            capacity_bytes=MIB,
            bytes_written=MIB,
            bytes_compared=MIB,
            seconds=0.1,
            path=arg.disk.path,
        )

    @_defn("write_vm_files")
    def write_vm_files(self, arg: RestoreStep) -> None:
        self.world.did("write_vm_files", "", arg)

    @_defn("register_vm")
    def register_vm(self, arg: RestoreStep) -> RegisteredVm:
        self.world.did("register_vm", "", arg)
        return RegisteredVm(moref="vm-2", vmx_path="[ds] vm/vm.vmx")

    @_defn("finish_vm")
    def finish_vm(self, arg: RestoreStep) -> RestoredVm:
        self.world.did("finish_vm", "", arg)
        return RestoredVm(moref="vm-2", vc_guid="vc.2")

    @_defn("power_on_vm")
    def power_on_vm(self, arg: PowerOnInput) -> None:
        self.world.did("power_on_vm", arg.moref, arg)

    @_defn("switch_disks")
    def switch_disks(self, arg: RestoreStep) -> RestoredVm:
        self.world.did("switch_disks", "", arg)
        return RestoredVm(moref="vm-1", vc_guid="vc.1")

    @_defn("remove_old_disks")
    def remove_old_disks(self, arg: RestoreStep) -> OldDisks:
        self.world.did("remove_old_disks", "", arg)
        return OldDisks(disks=[OldDisk(path=disk.replaces, removed=True) for disk in arg.plan.disks])

    @_defn("discard_restore")
    def discard_restore(self, arg: DiscardInput) -> None:
        self.world.did("discard_restore", "", arg)

    @_defn("discard_disks")
    def discard_disks(self, arg: DiscardInput) -> None:
        self.world.did("discard_disks", "", arg)

    def desk(self) -> list[Callable[..., Any]]:
        """The CommServe's."""
        return [self.open_restore, self.open_disk_restore]

    def control(self) -> list[Callable[..., Any]]:
        """An access node's short ones."""
        return [
            self.prepare_restore,
            self.prepare_in_place,
            self.prepare_disk,
            self.write_vm_files,
            self.register_vm,
            self.finish_vm,
            self.power_on_vm,
            self.switch_disks,
            self.remove_old_disks,
            *self.clean_up(),
        ]

    def clean_up(self) -> list[Callable[..., Any]]:
        """Those that any node can do."""
        return [self.discard_restore, self.discard_disks]
