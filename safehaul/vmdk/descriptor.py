"""The text descriptor of a virtual disk (`x.vmdk`): untrusted, small, parsed strictly.

Source: VMware, Virtual Disk Format 5.0, "The Descriptor File". Lines are `key=value`, extents
(`access sectors type "name" offset`), comments, or blank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.vmdk.files import SECTOR_BYTES

MAX_DESCRIPTOR_BYTES = 64 * 1024
"""Real ones have under 2 KiB; anything large is another kind of file."""
MAX_EXTENTS = 1024
MAX_DISK_SECTORS = 64 * 2**40 // SECTOR_BYTES
"""vSphere's maximum is 62 TB a disk (Configuration Maximums); beyond 64 TiB the number is nonsense."""
NO_PARENT = 0xFFFFFFFF
"""parentCID of a base disk."""

_SIGNATURE = "# disk descriptorfile"
_KEY_VALUE = re.compile(r"([A-Za-z0-9_.:-]{1,128})\s*=\s*(.*)")
_EXTENT = re.compile(
    r'(RW|RDONLY|NOACCESS)\s+([0-9]{1,20})\s+([A-Z0-9]{1,20})(?:\s+"([^"]*)"(?:\s+([0-9]{1,20}))?)?(?:\s+\S+){0,2}'
)
_CID = re.compile(r"[0-9a-fA-F]{1,8}")
_ENCODING = re.compile(rb'^\s*encoding\s*=\s*"?([A-Za-z0-9._-]{1,40})"?\s*$', re.MULTILINE)
_CODECS = {
    "utf-8": "utf-8",
    "us-ascii": "ascii",
    "windows-1252": "cp1252",
    "iso-8859-1": "latin-1",
    "shift_jis": "shift_jis",
    "windows-31j": "cp932",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "big5": "big5",
    "euc-kr": "euc_kr",
    "windows-949": "cp949",
}
_SINGLE = frozenset({"cid", "parentcid", "createtype", "parentfilenamehint", "version", "encoding"})

_FLAT_TYPES = frozenset(
    {"vmfs", "vmfsthin", "vmfspreallocated", "vmfseagerzeroedthick", "monolithicflat", "twogbmaxextentflat"}
)
_WHY_NOT = {
    "monolithicsparse": "a hosted sparse disk (Workstation), which ESXi does not run from a datastore",
    "twogbmaxextentsparse": "a hosted sparse disk (Workstation), which ESXi does not run from a datastore",
    "streamoptimized": "a compressed export (OVF), not a disk in use",
    "vmfsrdm": "a raw device mapping: its data is on a LUN, not on the filer",
    "vmfsrdmp": "a raw device mapping: its data is on a LUN, not on the filer",
    "vmfsrawdevicemap": "a raw device mapping: its data is on a LUN, not on the filer",
    "vmfspassthroughrawdevicemap": "a raw device mapping: its data is on a LUN, not on the filer",
    "fulldevice": "a physical device",
    "partitioneddevice": "a physical device",
    "vmfsraw": "a physical device",
    "sesparse": "an seSparse redo log, which this version cannot read",
}


class DiskFormat(StrEnum):
    """How one layer of a chain stores its sectors."""

    FLAT = "flat"
    COWD = "vmfsSparse"


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One extent as the descriptor declares it."""

    access: str
    sectors: int
    type: str
    """`VMFS`, `FLAT`, `VMFSSPARSE`, `ZERO`."""
    name: str
    """Plain file name in the descriptor's directory (untrusted); empty for `ZERO`."""
    offset_sectors: int = 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A parsed descriptor of a format that this package reads."""

    create_type: str
    format: DiskFormat
    cid: int
    parent_cid: int
    parent_hint: str
    extents: tuple[ExtentLine, ...]
    database: Mapping[str, str] = field(default_factory=dict)
    """The `ddb.` entries."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Every other key, in lower case."""

    @property
    def sectors(self) -> int:
        """Capacity in sectors of 512 bytes."""
        return sum(extent.sectors for extent in self.extents)

    @property
    def has_parent(self) -> bool:
        """False for a base disk."""
        return self.parent_cid != NO_PARENT


def parse_descriptor(raw: bytes, path: str) -> Descriptor:
    """Parse a descriptor's content; `path` is for messages.

    Raises UnsupportedError for a format that the NAS transport cannot read (it names the format), and
    IntegrityError for a file that is no valid descriptor.
    """
    _refuse_binary(raw, path)
    settings, database, extents = _read_lines(_decode(raw, path), path)
    for key in ("cid", "parentcid", "createtype"):
        if key not in settings:
            raise IntegrityError(f"descriptor {path!r} has no {key}; the file is damaged")
    create_type = settings["createtype"]
    _refuse_features(settings, database, path)
    descriptor = Descriptor(
        create_type=create_type,
        format=_format(create_type, extents, path),
        cid=_cid(settings["cid"], "CID", path),
        parent_cid=_cid(settings["parentcid"], "parentCID", path),
        parent_hint=settings.get("parentfilenamehint", ""),
        extents=extents,
        database=database,
        settings=settings,
    )
    if not 0 < descriptor.sectors <= MAX_DISK_SECTORS:
        raise IntegrityError(
            f"descriptor {path!r} declares {descriptor.sectors} sectors: no possible size of a disk"
        )
    if descriptor.has_parent and descriptor.format is DiskFormat.FLAT:
        raise UnsupportedError(
            f"descriptor {path!r} is a flat disk with a parent: a native snapshot or clone of the array, "
            "which this version does not read"
        )
    return descriptor


