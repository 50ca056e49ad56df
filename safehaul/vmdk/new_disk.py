"""The descriptor of a new flat disk, as a restore writes it. Source: VMware Virtual Disk Format 5.0."""

from __future__ import annotations

import secrets

from safehaul.errors import InvalidInputError
from safehaul.vmdk.files import SECTOR_BYTES

HEADS, SECTORS_PER_TRACK = 255, 63
"""The geometry that ESXi writes for SCSI disks; guests do not use it."""


def flat_descriptor(
    extent_name: str, capacity_bytes: int, *, adapter: str = "lsilogic", uuid: str = ""
) -> bytes:
    """The descriptor of a disk whose only extent is the flat file `extent_name` beside it.

    `uuid`: 32 hexadecimal digits, dashes allowed, which the guest may know the disk by; without one ESXi makes one.
    Raises InvalidInputError when the capacity is not a whole number of sectors, or the name cannot be quoted.
    """
    if capacity_bytes <= 0 or capacity_bytes % SECTOR_BYTES:
        raise InvalidInputError(f"a disk of {capacity_bytes} bytes is not a whole number of sectors")
    if not extent_name or any(char in '"\\/' or ord(char) < 0x20 for char in extent_name):
        raise InvalidInputError(f"extent name {extent_name!a} cannot stand in a descriptor")
    sectors = capacity_bytes // SECTOR_BYTES
    # 0xffffffff and 0xfffffffe mean "no parent" and "unused": never a content id.
    cid = secrets.randbelow(0xFFFFFFFD) + 1
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={cid:08x}",
        "parentCID=ffffffff",
        'createType="vmfs"',
        "",
        "# Extent description",
        f'RW {sectors} VMFS "{extent_name}"',
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        f'ddb.adapterType = "{adapter}"',
        f'ddb.geometry.cylinders = "{max(1, sectors // (HEADS * SECTORS_PER_TRACK))}"',
        f'ddb.geometry.heads = "{HEADS}"',
        f'ddb.geometry.sectors = "{SECTORS_PER_TRACK}"',
        *_uuid_line(uuid),
        'ddb.virtualHWVersion = "14"',
        "",
    ]
    return "\n".join(lines).encode()


def _uuid_line(uuid: str) -> list[str]:
    """VMware's form: sixteen bytes with a dash in the middle. What is no UUID is left out: ESXi makes one."""
    try:
        pairs = [f"{byte:02x}" for byte in bytes.fromhex(uuid.replace("-", ""))]
    except ValueError:
        return []
    return [f'ddb.uuid = "{" ".join(pairs[:8])}-{" ".join(pairs[8:])}"'] if len(pairs) == 16 else []
