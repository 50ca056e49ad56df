"""Steps of a restore into a VM that exists: over itself (new disks in place of the old ones), or one more disk."""

from __future__ import annotations

from collections import Counter, defaultdict

from activities.beat import keep_alive
from activities.errors import step
from activities.peers import Peers
from activities.restore import missing_disks
from activities.restore_io import RestoreIo, extent_of, remove_quietly
from activities.restore_plan import (
    changes,
    must_be_a_vm,
    must_be_replaceable,
    must_be_still,
    new_name,
    place,
    replacements,
)
from safehaul.errors import (
    InvalidInputError,
    NotFoundError,
    PolicyError,
    SafehaulError,
    UnsupportedError,
)
from safehaul.messages.inventory import VmRecord
from safehaul.messages.restore import (
    CardReport,
    DiscardInput,
    OldDisk,
    OldDisks,
    PlannedDisk,
    RestoredVm,
    RestoreKind,
    RestorePlan,
    RestoreRef,
    RestoreSettings,
    RestoreStep,
)
from safehaul.nas.export import NasExport
from safehaul.nas.paths import DatastorePath, parse_datastore_path
from safehaul.vmdk.descriptor import MAX_DESCRIPTOR_BYTES, parse_descriptor
from safehaul.vsphere import inventory, networks, privileges, vm_disks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.vm_disks import DiskChange
from safehaul.vsphere.vms import vm_config, vm_state


