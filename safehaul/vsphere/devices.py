"""Virtual hardware: pyVmomi's device objects to our messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pyVmomi import vim

from safehaul.errors import UnsupportedError
from safehaul.messages.hardware import VmController, VmNic
from safehaul.messages.inventory import DiskBacking, VmDisk
from safehaul.vsphere.faults import moref

_Device: Any = vim.vm.device

# vSphere permits 32 snapshots of a disk; a longer chain is damage or an attack.
MAX_CHAIN_DEPTH: Final = 64

# Device class to the name that a .vmx gives it (`scsi0.virtualDev`, `ethernet0.virtualDev`).
_CONTROLLERS: Final[list[tuple[Any, str]]] = [
    (_Device.ParaVirtualSCSIController, "pvscsi"),
    (_Device.VirtualLsiLogicSASController, "lsisas1068"),
    (_Device.VirtualLsiLogicController, "lsilogic"),
    (_Device.VirtualBusLogicController, "buslogic"),
    (_Device.VirtualAHCIController, "ahci"),
    (_Device.VirtualNVMEController, "nvme"),
    (_Device.VirtualIDEController, "ide"),
]
_NICS: Final[list[tuple[Any, str]]] = [
    (_Device.VirtualVmxnet3, "vmxnet3"),
    (_Device.VirtualE1000e, "e1000e"),
    (_Device.VirtualE1000, "e1000"),
    (_Device.VirtualVmxnet2, "vmxnet2"),
    (_Device.VirtualVmxnet, "vmxnet"),
    (_Device.VirtualPCNet32, "vlance"),
    (_Device.VirtualSriovEthernetCard, "sriov"),
]


def disks(devices: Iterable[Any] | None) -> list[VmDisk]:
    """The virtual disks among the devices, in the order of their keys.

    Raises:
        UnsupportedError: a chain deeper than `MAX_CHAIN_DEPTH`.
    """
    found = [_disk(each) for each in devices or [] if isinstance(each, _Device.VirtualDisk)]
    return sorted(found, key=lambda disk: disk.key)


def controllers(devices: Iterable[Any] | None) -> list[VmController]:
    """The disk controllers; USB, serial and other ones carry no disk and are left out."""
    return [
        VmController(
            key=each.key,
            type=name,
            bus=each.busNumber,
            sharing=str(getattr(each, "sharedBus", None) or "noSharing"),
        )
        for each in devices or []
        if (name := _first_name(each, _CONTROLLERS))
    ]


def nics(devices: Iterable[Any] | None, network_names: dict[str, str]) -> list[VmNic]:
    """The network cards.

    Args:
        devices: of a VM's or a snapshot's configuration.
        network_names: moref of a network or distributed port group to its name.
    """
    return [_nic(each, network_names) for each in _cards(devices)]


def network_morefs(devices: Iterable[Any] | None) -> tuple[set[str], set[str]]:
    """Morefs of the networks, and of the distributed port groups, that network cards use."""
    networks, portgroups = set(), set()
    for card in _cards(devices):
        if key := _portgroup_key(card.backing):
            portgroups.add(key)
        elif network := moref(getattr(card.backing, "network", None)):
            networks.add(network)
    return networks, portgroups


def _cards(devices: Iterable[Any] | None) -> list[Any]:
    return [each for each in devices or [] if isinstance(each, _Device.VirtualEthernetCard)]


def _portgroup_key(backing: Any) -> str:
    """The key of a distributed port group, which is its moref too; empty on a standard network."""
    port = getattr(backing, "port", None)
    return str(port.portgroupKey or "") if port is not None else ""


def has_vtpm(devices: Iterable[Any] | None) -> bool:
    """True with a virtual TPM: then the VM's home files are encrypted."""
    return any(isinstance(each, _Device.VirtualTPM) for each in devices or [])


def _first_name(device: Any, table: list[tuple[Any, str]]) -> str:
    return next((name for kind, name in table if isinstance(device, kind)), "")


def _label(device: Any) -> str:
    return str(device.deviceInfo.label) if device.deviceInfo else f"device {device.key}"


def _disk(device: Any) -> VmDisk:
    backing = device.backing
    label = _label(device)
    key_id = getattr(backing, "keyId", None)
    return VmDisk(
        key=device.key,
        label=label,
        capacity_bytes=int(device.capacityInBytes or (device.capacityInKB or 0) * 1024),
        path=str(getattr(backing, "fileName", None) or ""),
        parent_paths=_parent_paths(backing, label),
        backing=_backing_kind(backing),
        mode=str(getattr(backing, "diskMode", None) or "persistent"),
        sharing=str(getattr(backing, "sharing", None) or "sharingNone"),
        uuid=str(getattr(backing, "uuid", None) or ""),
        change_id=str(getattr(backing, "changeId", None) or ""),
        controller_key=device.controllerKey or 0,
        unit_number=device.unitNumber or 0,
        key_id=str(key_id.keyId) if key_id is not None else "",
    )


def _backing_kind(backing: Any) -> DiskBacking:
    if isinstance(backing, _Device.VirtualDisk.RawDiskMappingVer1BackingInfo):
        virtual = backing.compatibilityMode == "virtualMode"
        return DiskBacking.RDM_VIRTUAL if virtual else DiskBacking.RDM_PHYSICAL
    # SeSparse is only the redo log's format: the disk below it is an ordinary one.
    if isinstance(backing, _Device.VirtualDisk.FlatVer2BackingInfo | _Device.VirtualDisk.SeSparseBackingInfo):
        return DiskBacking.FLAT
    return DiskBacking.OTHER


def _parent_paths(backing: Any, label: str) -> list[str]:
    paths: list[str] = []
    parent = getattr(backing, "parent", None)
    while parent is not None:
        if len(paths) >= MAX_CHAIN_DEPTH:
            raise UnsupportedError(
                f"disk {label!r} has a chain of more than {MAX_CHAIN_DEPTH} files: consolidate it"
            )
        paths.append(str(parent.fileName or ""))
        parent = getattr(parent, "parent", None)
    return paths


def _nic(device: Any, network_names: dict[str, str]) -> VmNic:
    backing = device.backing
    key = _portgroup_key(backing)
    opaque = getattr(backing, "opaqueNetworkId", None)
    # The name in the backing is the one at the time of configuration: the network may have another one today.
    today = network_names.get(key) or network_names.get(moref(getattr(backing, "network", None)))
    return VmNic(
        key=device.key,
        label=_label(device),
        type=_first_name(device, _NICS) or "e1000",
        mac=str(device.macAddress or ""),
        address_type=str(device.addressType or ""),
        network=today or str(getattr(backing, "deviceName", None) or opaque or key),
        portgroup_key=key,
        start_connected=bool(device.connectable.startConnected) if device.connectable else True,
        unit_number=device.unitNumber or 0,
    )
