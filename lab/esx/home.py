"""The small files in a VM's home: `.vmx`, `.vmsd`, `.vmsn`, `.nvram`, `vmware.log`.

The formats are those of ESXi: lines `key = "value"` in UTF-8, with `|XX` for what cannot stand in a value.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from lab.esx.api import Disk, Network, Snapshot, Vm
from lab.esx.network_cards import card_values
from lab.esx.paths import name_of, sibling, split
from lab.esx.world import World, now

MAX_VMX_BYTES = 1024 * 1024
NVRAM_BYTES = 8684
_LINE = re.compile(r'^\s*([A-Za-z0-9_.:]+)\s*=\s*"(.*)"\s*$')
_ESCAPED = re.compile(r"\|([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(r'[|"\x00-\x1f]')
_CONTROLLERS = {"pvscsi": "pvscsi", "lsilogic": "lsilogic"}


def write_home(world: World, vm: Vm) -> None:
    """Write `.vmx`, `.vmsd` and the snapshots' `.vmsn` as the VM is now."""
    _replace(world.local(vm.vmx_path), render_lines(vmx_values(vm, _networks(world))))
    _replace(world.local(_home_file(vm, ".vmsd")), render_lines(vmsd_values(vm)))
    for snapshot in vm.snapshots:
        path = world.local(snapshot.data_path)
        if not path.exists():
            _replace(path, _vmsn(vm, snapshot, _networks(world)))


