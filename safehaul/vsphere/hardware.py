"""`VirtualMachineConfigInfo` to `VmHardware`."""

from __future__ import annotations

import fnmatch
from typing import Any, Final

from safehaul.messages.hardware import VmHardware
from safehaul.vsphere.devices import controllers, disks, has_vtpm, nics
from safehaul.vsphere.names import unescape

# Settings that change how the guest sees its machine. Everything else stays behind: identity, host state,
# other products' marks, and what may hold secrets (guestinfo.*, RemoteDisplay.vnc.*).
_KEPT_SETTINGS: Final = (
    "disk.enableuuid",
    "pcibridge*",
    "*.pcislotnumber",
    "hpet*.present",
    "devices.hotplug",
    "svga.*",
    "mks.enable3d",
    "numa.*",
    "cpuid.*",
    "bios.*",
    "efi.*",
    "isolation.*",
    "monitor_control.*",
    "sched.cpu.latencysensitivity",
    "sched.mem.pin",
    "tools.synctime",
    "time.synchronize.*",
    "vcpu.hotadd",
    "mem.hotadd",
    "usb*.present",
    "ehci*.present",
    "answer.msg.*",
    "vhv.enable",
    "vvtd.enable",
    "windows.vbs.enabled",
)
_DROPPED_SETTINGS: Final = ("*password*", "*.key", "*.ctkenabled", "ctkenabled")
_MAX_SETTINGS: Final = 500
_MAX_VALUE_CHARS: Final = 1024


def hardware(config: Any, network_names: dict[str, str]) -> VmHardware:
    """A snapshot's or a VM's configuration as plain data.

    Args:
        config: `VirtualMachineConfigInfo`.
        network_names: moref of a network or distributed port group to its name.
    """
    machine = config.hardware
    boot = config.bootOptions
    settings = {str(option.key): str(option.value) for option in config.extraConfig or []}
    return VmHardware(
        name=unescape(str(config.name or "")),
        guest_id=str(config.guestId or ""),
        hardware_version=str(config.version or ""),
        cpus=machine.numCPU or 1,
        cores_per_socket=machine.numCoresPerSocket or 1,
        memory_mb=machine.memoryMB or 0,
        firmware=str(config.firmware or "bios"),
        secure_boot=bool(boot.efiSecureBootEnabled) if boot else False,
        uuid_bios=str(config.uuid or ""),
        instance_uuid=str(config.instanceUuid or ""),
        annotation=str(config.annotation or ""),
        vmx_path=str(config.files.vmPathName or "") if config.files else "",
        nvram_file=next((value for key, value in settings.items() if key.lower() == "nvram"), ""),
        change_tracking=bool(config.changeTrackingEnabled),
        has_vtpm=has_vtpm(machine.device),
        key_id=str(config.keyId.keyId) if config.keyId is not None else "",
        controllers=controllers(machine.device),
        disks=disks(machine.device),
        nics=nics(machine.device, network_names),
        extra_config=kept_settings(settings),
        created=config.createDate.isoformat() if getattr(config, "createDate", None) else "",
    )


def kept_settings(settings: dict[str, str]) -> dict[str, str]:
    """The part of `extraConfig` that is worth restoring: bounded, sorted, on one line each."""
    kept: dict[str, str] = {}
    for key, value in sorted(settings.items()):
        lowered = key.lower()
        wanted = any(fnmatch.fnmatchcase(lowered, pattern) for pattern in _KEPT_SETTINGS)
        dropped = any(fnmatch.fnmatchcase(lowered, pattern) for pattern in _DROPPED_SETTINGS)
        printable = key.isprintable() and value.isprintable() and len(value) <= _MAX_VALUE_CHARS
        if wanted and not dropped and printable and len(kept) < _MAX_SETTINGS:
            kept[key] = value
    return kept
