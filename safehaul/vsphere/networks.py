"""The networks of a place, and a restored VM's cards on them: standard networks and distributed port groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pyVmomi import vim

from safehaul.errors import InvalidInputError, NotFoundError
from safehaul.vsphere.client import Session, VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import unescape
from safehaul.vsphere.properties import read_object, read_objects, walk
from safehaul.vsphere.tasks import Heartbeat, no_heartbeat, wait

_Card: Any = vim.vm.device.VirtualEthernetCard
_Portgroup: Any = vim.dvs.DistributedVirtualPortgroup
_DEVICES: Final = "config.hardware.device"
_SHOWN: Final = 20


class Network(NamedTuple):
    """A network that VMs of a place can use."""

    name: str
    moref: str
    switch_uuid: str
    """Of the distributed switch; empty on a standard network."""

    @property
    def kind(self) -> Any:
        """The managed object's class."""
        return _Portgroup if self.switch_uuid else vim.Network


class Card(NamedTuple):
    """A network card as it is now."""

    label: str
    network: str
    mac: str
    connected: bool
    """At power on."""


def networks_of(vcenter: VCenter, compute_moref: str) -> list[Network]:
    """The networks of a cluster or lone host, uplinks left out.

    Raises:
        NotFoundError: no such cluster or host.
    """
    return vcenter.read(lambda session: _networks_of(session, compute_moref))


def _networks_of(session: Session, compute_moref: str) -> list[Network]:
    compute = read_object(session, vim.ComputeResource, compute_moref, ["network"])
    compute.require("network")
    references = compute.get("network") or []
    distributed = [each for each in references if isinstance(each, _Portgroup)]
    standard = [each for each in references if not isinstance(each, _Portgroup)]
    found = [
        Network(unescape(str(each.get("name", ""))), each.moref, "")
        for each in read_objects(session, standard, {vim.Network: ["name"]})
    ]
    switches: dict[str, str] = {}
    for each in read_objects(session, distributed, {_Portgroup: ["name", "config"]}):
        config = each.get("config")
        switch = config.distributedVirtualSwitch if config is not None else None
        if switch is None or config.uplink:
            continue
        if moref(switch) not in switches:
            read = read_object(session, type(switch), moref(switch), ["uuid"])
            switches[moref(switch)] = str(read.get("uuid", ""))
        found.append(Network(unescape(str(each.get("name", ""))), each.moref, switches[moref(switch)]))
    return found


def choose(
    available: Sequence[Network], recorded: Sequence[str], mapping: Mapping[str, str]
) -> list[Network | None]:
    """The network of each card: the mapped one, else that of the recorded name; None for a card that had none.

    Args:
        available: from `networks_of`.
        recorded: each card's network at the backup.
        mapping: recorded name → name to use instead.

    Raises:
        InvalidInputError: names the network that does not exist there, or that no card of the backup uses.
    """
    unused = sorted(set(mapping) - set(recorded))
    if unused:
        used = ", ".join(repr(each) for each in dict.fromkeys(recorded) if each) or "none"
        raise InvalidInputError(
            f"networks: no network card of the backup is on {unused[0]!r}; its networks: {used}"
        )
    return [_chosen(available, name, mapping) for name in recorded]