def make_home(world: World, vm: Vm) -> None:
    """Make the home directory's other files, once."""
    seed = hashlib.sha256(vm.bios_uuid.encode()).digest()
    nvram = b"MRVN" + (seed * (NVRAM_BYTES // len(seed) + 1))[: NVRAM_BYTES - 4]
    _replace(world.local(_home_file(vm, ".nvram")), nvram)
    append_log(world, vm, f"vmx| Log for {vm.name}, {vm.hardware.version}")


def append_log(world: World, vm: Vm, message: str) -> None:
    """Add a line to `vmware.log`."""
    with world.local(sibling(vm.vmx_path, "vmware.log")).open("a", encoding="utf-8") as file:
        file.write(f"{now().isoformat(timespec='milliseconds')} {message}\n")


def vmx_values(vm: Vm, networks: dict[str, Network]) -> dict[str, str]:
    """What the `.vmx` says. `networks`: by moref."""
    hardware = vm.hardware
    values = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": hardware.version.removeprefix("vmx-"),
        "nvram": name_of(_home_file(vm, ".nvram")),
        "displayName": vm.name,
        "annotation": vm.annotation,
        "guestOS": hardware.guest_id,
        "firmware": hardware.firmware,
        "numvcpus": str(hardware.num_cpu),
        "memSize": str(hardware.memory_mb),
        "uuid.bios": _vmware_uuid(vm.bios_uuid),
        "uuid.location": _vmware_uuid(vm.bios_uuid),
        "vc.uuid": _vmware_uuid(vm.instance_uuid),
    }
    if vm.change_tracking_enabled:
        values["ctkEnabled"] = "TRUE"
    for controller in hardware.controllers:
        name = f"scsi{controller.bus_number}"
        values[f"{name}.present"] = "TRUE"
        values[f"{name}.virtualDev"] = _CONTROLLERS[controller.kind]
        if controller.bus_sharing != "noSharing":
            values[f"{name}.sharedBus"] = controller.bus_sharing.removesuffix("Sharing")
    buses = {controller.key: controller.bus_number for controller in hardware.controllers}
    for disk in hardware.disks:
        values |= _disk_values(vm, disk, f"scsi{buses[disk.controller_key]}:{disk.unit_number}")
    for number, nic in enumerate(hardware.nics):
        values |= card_values(number, nic, networks)
    return values | vm.extra_config


def _disk_values(vm: Vm, disk: Disk, slot: str) -> dict[str, str]:
    top = disk.chain[0].path
    near = split(top)[0] == split(vm.vmx_path)[0]
    near = near and split(top)[1].rpartition("/")[0] == split(vm.vmx_path)[1].rpartition("/")[0]
    values = {
        f"{slot}.present": "TRUE",
        f"{slot}.deviceType": "scsi-hardDisk",
        # A disk in the VM's own directory is named by its file alone, another by its full path.
        f"{slot}.fileName": name_of(top) if near else f"/vmfs/volumes/{split(top)[0]}/{split(top)[1]}",
    }
    if disk.mode != "persistent":
        values[f"{slot}.mode"] = disk.mode.replace("_", "-")
    if disk.sharing != "sharingNone":
        values[f"{slot}.sharing"] = "multi-writer"
    if vm.change_tracking_enabled:
        values[f"{slot}.ctkEnabled"] = "TRUE"
    return values


def vmsd_values(vm: Vm) -> dict[str, str]:
    """What the `.vmsd` says: the tree of snapshots."""
    values = {".encoding": "UTF-8", "snapshot.lastUID": str(vm.next_snapshot_number - 1)}
    numbers = {snapshot.moref: snapshot.number for snapshot in vm.snapshots}
    if vm.current_snapshot:
        values["snapshot.current"] = str(numbers[vm.current_snapshot])
    for index, snapshot in enumerate(vm.snapshots):
        name = f"snapshot{index}"
        stamp_us = int(snapshot.create_time.timestamp() * 1_000_000)
        values |= {
            f"{name}.uid": str(snapshot.number),
            f"{name}.filename": name_of(snapshot.data_path),
            f"{name}.displayName": snapshot.name,
            f"{name}.description": snapshot.description,
            f"{name}.createTimeHigh": str(stamp_us >> 32),
            f"{name}.createTimeLow": str(stamp_us & 0xFFFFFFFF),
            f"{name}.numDisks": str(len(snapshot.hardware.disks)),
        }
        if snapshot.parent:
            values[f"{name}.parent"] = str(numbers[snapshot.parent])
        for number, disk in enumerate(snapshot.hardware.disks):
            values[f"{name}.disk{number}.fileName"] = name_of(disk.chain[0].path)
            values[f"{name}.disk{number}.node"] = f"scsi0:{disk.unit_number}"
    values["snapshot.numSnapshots"] = str(len(vm.snapshots))
    return values


def render_lines(values: dict[str, str]) -> bytes:
    """`key = "value"` lines."""
    lines = [
        f'{key} = "{_UNSAFE.sub(lambda found: f"|{ord(found[0]):02X}", value)}"'
        for key, value in values.items()
        if value
    ]
    return ("\n".join(lines) + "\n").encode()


def parse_lines(path: Path) -> dict[str, str]:
    """Read such a file; lines of another form are skipped. Errors: ValueError when it is too large or no
    text.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_VMX_BYTES + 1)
    if len(raw) > MAX_VMX_BYTES:
        message = f"{path.name} is larger than {MAX_VMX_BYTES} bytes"
        raise ValueError(message)
    values = {}
    for line in raw.decode("utf-8").splitlines():
        if match := _LINE.match(line):
            values[match[1]] = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), match[2])
    return values


def uuid_from_vmx(text: str) -> str | None:
    """`56 4d … - …` as a UUID in the usual form, or None when it is none."""
    digits = re.sub(r"[^0-9a-f]", "", text.lower())
    if len(digits) != 32:
        return None
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _vmware_uuid(uuid: str) -> str:
    digits = uuid.replace("-", "")
    pairs = [digits[index : index + 2] for index in range(0, 32, 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def _vmsn(vm: Vm, snapshot: Snapshot, networks: dict[str, Network]) -> bytes:
    """A snapshot's data: a four-byte magic and the configuration. The lab stores no memory."""
    config = vm.model_copy(update={"hardware": snapshot.hardware, "annotation": snapshot.annotation})
    return b"\xd2\xbe\xd2\xbe" + bytes(28) + render_lines(vmx_values(config, networks))


def _networks(world: World) -> dict[str, Network]:
    return {network.moref: network for network in world.site.networks}


def _home_file(vm: Vm, suffix: str) -> str:
    return sibling(vm.vmx_path, name_of(vm.vmx_path).removesuffix(".vmx") + suffix)


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one; `~` is the suffix that ESXi uses too."""
    temporary = path.with_name(path.name + "~")
    temporary.write_bytes(data)
    temporary.replace(path)
