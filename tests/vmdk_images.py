"""Makes virtual disks for tests: descriptors, flat extents and COWD redo logs, written from the format's text alone."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

SECTOR = 512


def descriptor(
    extents: Iterable[str],
    *,
    cid: int = 0x11111111,
    parent_cid: int = 0xFFFFFFFF,
    create_type: str = "vmfs",
    parent: str = "",
    extra: str = "",
) -> str:
    """The text of a descriptor as ESXi writes it."""
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    lines = "\n".join(extents)
    return (
        f'# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID={cid:08x}\nparentCID={parent_cid:08x}\n'
        f'createType="{create_type}"\n{hint}\n# Extent description\n{lines}\n\n'
        f'# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\nddb.virtualHWVersion = "19"\n'
        f'ddb.geometry.cylinders = "1"\nddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\n{extra}'
    )


def flat_disk(directory: Path, name: str, content: bytes, *, cid: int = 0x11111111) -> None:
    """A base disk: `name.vmdk` and `name-flat.vmdk`."""
    (directory / f"{name}-flat.vmdk").write_bytes(content)
    line = f'RW {len(content) // SECTOR} VMFS "{name}-flat.vmdk"'
    (directory / f"{name}.vmdk").write_text(descriptor([line], cid=cid))


def cowd_bytes(sectors: int, grains: Iterable[tuple[int, bytes]], *, grain_sectors: int = 1) -> bytes:
    """A COWD file that stores `grains` (number, content), placed in the order given; tables made at first need."""
    span = grain_sectors * 4096
    tables = -(-sectors // span)
    directory = [0] * tables
    free = 4 + -(-tables * 4 // SECTOR)
    body = bytearray(free * SECTOR)
    entries: dict[int, dict[int, int]] = {}
    for number, content in grains:
        assert len(content) == grain_sectors * SECTOR
        table, entry = divmod(number, 4096)
        if not directory[table]:
            directory[table] = len(body) // SECTOR
            body += bytes(4096 * 4)
            entries[table] = {}
        entries[table][entry] = len(body) // SECTOR
        body += content
    for table, places in entries.items():
        for entry, sector in places.items():
            struct.pack_into("<I", body, directory[table] * SECTOR + entry * 4, sector)
    struct.pack_into(f"<{tables}I", body, 4 * SECTOR, *directory)
    struct.pack_into("<4s7I", body, 0, b"COWD", 1, 3, sectors, grain_sectors, 4, tables, len(body) // SECTOR)
    return bytes(body)


def delta_disk(
    directory: Path,
    name: str,
    sectors: int,
    grains: Iterable[tuple[int, bytes]],
    *,
    parent: str,
    cid: int,
    parent_cid: int,
    grain_sectors: int = 1,
) -> None:
    """A redo log: `name.vmdk` and `name-delta.vmdk`."""
    (directory / f"{name}-delta.vmdk").write_bytes(cowd_bytes(sectors, grains, grain_sectors=grain_sectors))
    line = f'RW {sectors} VMFSSPARSE "{name}-delta.vmdk"'
    text = descriptor(
        [line], create_type="vmfsSparse", parent=f"{parent}.vmdk", cid=cid, parent_cid=parent_cid
    )
    (directory / f"{name}.vmdk").write_text(text)
