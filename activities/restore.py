"""RestoreVm's steps for a new VM: its directory on a NAS datastore, its disks, its place in vCenter."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import ValidationError

from activities.beat import keep_alive
from activities.errors import step
from activities.peers import Peers
from activities.restore_io import RestoreIo, remove_quietly, write_file
from safehaul.errors import (
    AlreadyExistsError,
    ConfigError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    UnsupportedError,
)
from safehaul.media.manifest import Manifest
from safehaul.messages.hardware import VmHardware
from safehaul.messages.inventory import NasVolume
from safehaul.messages.restore import (
    CardReport,
    DiscardInput,
    MacPolicy,
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
from safehaul.nas.export import NasExport
from safehaul.nas.paths import parse_datastore_path
from safehaul.vmx import build_vmx
from safehaul.vsphere import networks, privileges, registration, vm_disks
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.networks import Network
from safehaul.vsphere.registration import Place

# Marks a directory as one restore's own, so that a second try goes on in it and a discard removes only that.
MARKER = "safehaul-restore.json"
MARKER_LIMIT_BYTES = 4096
_VMX = "vm.vmx"


class Restores:
    """`restore_disk` runs on a node's streams; the others on its control queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._io = RestoreIo(peers)

    @step("prepare_restore")
    def prepare_restore(self, ref: RestoreRef) -> RestorePlan:
        """Checks all that can be checked, then makes the new VM's directory, with a marker of this restore in it.

        Keyed by the restore's owner: a second run finds its own marker and goes on. Errors: the directory, or a VM
        of that name, exists; a network, folder, … does not; a privilege is missing; an address is another VM's; too
        little space; no export for restores.
        """
        settings, vcenter = ref.settings, self._peers.vcenter(ref.settings.vcenter)
        manifest = self._io.manifest(settings)
        hardware = hardware_of(manifest)
        volume = self._io.volume(settings, None, settings.datastore)
        disks = [
            PlannedDisk(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                path=f"[{settings.datastore}] {settings.name}/{_disk_file(number)}",
            )
            for number, disk in enumerate(manifest.disks)
        ]
        plan = RestorePlan(
            directory=f"[{settings.datastore}] {settings.name}",
            disks=disks,
            missing_disks=missing_disks(manifest),
            warnings=[*manifest.warnings, *_encryption_warnings(hardware)],
            datastore_morefs={volume.datastore: volume.moref},
        )
        place = _find_place(vcenter, settings, volume)
        chosen = _choose_networks(vcenter, place, hardware, settings)
        _require_privileges(vcenter, place, chosen, settings)
        if settings.mac is MacPolicy.KEEP:
            _require_free_addresses(vcenter, hardware)
        registration.refuse_existing(vcenter, place, f"{plan.directory}/{_VMX}", settings.name)
        _build_vmx(ref, plan, hardware, nvram_file="")
        self._io.require_space(volume, sum(disk.capacity_bytes for disk in disks))
        with self._io.export(volume) as export:
            _claim_directory(export, ref)
        return plan

    @step("restore_disk")
    def restore_disk(self, arg: RestoreDiskInput) -> RestoredDisk:
        """Writes one disk as a flat extent with its descriptor, then reads all of it back and compares.

        Every chunk's digest is verified while it is written. A second run begins the disk again, in the same
        file, whose name is this restore's own. Heartbeats with bytes written and compared. Errors: damage, named by
        disk and offset; a byte that the filer gives back differently.
        """
        settings, path = arg.ref.settings, parse_datastore_path(arg.disk.path)
        started = time.monotonic()
        volume = self._io.volume(settings, arg.plan, path.datastore)
        with self._io.export(volume) as export:
            if settings.kind is RestoreKind.NEW_VM:
                _check_own(export, arg.ref)
            if arg.plan.new_directory:
                _make_directory(export, path.directory)
            done = self._io.write_and_compare(settings, arg.disk, volume, export)
        return done.model_copy(update={"seconds": round(time.monotonic() - started, 3)})

    @step("write_vm_files")
    def write_vm_files(self, arg: RestoreStep) -> None:
        """Writes the .vmx, built from the snapshot's own hardware with a new identity, and the .nvram.

        The identity follows from the restore's owner, so a second run writes the same bytes.
        """
        settings = arg.ref.settings
        manifest = self._io.manifest(settings)
        nvram = next((file for file in manifest.files if file.name.endswith(".nvram")), None)
        vmx = _build_vmx(
            arg.ref, arg.plan, hardware_of(manifest), nvram_file="vm.nvram" if nvram is not None else ""
        )
        with (
            self._io.reader(settings) as reader,
            self._io.export(self._io.volume(settings, arg.plan, settings.datastore)) as export,
        ):
            _check_own(export, arg.ref)
            if nvram is not None:
                write_file(export, f"{settings.name}/vm.nvram", reader.read_file(nvram.name))
            write_file(export, f"{settings.name}/{_VMX}", vmx)

    @step("register_vm")
    def register_vm(self, arg: RestoreStep) -> RegisteredVm:
        """Registers the new VM in vCenter, powered off. A second run finds it registered.

        Heartbeats with the task's progress. Errors: a VM of that name exists in the folder.
        """
        settings, vcenter = arg.ref.settings, self._peers.vcenter(arg.ref.settings.vcenter)
        vmx_path = f"{arg.plan.directory}/{_VMX}"
        place = _find_place(vcenter, settings, self._io.volume(settings, arg.plan, settings.datastore))
        known = registration.find_registered(vcenter, vmx_path, place.datacenter_moref)
        moref = (
            known[0] if known else registration.register(vcenter, place, vmx_path, settings.name, keep_alive)
        )
        return RegisteredVm(moref=moref, vmx_path=vmx_path)

    @step("finish_vm")
    def finish_vm(self, arg: RestoreStep) -> RestoredVm:
        """Puts the new VM's cards on their networks, then removes the directory's marker: the restore is committed.

        A second run finds it done. Goes on to its end when cancelled. Errors: the VM has other addresses than the
        policy wants; a network was deleted meanwhile.
        """
        settings, vcenter = arg.ref.settings, self._peers.vcenter(arg.ref.settings.vcenter)
        hardware = hardware_of(self._io.manifest(settings))
        volume = self._io.volume(settings, arg.plan, settings.datastore)
        place = _find_place(vcenter, settings, volume)
        found = registration.find_registered(vcenter, f"{arg.plan.directory}/{_VMX}", place.datacenter_moref)
        if found is None:
            raise NotFoundError(f"{arg.plan.directory}/{_VMX} is not registered any more")
        chosen = _choose_networks(vcenter, place, hardware, settings)
        cards = networks.put_cards(vcenter, found[0], chosen, connect=settings.connect, heartbeat=keep_alive)
        if settings.mac is MacPolicy.KEEP:
            for card, nic in zip(cards, hardware.nics, strict=True):
                if nic.mac and card.mac.casefold() != nic.mac.casefold():
                    raise PolicyError(
                        f"mac: vCenter gave {card.label} the address {card.mac or '(none)'} and not {nic.mac}: "
                        "another VM has it"
                    )
        with self._io.export(volume) as export:
            remove_quietly(export, f"{settings.name}/{MARKER}")
        return RestoredVm(
            moref=found[0],
            vc_guid=f"{vcenter.about().instance_uuid}.{_identity(arg.ref, 'instance')}",
            cards=[CardReport(**card._asdict()) for card in cards],
        )

    @step("power_on_vm")
    def power_on_vm(self, arg: PowerOnInput) -> None:
        """Powers the restored VM on. A second run finds it on. Errors: vCenter's reason, a missing privilege named."""
        vm_disks.power_on(self._peers.vcenter(arg.ref.settings.vcenter), arg.moref, keep_alive)

    @step("discard_restore")
    def discard_restore(self, arg: DiscardInput) -> None:
        """Removes a failed restore's VM and directory, only if the marker says that it is this restore's own.

        A second run goes on. Errors: the VM or a file cannot be removed now.
        """
        settings = arg.ref.settings
        vcenter = self._peers.vcenter(settings.vcenter)
        try:
            volume = self._io.volume(settings, arg.plan, settings.datastore)
            known = registration.find_registered(
                vcenter, f"[{settings.datastore}] {settings.name}/{_VMX}", volume.datacenter_moref
            )
            with self._io.export(volume) as export:
                _discard(export, vcenter, arg.ref, known[0] if known else "")
        except (NotFoundError, UnsupportedError, ConfigError, InvalidInputError):
            # Without a plan: it ended because there is no such datastore or export, or several of that name, so
            # nothing was written.
            if arg.plan is not None:
                raise