def _chosen(available: Sequence[Network], recorded: str, mapping: Mapping[str, str]) -> Network | None:
    name = mapping.get(recorded, recorded)
    if not name:
        return None
    found = [each for each in available if each.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        morefs = ", ".join(each.moref for each in found)
        raise InvalidInputError(
            f"networks: there are several networks {name!r} ({morefs}): rename all but one"
        )
    names = sorted({each.name for each in available})
    shown = ", ".join(repr(each) for each in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    advice = "" if recorded in mapping else f': say which one to use instead, as in "{recorded}=NEW"'
    raise InvalidInputError(
        f"networks: there is no network {name!r} where the VM will be{advice}; there are: {shown or 'none'}"
    )


def addresses_in_use(vcenter: VCenter, addresses: Sequence[str]) -> dict[str, str]:
    """Which of these MAC addresses a VM of this vCenter has: address → that VM's name. One walk of the inventory."""
    wanted = {each.casefold() for each in addresses if each}
    found: dict[str, str] = {}
    if not wanted:
        return found

    def look(session: Session) -> None:
        for vm in walk(session, {vim.VirtualMachine: ["name", _DEVICES]}):
            for device in vm.get(_DEVICES) or []:
                mac = str(getattr(device, "macAddress", None) or "").casefold()
                if mac in wanted:
                    found[mac] = unescape(str(vm.get("name", "")))

    vcenter.read(look)
    return found


def cards_of(vcenter: VCenter, vm_moref: str) -> list[Card]:
    """A VM's network cards, in the order of their keys. The network is told by its name in the configuration."""
    return [_card(each) for each in _devices(vcenter, vm_moref)]


def put_cards(
    vcenter: VCenter,
    vm_moref: str,
    chosen: Sequence[Network | None],
    *,
    connect: bool,
    heartbeat: Heartbeat = no_heartbeat,
) -> list[Card]:
    """Puts each card on its network, connected at power on or not. Put already, it is no error.

    Args:
        vcenter: the session.
        vm_moref: a VM that is powered off.
        chosen: each card's network, in the order of the cards' keys; None leaves the card's alone.
        connect: whether the cards are connected at power on.
        heartbeat: told the task's progress.

    Returns:
        The cards as vCenter then shows them.

    Raises:
        NotFoundError: the VM, or one of its cards, is not there.
    """
    devices = _devices(vcenter, vm_moref)
    if len(devices) != len(chosen):
        raise NotFoundError(f"{vm_moref} has {len(devices)} network cards, {len(chosen)} were expected")
    changes = []
    for device, network in zip(devices, chosen, strict=True):
        if network is not None:
            device.backing = _backing(network)
        device.connectable = device.connectable or vim.vm.device.VirtualDevice.ConnectInfo(
            allowGuestControl=True, connected=False
        )
        device.connectable.startConnected = connect
        changes.append(vim.vm.device.VirtualDeviceSpec(operation="edit", device=device))
    if changes:
        spec = vim.vm.ConfigSpec(deviceChange=changes)
        task = vcenter.mutate(
            lambda session: session.managed(vim.VirtualMachine, vm_moref).ReconfigVM_Task(spec)
        )
        wait(vcenter, moref(task), heartbeat)
    names = [each.name if each is not None else "" for each in chosen]
    now = cards_of(vcenter, vm_moref)
    return [card._replace(network=name or card.network) for card, name in zip(now, names, strict=True)]


def _devices(vcenter: VCenter, vm_moref: str) -> list[Any]:
    found = vcenter.read(lambda session: read_object(session, vim.VirtualMachine, vm_moref, [_DEVICES]))
    found.require(_DEVICES)
    return sorted(
        (each for each in found.get(_DEVICES) or [] if isinstance(each, _Card)),
        key=lambda each: int(each.key),
    )


def _card(device: Any) -> Card:
    backing, connectable = device.backing, device.connectable
    port = getattr(backing, "port", None)
    network = (
        str(port.portgroupKey or "") if port is not None else str(getattr(backing, "deviceName", "") or "")
    )
    return Card(
        str(device.deviceInfo.label) if device.deviceInfo else f"device {device.key}",
        network,
        str(device.macAddress or ""),
        bool(connectable.startConnected) if connectable else False,
    )


def _backing(network: Network) -> Any:
    if network.switch_uuid:
        port = vim.dvs.PortConnection(switchUuid=network.switch_uuid, portgroupKey=network.moref)
        return _Card.DistributedVirtualPortBackingInfo(port=port)
    return _Card.NetworkBackingInfo(deviceName=network.name, network=vim.Network(network.moref))
