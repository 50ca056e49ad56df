"""The .vmx of a restored VM, built from the snapshot's own hardware: never a copy of the source's .vmx.

The source's .vmx is from after the snapshot and names its redo logs; a copy also needs an identity of its own, or
two VMs share one VC.GUID (vmware-facts 21). Format: lines of `key = "value"`; a quote, a backslash or a control
character in a value is written `|HH`, as VMware products do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from safehaul.errors import UnsupportedError
from safehaul.messages.hardware import VmController, VmHardware, VmNic

# Bound to the old place, the old host or the old identity; written anew or left to the host.
DROPPED_PREFIXES = (
    "uuid.",
    "vc.",
    "sched.swap.",
    "ctkenabled",
    "migrate.",
    "vmotion.",
    "numa.autosize.",
    "cleanshutdown",
    "checkpoint.",
    "replay.",
    "guestinfo.",
)
_SCSI_TYPES = {"pvscsi", "lsilogic", "lsisas1068", "buslogic"}
_BUS_PREFIX = {"ahci": "sata", "nvme": "nvme", "ide": "ide"}
_PREFIX_SLOTS = {"scsi": 4, "sata": 4, "nvme": 4, "ide": 2}


def build_vmx(
    hardware: VmHardware,
    *,
    name: str,
    uuid_bios: UUID,
    instance_uuid: UUID,
    disk_files: Mapping[int, str],
    nvram_file: str = "",
    keep_mac: bool = False,
    networks: Mapping[str, str] | None = None,
) -> bytes:
    """The new VM's .vmx as UTF-8.

    Args:
        hardware: the snapshot's `config`.
        name: the new VM's display name.
        uuid_bios: the new VM's SMBIOS UUID.
        instance_uuid: the new VM's instanceUuid (`vc.uuid`).
        disk_files: disk key → descriptor's file name beside the .vmx; other disks are left out.
        nvram_file: file name beside the .vmx; empty when there is none.
        keep_mac: True keeps the network cards' addresses; else vCenter makes new ones.
        networks: recorded network → the one that a card gets instead.

    Raises:
        UnsupportedError: a disk hangs on a controller that the backup does not describe.
    """
    lines: dict[str, str] = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": hardware.hardware_version.removeprefix("vmx-") or "14",
        "displayName": name,
        "guestOS": hardware.guest_id.removesuffix("Guest") or "other",
        "numvcpus": str(hardware.cpus),
        "cpuid.coresPerSocket": str(hardware.cores_per_socket),
        "memSize": str(hardware.memory_mb or 4),
        "firmware": hardware.firmware,
        "uuid.bios": _vmx_uuid(uuid_bios),
        "vc.uuid": _vmx_uuid(instance_uuid),
        "uuid.action": "keep",
        "pciBridge0.present": "TRUE",
        "annotation": hardware.annotation,
    }
    if hardware.secure_boot:
        lines["uefi.secureBoot.enabled"] = "TRUE"
    if nvram_file:
        lines["nvram"] = nvram_file
    lines |= _controllers(hardware.controllers)
    lines |= _disks(hardware, disk_files)
    for number, nic in enumerate(hardware.nics):
        network = (networks or {}).get(nic.network, nic.network)
        lines |= _nic(f"ethernet{number}", nic, network, keep_mac=keep_mac)
    known = {key.casefold() for key in lines}
    for key, value in sorted(hardware.extra_config.items()):
        folded = key.casefold()
        if folded not in known and not folded.startswith(DROPPED_PREFIXES) and _plain_key(key):
            lines[key] = value
    return "".join(f'{key} = "{_escape(value)}"\n' for key, value in lines.items() if value).encode()


def parse_vmx(data: bytes) -> dict[str, str]:
    """The settings of a .vmx, keys in lower case. Lines that are no setting are passed over."""
    settings: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            settings[key.strip().casefold()] = _unescape(value.strip().strip('"'))
    return settings


def _controllers(controllers: Iterable[VmController]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for controller in controllers:
        place = _place(controller)
        if place is None:
            continue
        lines[f"{place}.present"] = "TRUE"
        if controller.type in _SCSI_TYPES:
            lines[f"{place}.virtualDev"] = controller.type
            # Sharing was for a cluster of VMs; a restored single VM does not share its bus.
            lines[f"{place}.sharedBus"] = "none"
    return lines


def _disks(hardware: VmHardware, disk_files: Mapping[int, str]) -> dict[str, str]:
    places = {controller.key: _place(controller) for controller in hardware.controllers}
    lines: dict[str, str] = {}
    for disk in hardware.disks:
        if disk.key not in disk_files:
            continue
        place = places.get(disk.controller_key)
        if place is None:
            raise UnsupportedError(
                f"{disk.label} of VM {hardware.name!r} hangs on controller {disk.controller_key}, which the "
                "backup does not describe: restore the disk alone with `safehaul restore disk`"
            )
        slot = f"{place}:{disk.unit_number}"
        lines[f"{slot}.present"] = "TRUE"
        lines[f"{slot}.fileName"] = disk_files[disk.key]
        lines[f"{slot}.deviceType"] = "disk" if place.startswith("ide") else "scsi-hardDisk"
        if place.startswith(("sata", "nvme")):
            lines[f"{slot}.deviceType"] = "disk"
    return lines


def _nic(place: str, nic: VmNic, network: str, *, keep_mac: bool) -> dict[str, str]:
    """A card on its network, not connected: two copies of one VM on one network harm both.

    ESXi refuses a static address of VMware's own ranges: one that vCenter had assigned stays an assigned one, and
    for one that a host had generated the check is switched off.
    """
    lines = {
        f"{place}.present": "TRUE",
        f"{place}.virtualDev": nic.type,
        f"{place}.networkName": network,
        f"{place}.startConnected": "FALSE",
    }
    if not (keep_mac and nic.mac):
        lines[f"{place}.addressType"] = "vpx"
    elif nic.address_type.casefold() == "assigned":
        lines |= {f"{place}.addressType": "vpx", f"{place}.generatedAddress": nic.mac}
    else:
        lines |= {f"{place}.addressType": "static", f"{place}.address": nic.mac}
        if nic.address_type.casefold() != "manual":
            lines[f"{place}.checkMACAddress"] = "FALSE"
    return lines


def _place(controller: VmController) -> str | None:
    prefix = "scsi" if controller.type in _SCSI_TYPES else _BUS_PREFIX.get(controller.type)
    if prefix is None or not 0 <= controller.bus < _PREFIX_SLOTS[prefix]:
        return None
    return f"{prefix}{controller.bus}"


def _vmx_uuid(uuid: UUID) -> str:
    """VMware's form: `56 4d 1e … - …`, sixteen bytes with a dash in the middle."""
    pairs = [f"{byte:02x}" for byte in uuid.bytes]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def _plain_key(key: str) -> bool:
    return bool(key) and len(key) <= 200 and all(char.isalnum() or char in "._:-" for char in key)


def _escape(value: str) -> str:
    return "".join(f"|{ord(char):02X}" if char in '"|\\' or ord(char) < 0x20 else char for char in value)


def _unescape(value: str) -> str:
    parts = value.split("|")
    text = parts[0]
    for part in parts[1:]:
        try:
            text += chr(int(part[:2], 16)) + part[2:]
        except ValueError:
            text += "|" + part
    return text
