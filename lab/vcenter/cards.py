"""Network cards as `config.hardware.device` tells them, and what a client may change of them."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from lab.esx.api import EditNic, Nic
from lab.esx.objects import SWITCH_UUID
from lab.vcenter.faults import invalid_argument
from lab.vcenter.reflect import moid_of

_CARD = vim.vm.device.VirtualEthernetCard
_PCI_KEY = 100


def network_reference(moref: str) -> Any:
    """The reference of a network: its kind stands in vCenter's own prefix of the moref."""
    if moref.startswith("dvportgroup-"):
        return vim.dvs.DistributedVirtualPortgroup(moref)
    return vim.Network(moref)


def card(nic: Nic) -> Any:
    """The device of a network card."""
    return vim.vm.device.VirtualVmxnet3(
        key=nic.key,
        deviceInfo=vim.Description(label=nic.label, summary=nic.network_name or nic.label),
        backing=_backing(nic),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=nic.connected, allowGuestControl=True, connected=nic.connected, status="ok"
        ),
        controllerKey=_PCI_KEY,
        unitNumber=7 + nic.key % 100,
        addressType=nic.address_type,
        macAddress=nic.mac_address,
        wakeOnLanEnabled=True,
    )


def _backing(nic: Nic) -> Any:
    reference = network_reference(nic.network) if nic.network else None
    if isinstance(reference, vim.dvs.DistributedVirtualPortgroup):
        port = vim.dvs.PortConnection(switchUuid=SWITCH_UUID, portgroupKey=nic.network, portKey="1")
        return _CARD.DistributedVirtualPortBackingInfo(port=port)
    return _CARD.NetworkBackingInfo(deviceName=nic.network_name or nic.label, network=reference)


def edit_of(device: Any) -> EditNic:
    """The change that an `edit` of a card asks for: its network, and whether it connects at power on."""
    backing = device.backing
    network: str | None = None
    if isinstance(backing, _CARD.DistributedVirtualPortBackingInfo):
        if backing.port.switchUuid != SWITCH_UUID:
            raise invalid_argument("deviceChange.device.backing.port", "there is no such distributed switch")
        network = backing.port.portgroupKey
    elif isinstance(backing, _CARD.NetworkBackingInfo) and backing.network is not None:
        network = moid_of(backing.network)
    connected = device.connectable.startConnected if device.connectable is not None else None
    return EditNic(key=device.key, network=network, connected=connected)