class RestoresInto:
    """Activities of a node's control queue; `discard_disks` of `access-nodes` too."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._io = RestoreIo(peers)

    @step("prepare_in_place")
    def prepare_in_place(self, ref: RestoreRef) -> RestorePlan:
        """Checks that the VM may be restored over itself and plans its new disks. Changes nothing.

        A second run answers the same. Errors: the VM is not there, not off, has snapshots, has another name than was
        confirmed; a disk cannot be replaced; a privilege is missing; too little space; no export for restores.
        """
        settings, vcenter = ref.settings, self._peers.vcenter(ref.settings.vcenter)
        manifest = self._io.manifest(settings)
        vm = vm_disks.find_vm(vcenter, settings.vc_guid, field="backup", heartbeat=keep_alive)
        if vm.name != settings.name:
            raise InvalidInputError(
                f"confirm: the VM of this backup is called {vm.name!r}, not {settings.name!r}: nothing was changed"
            )
        state = vm_state(vcenter, vm.moref)
        must_be_replaceable(vm, state)
        needed = [*privileges.SWITCH_DISK_PRIVILEGES]
        if settings.power_on:
            needed += privileges.POWER_ON_PRIVILEGES
        privileges.require(vcenter, {privileges.entity("VirtualMachine", vm.moref): needed})
        taken = vm_disks.present_places(vcenter, vm.moref)
        planned, warnings = replacements(ref, manifest, vm_config(vcenter, vm.moref), state, set(taken))
        plan = RestorePlan(
            directory=str(parse_datastore_path(vm.vmx_path).parent),
            datastore_morefs=_morefs(
                vcenter, vm, [path for disk in planned for path in (disk.path, disk.replaces)]
            ),
            disks=planned,
            vm_moref=vm.moref,
            vm_name=vm.name,
            vc_guid=vm.vc_guid,
            missing_disks=missing_disks(manifest),
            warnings=[*manifest.warnings, *warnings],
        )
        self._require_space(settings, plan)
        return plan

    @step("prepare_disk")
    def prepare_disk(self, ref: RestoreRef) -> RestorePlan:
        """Finds the VM that gets the disk, a free place on one of its controllers, and the new file's path.

        Changes nothing; a second run may choose another place. Errors: no such VM, or several; it has no readable
        configuration or is a template; no free place; a privilege is missing; no export for restores.
        """
        settings, vcenter = ref.settings, self._peers.vcenter(ref.settings.vcenter)
        manifest = self._io.manifest(settings)
        disk = next(each for each in manifest.disks if each.key == settings.disk_key)
        vm = vm_disks.find_vm(vcenter, settings.name, field="to_vm", heartbeat=keep_alive)
        must_be_a_vm(vm)
        privileges.require(
            vcenter, {privileges.entity("VirtualMachine", vm.moref): privileges.ADD_DISK_PRIVILEGES}
        )
        taken = vm_disks.present_places(vcenter, vm.moref)
        running = vm.power_state != "poweredOff"
        controller, unit = vm_disks.free_place(vm_config(vcenter, vm.moref), set(taken), running=running)
        home = parse_datastore_path(vm.vmx_path).parent
        directory = DatastorePath(settings.datastore or home.datastore, home.relative)
        planned = PlannedDisk(
            key=disk.key,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            path=str(directory.child(new_name(ref, f"{home.name}-{manifest.vm_name}", disk.key))),
            controller_key=controller,
            unit_number=unit,
        )
        plan = RestorePlan(
            directory=str(directory),
            datastore_morefs=_morefs(vcenter, vm, [planned.path]),
            disks=[planned],
            vm_moref=vm.moref,
            vm_name=vm.name,
            vc_guid=vm.vc_guid,
        )
        with self._io.export(self._io.volume(settings, plan, directory.datastore)) as export:
            new_directory = not _exists(export, directory.relative)
        self._require_space(settings, plan)
        return plan.model_copy(update={"new_directory": new_directory})

    @step("switch_disks")
    def switch_disks(self, arg: RestoreStep) -> RestoredVm:
        """Gives the VM its new disks, in one reconfiguration: the restore is committed. The old files stay.

        A second run finds it done. Goes on to its end when cancelled. Errors: the VM was powered on, got a snapshot or
        was changed meanwhile; vCenter refuses.
        """
        plan, vcenter = arg.plan, self._peers.vcenter(arg.ref.settings.vcenter)
        present = vm_disks.present_places(vcenter, plan.vm_moref)
        done = all(present.get(place(disk)) == disk.path for disk in plan.disks)
        if arg.ref.settings.kind is RestoreKind.IN_PLACE and not done:
            must_be_still(vm_state(vcenter, plan.vm_moref), plan)
        vm_disks.change_disks(vcenter, plan.vm_moref, changes(plan), keep_alive)
        state = vm_state(vcenter, plan.vm_moref)
        attached = {disk.path for disk in state.disks}
        lacking = [disk.label for disk in plan.disks if disk.path not in attached]
        if lacking or not plan.vc_guid.endswith(f".{state.instance_uuid}"):
            raise PolicyError(
                f"VM {plan.vm_name!r} is not as the restore made it: {', '.join(lacking) or 'its VC.GUID changed'}: "
                "somebody changed it at the same moment"
            )
        cards = networks.cards_of(vcenter, plan.vm_moref)
        return RestoredVm(
            moref=plan.vm_moref,
            vc_guid=plan.vc_guid,
            cards=[CardReport(**card._asdict()) for card in cards],
        )

    @step("remove_old_disks")
    def remove_old_disks(self, arg: RestoreStep) -> OldDisks:
        """Deletes the files of the disks that were replaced, unless a VM or snapshot still names one of them.

        A second run goes on. What cannot be deleted is told with its reason, and is no error of the step.
        """
        removed: list[OldDisk] = []
        for disk in arg.plan.disks:
            if not disk.replaces:
                continue
            keep_alive(disk.label)
            try:
                self._remove_disk(arg, disk.replaces)
            except SafehaulError as error:  # told in the report: the restore itself is whole
                removed.append(OldDisk(path=disk.replaces, reason=str(error)))
            else:
                removed.append(OldDisk(path=disk.replaces, removed=True))
        return OldDisks(disks=removed)

    @step("discard_disks")
    def discard_disks(self, arg: DiscardInput) -> None:
        """Gives the VM its old disks back, should it have new ones, then removes the new files.

        A second run goes on. Errors: the VM cannot be changed now; a VM names a new file.
        """
        plan = arg.plan
        if plan is None:
            return
        vcenter = self._peers.vcenter(arg.ref.settings.vcenter)
        _give_back(vcenter, plan)
        by_datastore: dict[str, list[DatastorePath]] = defaultdict(list)
        for disk in plan.disks:
            path = parse_datastore_path(disk.path)
            by_datastore[path.datastore] += [path, extent_of(path)]
        for datastore, paths in by_datastore.items():
            volume = self._io.volume(arg.ref.settings, plan, datastore)
            user = vm_disks.named_by_vms(vcenter, volume.moref, [str(path) for path in paths])
            if user:
                raise PolicyError(
                    f"VM {user} has one of {', '.join(map(str, paths))}: detach it, then delete it"
                )
            with self._io.export(volume) as export:
                for path in paths:
                    keep_alive(path.name)
                    remove_quietly(export, path.relative)
                if plan.new_directory and not _entries(export, paths[0].directory):
                    export.remove_directory(paths[0].directory)

    def _require_space(self, settings: RestoreSettings, plan: RestorePlan) -> None:
        needed: Counter[str] = Counter()
        for disk in plan.disks:
            needed[parse_datastore_path(disk.path).datastore] += disk.capacity_bytes
        for datastore, needed_bytes in needed.items():
            self._io.require_space(self._io.volume(settings, plan, datastore), needed_bytes)

    def _remove_disk(self, arg: RestoreStep, descriptor: str) -> None:
        path, settings = parse_datastore_path(descriptor), arg.ref.settings
        volume = self._io.volume(settings, arg.plan, path.datastore)
        with self._io.export(volume) as export:
            if not _exists(export, path.relative):
                return
            parsed = parse_descriptor(export.read_small(path.relative, MAX_DESCRIPTOR_BYTES), descriptor)
            if parsed.has_parent:
                raise UnsupportedError("it is a linked clone's: delete it in the datastore browser")
            names = [extent.name for extent in parsed.extents]
            tracked = parsed.settings.get("changetrackpath", "")
            files = [path.sibling(name) for name in [*names, *([tracked] if tracked else [])]]
            everything = [path, *files]
            user = vm_disks.named_by_vms(
                self._peers.vcenter(settings.vcenter), volume.moref, [str(each) for each in everything]
            )
            if user:
                raise PolicyError(f"VM {user} still names it")
            # The descriptor goes last: without it a second run would not know the others.
            for each in [*files, path]:
                remove_quietly(export, each.relative)


def _morefs(vcenter: VCenter, vm: VmRecord, paths: list[str]) -> dict[str, str]:
    """Which datastores the names in some paths of the VM mean: those of its datacentre. Raises NotFoundError."""
    known = {volume.datastore: volume.moref for volume in inventory.volumes_of_vm(vcenter, vm.moref)}
    named = {parse_datastore_path(path).datastore for path in paths if path}
    for name in sorted(named - known.keys()):
        raise NotFoundError(f"datastore: the datacentre of VM {vm.name!r} has no datastore {name!r}")
    return {name: known[name] for name in named}


def _give_back(vcenter: VCenter, plan: RestorePlan) -> None:
    """Undo the switch, wholly or not at all, when the VM has any of the new disks."""
    try:
        vm_disks.wait_out_tasks(vcenter, plan.vm_moref, keep_alive)
        present = vm_disks.present_places(vcenter, plan.vm_moref)
    except NotFoundError:
        # The VM is gone from vCenter: nothing of it can be changed back.
        return
    new = {disk.path for disk in plan.disks}
    if new.isdisjoint(present.values()):
        return
    back = [
        DiskChange(change.controller_key, change.unit_number, change.new_path, change.old_path)
        for change in changes(plan)
    ]
    vm_disks.change_disks(vcenter, plan.vm_moref, back, keep_alive)


def _exists(export: NasExport, path: str) -> bool:
    try:
        export.stat(path)
    except NotFoundError:
        return False
    return True


def _entries(export: NasExport, directory: str) -> list[str]:
    try:
        return [entry.name for entry in export.list(directory)]
    except NotFoundError:
        # It was never made: as good as one that holds something, for there is nothing to remove.
        return ["?"]