def _discard(export: NasExport, vcenter: VCenter, ref: RestoreRef, moref: str) -> None:
    name = ref.settings.name
    try:
        _check_own(export, ref)
    except (NotFoundError, AlreadyExistsError):
        # Nothing of ours is there, or the directory is somebody else's: nothing to remove.
        return
    if moref:
        vm_disks.wait_out_tasks(vcenter, moref, keep_alive)
        registration.unregister(vcenter, moref)
    for entry in [*(each.name for each in export.list(name) if each.name != MARKER), MARKER]:
        keep_alive(entry)
        remove_quietly(export, f"{name}/{entry}")
    export.remove_directory(name)


def hardware_of(manifest: Manifest) -> VmHardware:
    """The VM's configuration at the backup. Raises UnsupportedError for a backup without one."""
    try:
        return VmHardware.model_validate(manifest.hardware)
    except ValidationError:
        raise UnsupportedError(
            f"backup {manifest.backup_id} of VM {manifest.vm_name!r} does not hold the VM's configuration: restore "
            "its disks with `safehaul restore disk`"
        ) from None


def _encryption_warnings(hardware: VmHardware) -> list[str]:
    """What of the VM cannot come back, though its disks can (vmware-facts 22)."""
    if not (hardware.has_vtpm or hardware.key_id):
        return []
    told = (
        "the VM had a virtual TPM or an encrypted home, whose keys are with its key provider: the new VM has "
        "neither, and a guest that seals its disks with the TPM will ask for its recovery key"
    )
    return [told]