def _refuse_binary(raw: bytes, path: str) -> None:
    if len(raw) > MAX_DESCRIPTOR_BYTES:
        raise IntegrityError(
            f"descriptor {path!r} has more than {MAX_DESCRIPTOR_BYTES} bytes: it is no descriptor"
        )
    if raw.startswith(b"KDMV"):
        raise UnsupportedError(
            f"{path!r} is a hosted sparse disk (monolithicSparse or streamOptimized), not ESXi's"
        )
    if raw.startswith((b"COWD", b"\xbe\xba\xfe\xca")):
        raise IntegrityError(f"{path!r} is an extent of a redo log where a descriptor was expected")


def _decode(raw: bytes, path: str) -> str:
    named = _ENCODING.search(raw)
    label = named[1].decode("ascii").lower() if named else "utf-8"
    codec = _CODECS.get(label)
    if codec is None:
        raise UnsupportedError(
            f"descriptor {path!r} has the encoding {label!r}, which this version does not know"
        )
    try:
        text = raw.rstrip(b"\x00").decode(codec)
    except UnicodeDecodeError as error:
        raise IntegrityError(f"descriptor {path!r} is not {label} text at byte {error.start}") from error
    if "\x00" in text or not text.lstrip("\ufeff \t\r\n").lower().startswith(_SIGNATURE):
        raise IntegrityError(f"{path!r} does not begin as a disk descriptor ('# Disk DescriptorFile')")
    return text.lstrip("\ufeff")


def _read_lines(text: str, path: str) -> tuple[dict[str, str], dict[str, str], tuple[ExtentLine, ...]]:
    settings: dict[str, str] = {}
    database: dict[str, str] = {}
    extents: list[ExtentLine] = []
    # Not splitlines(): that also splits at characters that may stand in file names.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        if extent := _EXTENT.fullmatch(content):
            extents.append(_extent(extent, number, path))
            if len(extents) > MAX_EXTENTS:
                raise IntegrityError(f"descriptor {path!r} declares more than {MAX_EXTENTS} extents")
        elif pair := _KEY_VALUE.fullmatch(content):
            key, value = pair[1], _unquote(pair[2])
            if key.lower().startswith("ddb."):
                database[key] = value
            elif key.lower() in _SINGLE and settings.get(key.lower(), value) != value:
                raise IntegrityError(f"descriptor {path!r} has two different values of {key} (line {number})")
            else:
                settings[key.lower()] = value
        else:
            raise IntegrityError(
                f"descriptor {path!r}, line {number}: {content[:80]!r} is no descriptor line"
            )
    return settings, database, tuple(extents)


def _extent(found: re.Match[str], number: int, path: str) -> ExtentLine:
    access, sectors, kind, name, offset = found.groups()
    if kind != "ZERO" and not name:
        raise IntegrityError(f"descriptor {path!r}, line {number}: the extent names no file")
    if access == "NOACCESS":
        raise UnsupportedError(f"descriptor {path!r}, line {number}: the extent {name!r} is marked NOACCESS")
    size, start = int(sectors), int(offset or 0)
    if not 0 < size <= MAX_DISK_SECTORS or start > MAX_DISK_SECTORS:
        raise IntegrityError(
            f"descriptor {path!r}, line {number}: {size} sectors from {start} are impossible"
        )
    return ExtentLine(access=access, sectors=size, type=kind, name=name or "", offset_sectors=start)


def _unquote(text: str) -> str:
    value = text.strip()
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _cid(text: str, key: str, path: str) -> int:
    if not _CID.fullmatch(text):
        raise IntegrityError(
            f"descriptor {path!r} has {key}={text[:20]!r}, which is no 32-bit hexadecimal number"
        )
    return int(text, 16)


def _format(create_type: str, extents: tuple[ExtentLine, ...], path: str) -> DiskFormat:
    kinds = {extent.type for extent in extents}
    if not kinds:
        raise IntegrityError(f"descriptor {path!r} declares no extent")
    key = create_type.lower()
    if "SESPARSE" in kinds:
        raise UnsupportedError(f"descriptor {path!r} is {_WHY_NOT['sesparse']}")
    if key in _FLAT_TYPES and kinds <= {"VMFS", "FLAT", "ZERO"}:
        return DiskFormat.FLAT
    if key == "vmfssparse" and kinds == {"VMFSSPARSE"}:
        return DiskFormat.COWD
    if key in _WHY_NOT:
        raise UnsupportedError(f"descriptor {path!r} has createType {create_type!r}: {_WHY_NOT[key]}")
    raise UnsupportedError(
        f"descriptor {path!r} has createType {create_type!r} with extents of type {', '.join(sorted(kinds))}, "
        "which the NAS transport does not read"
    )


def _refuse_features(settings: Mapping[str, str], database: Mapping[str, str], path: str) -> None:
    filters = next((value for key, value in database.items() if key.lower() == "ddb.iofilters"), "")
    if "crypt" in filters.lower() or "encryptionkeys" in settings or "keysafe" in " ".join(settings):
        raise UnsupportedError(
            f"descriptor {path!r} is of an encrypted disk: its bytes on the filer are ciphertext"
        )
    if settings.get("isnativesnapshot", "no").lower() == "yes":
        raise UnsupportedError(
            f"descriptor {path!r} is a native snapshot of the array (VAAI), which this version does not read"
        )
