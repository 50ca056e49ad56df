"""Virtual hardware as `config.hardware.device` tells it: controllers, disks with chains, network cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim

from lab.esx.api import Backing, Controller, Disk, Hardware
from lab.vcenter.cards import card

DEVICE = vim.vm.device
FindDatastore = Callable[[str], Any]
"""From a datastore's moref or name to its reference."""

_PCI_KEY, _PS2_KEY = 100, 300


def hardware_info(hardware: Hardware, find_datastore: FindDatastore) -> Any:
    """`VirtualHardware` of a VM or of a snapshot."""
    devices = _fixed_devices()
    devices += [_controller(each, hardware.disks) for each in hardware.controllers]
    devices += [_disk(each, find_datastore) for each in hardware.disks]
    devices += [card(each) for each in hardware.nics]
    return vim.vm.VirtualHardware(
        numCPU=hardware.num_cpu,
        numCoresPerSocket=1,
        memoryMB=hardware.memory_mb,
        virtualICH7MPresent=False,
        virtualSMCPresent=False,
        device=devices,
    )


def _fixed_devices() -> list[Any]:
    """What every VM has beside its disks; a client must skip what it does not know."""
    return [
        DEVICE.VirtualPCIController(key=_PCI_KEY, deviceInfo=_label("PCI controller 0"), busNumber=0),
        DEVICE.VirtualPS2Controller(key=_PS2_KEY, deviceInfo=_label("PS2 controller 0"), busNumber=0),
        DEVICE.VirtualKeyboard(key=600, deviceInfo=_label("Keyboard"), controllerKey=_PS2_KEY, unitNumber=0),
        DEVICE.VirtualPointingDevice(
            key=700,
            deviceInfo=_label("Pointing device"),
            controllerKey=_PS2_KEY,
            unitNumber=1,
            backing=DEVICE.VirtualPointingDevice.DeviceBackingInfo(
                deviceName="", hostPointingDevice="autodetect"
            ),
        ),
    ]


def _label(label: str, summary: str = "") -> Any:
    return vim.Description(label=label, summary=summary or label)


def _controller(controller: Controller, disks: list[Disk]) -> Any:
    kinds = {
        "pvscsi": (DEVICE.ParaVirtualSCSIController, "VMware paravirtual SCSI"),
        "lsilogic": (DEVICE.VirtualLsiLogicController, "LSI Logic"),
    }
    kind, summary = kinds[controller.kind]
    return kind(
        key=controller.key,
        deviceInfo=_label(f"SCSI controller {controller.bus_number}", summary),
        controllerKey=_PCI_KEY,
        unitNumber=3 + controller.bus_number,
        busNumber=controller.bus_number,
        device=[each.key for each in disks if each.controller_key == controller.key],
        hotAddRemove=True,
        sharedBus=controller.bus_sharing,
        scsiCtlrUnitNumber=7,
    )


def _disk(disk: Disk, find_datastore: FindDatastore) -> Any:
    return DEVICE.VirtualDisk(
        key=disk.key,
        deviceInfo=_label(disk.label, f"{disk.capacity_bytes // 1024:,} KB"),
        backing=_backing(disk, find_datastore),
        controllerKey=disk.controller_key,
        unitNumber=disk.unit_number,
        capacityInKB=disk.capacity_bytes // 1024,
        capacityInBytes=disk.capacity_bytes,
        diskObjectId=f"1-{disk.key}",
        nativeUnmanagedLinkedClone=False,
        virtualDiskFormat="native_512",
    )


def _backing(disk: Disk, find_datastore: FindDatastore) -> Any:
    """The chain as nested backings: the top first, its base deepest in `parent`."""
    datastore = find_datastore(disk.datastore)
    parent: Any = None
    for link in reversed(disk.chain):
        parent = _link(disk, link, datastore, parent)
    return parent


def _link(disk: Disk, link: Backing, datastore: Any, parent: Any) -> Any:
    common: dict[str, Any] = {
        "fileName": link.path,
        "datastore": datastore,
        "diskMode": disk.mode,
        "uuid": disk.uuid,
        "contentId": link.content_id,
        "changeId": link.change_id,
        "sharing": disk.sharing,
        "parent": parent,
    }
    if link.kind == "cowd":
        common["deltaDiskFormat"] = "redoLogFormat"
    if disk.rdm is not None:
        return DEVICE.VirtualDisk.RawDiskMappingVer1BackingInfo(
            **common,
            lunUuid=disk.uuid.replace("-", ""),
            deviceName=f"vml.{disk.uuid.replace('-', '')}",
            compatibilityMode=disk.rdm,
        )
    key_id = vim.encryption.CryptoKeyId(keyId=disk.key_id) if disk.key_id else None
    return DEVICE.VirtualDisk.FlatVer2BackingInfo(
        **common,
        split=False,
        writeThrough=False,
        thinProvisioned=False,
        eagerlyScrub=False,
        digestEnabled=False,
        keyId=key_id,
    )