def missing_disks(manifest: Manifest) -> list[str]:
    """The disks that the backup skipped, each with its reason."""
    return [f"{item.label}: {item.reason}" for item in manifest.skipped if item.kind == "disk"]


def _find_place(vcenter: VCenter, settings: RestoreSettings, volume: NasVolume) -> Place:
    return registration.find_place(
        vcenter,
        settings.datastore,
        datacenter=volume.datacenter_moref or settings.datacenter,
        folder=settings.folder,
        cluster=settings.cluster,
        resource_pool=settings.resource_pool,
        host=settings.host,
    )


def _choose_networks(
    vcenter: VCenter, place: Place, hardware: VmHardware, settings: RestoreSettings
) -> list[Network | None]:
    recorded = [nic.network for nic in hardware.nics]
    if not recorded and not settings.networks:
        return []
    return networks.choose(networks.networks_of(vcenter, place.compute), recorded, settings.networks)


def _require_privileges(
    vcenter: VCenter, place: Place, chosen: list[Network | None], settings: RestoreSettings
) -> None:
    folder = [*privileges.REGISTER_PRIVILEGES, *privileges.NEW_VM_PRIVILEGES]
    if settings.power_on:
        folder += privileges.POWER_ON_PRIVILEGES
    needs: dict[privileges.Entity, Any] = {
        privileges.entity("Folder", place.folder): folder,
        privileges.entity("ResourcePool", place.pool): privileges.POOL_PRIVILEGES,
    }
    for network in chosen:
        if network is not None:
            needs[privileges.Entity(network.kind, network.moref)] = privileges.NETWORK_PRIVILEGES
    privileges.require(vcenter, needs)


def _require_free_addresses(vcenter: VCenter, hardware: VmHardware) -> None:
    taken = networks.addresses_in_use(vcenter, [nic.mac for nic in hardware.nics])
    if taken:
        named = ", ".join(f"{mac} ({name!r})" for mac, name in sorted(taken.items()))
        raise InvalidInputError(
            f"mac: keep is for a VM whose original is gone, and these addresses are other VMs': {named}: "
            "let the new VM have new ones, or unregister the other first"
        )


def _build_vmx(ref: RestoreRef, plan: RestorePlan, hardware: VmHardware, *, nvram_file: str) -> bytes:
    settings = ref.settings
    return build_vmx(
        hardware,
        name=settings.name,
        uuid_bios=_identity(ref, "bios"),
        instance_uuid=_identity(ref, "instance"),
        disk_files={disk.key: parse_datastore_path(disk.path).name for disk in plan.disks},
        nvram_file=nvram_file,
        keep_mac=settings.mac is MacPolicy.KEEP,
        networks=settings.networks,
    )


def _disk_file(number: int) -> str:
    return "vm.vmdk" if number == 0 else f"vm_{number}.vmdk"


def _identity(ref: RestoreRef, what: str) -> UUID:
    """A UUID of the new VM: the same in every try of this restore, unlike any other VM's."""
    return uuid5(NAMESPACE_URL, f"safehaul:restore:{ref.owner}:{what}")


def _make_directory(export: NasExport, directory: str) -> None:
    try:
        export.make_directory_exclusive(directory)
    except AlreadyExistsError:
        # An earlier try made it. Files in it are never overwritten: the new disk's name is this restore's own.
        return


def _claim_directory(export: NasExport, ref: RestoreRef) -> None:
    name = ref.settings.name
    try:
        export.make_directory_exclusive(name)
    except AlreadyExistsError:
        _check_own(export, ref)
        return
    write_file(export, f"{name}/{MARKER}", json.dumps({"owner": ref.owner}).encode())


def _check_own(export: NasExport, ref: RestoreRef) -> None:
    """Raise AlreadyExistsError unless the directory carries this restore's marker."""
    name = ref.settings.name
    refusal = AlreadyExistsError(
        f"directory [{ref.settings.datastore}] {name} exists and is not this restore's: choose another name"
    )
    try:
        marker = json.loads(export.read_small(f"{name}/{MARKER}", MARKER_LIMIT_BYTES))
    except NotFoundError:
        if export.list(name):
            raise refusal from None
        # An earlier try made the directory and ended before its marker was written.
        write_file(export, f"{name}/{MARKER}", json.dumps({"owner": ref.owner}).encode())
        return
    except ValueError:
        raise refusal from None
    if not isinstance(marker, dict) or marker.get("owner") != ref.owner:
        raise refusal
