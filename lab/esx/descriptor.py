"""The text descriptor of a virtual disk (`x.vmdk`): written as ESXi writes it, and read again for
registration.

Source: VMware "Virtual Disk Format 5.0", "The Descriptor File".
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

MAX_DESCRIPTOR_BYTES = 64 * 1024
NO_PARENT = "ffffffff"
_EXTENT = re.compile(r'^(RW|RDONLY)\s+(\d+)\s+(FLAT|VMFS|VMFSSPARSE|VMFSRDM)\s+"([^"/]+)"(?:\s+0)?\s*$')
_VALUE = re.compile(r'^([A-Za-z0-9_.]+)\s*=\s*"?([^"]*)"?\s*$')
# `virtualMode` first: the compatibility mode of a raw device mapping.
RDM_TYPES = {"virtualMode": "vmfsRawDeviceMap", "physicalMode": "vmfsPassthroughRawDeviceMap"}


class DescriptorError(Exception):
    """The file is no descriptor that the lab understands; the message names the file and the reason."""


class Descriptor(BaseModel):
    """What a descriptor says. `extent_name` is relative to the descriptor's directory."""

    content_id: str
    parent_content_id: str = NO_PARENT
    parent_name: str = ""
    create_type: str
    sectors: int
    extent_name: str
    uuid: str = ""
    adapter: str = "lsilogic"
    hardware_version: str = "19"

    def render(self) -> str:
        """The descriptor's text."""
        extent_type = {"vmfs": "VMFS", "vmfsSparse": "VMFSSPARSE"}.get(self.create_type, "VMFSRDM")
        parent = f'parentFileNameHint="{self.parent_name}"\n' if self.parent_name else ""
        cylinders = min(max(self.sectors // (255 * 63), 1), 65535)
        ddb = ""
        if not self.parent_name:
            ddb = (
                f'ddb.adapterType = "{self.adapter}"\n'
                f'ddb.geometry.cylinders = "{cylinders}"\nddb.geometry.heads = "255"\n'
                'ddb.geometry.sectors = "63"\n'
                f'ddb.uuid = "{_spaced(self.uuid)}"\nddb.virtualHWVersion = "{self.hardware_version}"\n'
            )
        return (
            '# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\n'
            f"CID={self.content_id}\nparentCID={self.parent_content_id}\n"
            f'createType="{self.create_type}"\n{parent}'
            f'\n# Extent description\nRW {self.sectors} {extent_type} "{self.extent_name}"\n'
            f'\n# The Disk Data Base\n#DDB\n\n{ddb}ddb.longContentID = "{self.content_id.rjust(32, "0")}"\n'
        )


def read_descriptor(path: Path) -> Descriptor:
    """Read a descriptor. Errors: DescriptorError, FileNotFoundError."""
    with path.open("rb") as file:
        raw = file.read(MAX_DESCRIPTOR_BYTES + 1)
    if len(raw) > MAX_DESCRIPTOR_BYTES or b"# Disk DescriptorFile" not in raw[:512]:
        raise _refuse(path, "does not begin with '# Disk DescriptorFile'")
    values: dict[str, str] = {}
    extents: list[tuple[int, str]] = []
    for line in raw.decode("utf-8", "replace").splitlines():
        if match := _EXTENT.match(line.strip()):
            extents.append((int(match[2]), match[4]))
        elif match := _VALUE.match(line.strip()):
            values[match[1]] = match[2]
    if len(extents) != 1:
        raise _refuse(path, f"names {len(extents)} extents that the lab can read, not one")
    missing = [key for key in ("CID", "createType") if key not in values]
    if missing:
        raise _refuse(path, f"lacks {missing}")
    if values["createType"] not in {"vmfs", "vmfsSparse", *RDM_TYPES.values()}:
        raise _refuse(path, f"has createType {values['createType']!r}")
    return Descriptor(
        content_id=values["CID"],
        parent_content_id=values.get("parentCID", NO_PARENT),
        parent_name=values.get("parentFileNameHint", ""),
        create_type=values["createType"],
        sectors=extents[0][0],
        extent_name=extents[0][1],
        uuid=re.sub(r"[^0-9a-f]", "", values.get("ddb.uuid", "").lower()),
    )


def _refuse(path: Path, reason: str) -> DescriptorError:
    return DescriptorError(f"{path.name}: not a usable disk descriptor: {reason}")


def _spaced(uuid: str) -> str:
    """VMware's form of a disk's UUID: `60 00 C2 9e … - …` with a dash in the middle."""
    digits = uuid.replace("-", "")
    pairs = [digits[index : index + 2] for index in range(0, len(digits), 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])
