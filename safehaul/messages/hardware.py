"""A VM's virtual hardware as its snapshot froze it: enough to write a .vmx for a restore."""

from __future__ import annotations

from pydantic import Field

from safehaul.messages.base import Message
from safehaul.messages.inventory import VmDisk


class VmController(Message):
    """A disk controller."""

    key: int
    """`VmDisk.controller_key` points here."""
    type: str
    """As a .vmx names it: `pvscsi`, `lsilogic`, `lsisas1068`, `buslogic`, `ahci`, `nvme`, `ide`."""
    bus: int
    """Bus number: the 0 of `scsi0`, `sata0`, `nvme0`, `ide0`."""
    sharing: str = "noSharing"
    """`noSharing`, `virtualSharing` or `physicalSharing`."""


class VmNic(Message):
    """A network card."""

    key: int
    label: str = ""
    type: str = "vmxnet3"
    """As a .vmx names it: `vmxnet3`, `e1000`, `e1000e`, `vmxnet2`, `vmxnet`, `vlance`, `sriov`."""
    mac: str = ""
    address_type: str = ""
    """`assigned` (by vCenter), `generated` (by the host) or `manual`."""
    network: str = ""
    """Name of the port group or network."""
    portgroup_key: str = ""
    """Not empty on a distributed switch."""
    start_connected: bool = True
    unit_number: int = 0


class VmHardware(Message):
    """`config` of a snapshot, as plain data. Names, paths and values are untrusted."""

    name: str
    guest_id: str = ""
    hardware_version: str = ""
    """`vmx-19`."""
    cpus: int = 1
    cores_per_socket: int = 1
    memory_mb: int = 0
    firmware: str = "bios"
    """`bios` or `efi`."""
    secure_boot: bool = False
    uuid_bios: str = ""
    instance_uuid: str = ""
    annotation: str = ""
    vmx_path: str = ""
    """Datastore path of the .vmx at the time of the snapshot."""
    nvram_file: str = ""
    """File name relative to the .vmx, from `extraConfig`; empty when none is named."""
    change_tracking: bool = False
    has_vtpm: bool = False
    key_id: str = ""
    """Not empty: the VM's home files are encrypted by vSphere."""
    controllers: list[VmController] = Field(default_factory=list)
    disks: list[VmDisk] = Field(default_factory=list)
    nics: list[VmNic] = Field(default_factory=list)
    extra_config: dict[str, str] = Field(default_factory=dict)
    """Settings worth restoring; identity, host-bound and possibly secret ones are left out."""
    created: str = ""
    """When the VM was created, ISO 8601, vCenter's clock; empty before vSphere 6.7."""
