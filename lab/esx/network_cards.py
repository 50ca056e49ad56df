"""A VM's network cards: as a `.vmx` says them, as ReconfigVM changes them, and their MAC addresses.

Addresses, from VMware's "vSphere Networking": vCenter assigns 00:50:56:80:00:00 to 00:50:56:bf:ff:ff and gives an
assigned address up for a new one when another registered VM has it; a static address of VMware's own prefix must lie
in 00:50:56:00:00:00 to 00:50:56:3f:ff:ff, or the VM does not power on; the same static address on two VMs is an event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lab.esx.api import EditNic
from lab.esx.objects import Network, Nic, Vm
from lab.esx.paths import HostError
from lab.esx.world import World

MAX_NICS = 10
_FIRST_KEY = 4000
_FIRST_ASSIGNED, _LAST_ASSIGNED = 0x005056800000, 0x005056BFFFFF
_STATIC = (0x005056000000, 0x0050563FFFFF)
_VMWARE_PREFIXES = (0x005056, 0x000C29)
_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_TYPES = {"vpx": "assigned", "generated": "generated", "static": "manual"}
_WORDS = {meaning: word for word, meaning in _TYPES.items()}


def cards_of(world: World, values: Mapping[str, str]) -> list[Nic]:
    """The cards that a `.vmx` names. A network that the hosts do not have stays a name without a port group."""
    cards = []
    for number in range(MAX_NICS):
        place = f"ethernet{number}"
        if values.get(f"{place}.present", "").upper() != "TRUE":
            continue
        name = values.get(f"{place}.networkName", "")
        portgroup = values.get(f"{place}.dvs.portgroupId", "")
        found = next((each for each in world.site.networks if _is(each, name, portgroup)), None)
        kind = _TYPES.get(values.get(f"{place}.addressType", "generated"), "generated")
        address = values.get(f"{place}.address" if kind == "manual" else f"{place}.generatedAddress", "")
        cards.append(
            Nic.model_validate(
                {
                    "key": _FIRST_KEY + number,
                    "label": f"Network adapter {number + 1}",
                    "network": found.moref if found else "",
                    "network_name": found.name if found else name,
                    "mac_address": address.lower(),
                    "address_type": kind,
                    "address_checked": values.get(f"{place}.checkMACAddress", "").upper() != "FALSE",
                    "connected": values.get(f"{place}.startConnected", "TRUE").upper() == "TRUE",
                }
            )
        )
    return cards


def _is(network: Network, name: str, portgroup: str) -> bool:
    """A standard network is named in the `.vmx`, a distributed one by its port group's key."""
    return network.moref == portgroup if network.switch else bool(name) and network.name == name


def card_values(number: int, nic: Nic, networks: Mapping[str, Network]) -> dict[str, str]:
    """What the `.vmx` says of a card. `networks`: by moref."""
    place = f"ethernet{number}"
    network = networks.get(nic.network)
    values = {f"{place}.present": "TRUE", f"{place}.virtualDev": "vmxnet3"}
    if network is not None and network.switch:
        values[f"{place}.dvs.switchId"] = network.switch
        values[f"{place}.dvs.portgroupId"] = network.moref
    else:
        values[f"{place}.networkName"] = network.name if network is not None else nic.network_name
    values[f"{place}.addressType"] = _WORDS[nic.address_type]
    field = "address" if nic.address_type == "manual" else "generatedAddress"
    values[f"{place}.{field}"] = nic.mac_address
    if not nic.address_checked:
        values[f"{place}.checkMACAddress"] = "FALSE"
    values[f"{place}.startConnected"] = "TRUE" if nic.connected else "FALSE"
    return values


def edit_cards(world: World, vm: Vm, edits: list[EditNic]) -> None:
    """Change cards of a VM that is being edited. Errors: HostError InvalidDeviceSpec, InvalidDeviceBacking."""
    networks = {each.moref: each for each in world.site.networks}
    for index, edit in enumerate(edits):
        nic = next((each for each in vm.hardware.nics if each.key == edit.key), None)
        if nic is None:
            raise HostError(
                "InvalidDeviceSpec", f"{vm.name} has no card with key {edit.key}", deviceIndex=str(index)
            )
        if edit.network is not None:
            if edit.network not in networks:
                raise HostError(
                    "InvalidDeviceBacking", f"no network {edit.network!r}", deviceIndex=str(index)
                )
            nic.network, nic.network_name = edit.network, networks[edit.network].name
        if edit.connected is not None:
            nic.connected = edit.connected


def settle_addresses(world: World, vm: Vm) -> list[tuple[str, str]]:
    """Give each card of a new VM its address; (address, other VM's moref) of the static ones that are twice there.

    Call it with the world's lock held, so that no other VM gets the same address.
    """
    known = {
        nic.mac_address: other.moref
        for other in world.vms.values()
        if other.moref != vm.moref
        for nic in other.hardware.nics
    }
    conflicts = []
    for nic in vm.hardware.nics:
        if nic.address_type == "manual" and nic.mac_address:
            if nic.mac_address in known:
                conflicts.append((nic.mac_address, known[nic.mac_address]))
        elif not nic.mac_address or nic.mac_address in known:
            nic.mac_address = _free_address(set(known))
            nic.address_type = "assigned"
        known.setdefault(nic.mac_address, vm.moref)
    return conflicts


def _free_address(taken: set[str]) -> str:
    for number in range(_FIRST_ASSIGNED, _LAST_ASSIGNED + 1):
        address = ":".join(f"{byte:02x}" for byte in number.to_bytes(6, "big"))
        if address not in taken:
            return address
    raise HostError("GenericVmConfigFault", "vCenter has no MAC address left")


def check_addresses(vm: Vm) -> None:
    """Refuse to power on with a static address that ESXi does not allow. Errors: HostError GenericVmConfigFault."""
    for nic in vm.hardware.nics:
        if nic.address_type != "manual" or not nic.address_checked:
            continue
        number = int(nic.mac_address.replace(":", ""), 16) if _MAC.match(nic.mac_address) else -1
        reserved = number >> 24 in _VMWARE_PREFIXES and not _STATIC[0] <= number <= _STATIC[1]
        if number < 0 or reserved:
            raise HostError(
                "GenericVmConfigFault",
                f"{nic.mac_address!r} of {nic.label} is not an allowed static Ethernet address",
            )
