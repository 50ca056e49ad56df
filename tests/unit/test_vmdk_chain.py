"""Goal: a chain is opened only if it is what vCenter and its own files say it is, and never leaks a handle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehaul.errors import (
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PermissionRefusedError,
    UnsupportedError,
    VmMovedError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.mounted import MountedExport
from safehaul.nas.mounted_file import MountedFile
from safehaul.vmdk.chain import MAX_LAYERS, DiskChain
from tests.vmdk_images import SECTOR, delta_disk, descriptor, flat_disk

SECTORS = 4100
BASE = bytes(range(256)) * 2 * SECTORS
GRAIN = b"\xee" * SECTOR


@pytest.fixture
def root(tmp_path: Path) -> Path:
    flat_disk(tmp_path, "d", BASE, cid=1)
    delta_disk(tmp_path, "d-1", SECTORS, [(3, GRAIN), (4097, GRAIN)], parent="d", cid=2, parent_cid=1)
    return tmp_path


@pytest.fixture
def files(root: Path) -> Iterator[DatastoreFiles]:
    definition = ExportDefinition(name="x", remote_hosts=("h",), remote_path="/", mounted_at=str(root))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with MountedExport(definition) as export:
        yield DatastoreFiles({"ds": export})
    # Other parts of the test run may close handles meanwhile; none may have been added.
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_chain_reports_what_it_found(files: DatastoreFiles) -> None:
    with DiskChain(files, "[ds] d-1.vmdk", ["[ds] d.vmdk"], capacity_bytes=len(BASE)) as chain:
        found = chain.verify()
        assert (found.format, found.chain_depth, found.capacity_bytes) == ("vmfsSparse", 2, len(BASE))
        assert [extent.path for extent in found.extents] == ["[ds] d-1-delta.vmdk", "[ds] d-flat.vmdk"]
        assert found.warnings == ()
        assert chain.delta_ranges(0) == [(3 * SECTOR, 4 * SECTOR), (4097 * SECTOR, 4098 * SECTOR)]
        buffer = bytearray(2 * SECTOR)
        chain.read_into(3 * SECTOR, buffer)
        assert buffer == GRAIN + BASE[4 * SECTOR : 5 * SECTOR]
        for offset in (-1, len(BASE) - SECTOR):
            with pytest.raises(ValueError, match="not within the disk"):
                chain.read_into(offset, buffer)


def test_verifying_reads_every_file_since_opening_one_proves_nothing(
    files: DatastoreFiles, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A squashed root may look up and open a flat file, and is refused at its first READ only."""
    read = MountedFile.read_into

    def refuse(file: MountedFile, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        if len(buffer) == SECTOR and file.size_bytes == len(BASE):
            raise PermissionRefusedError("d-flat.vmdk: permission denied")
        return read(file, offset_bytes, buffer)

    with DiskChain(files, "[ds] d-1.vmdk", ["[ds] d.vmdk"]) as chain:
        monkeypatch.setattr(MountedFile, "read_into", refuse)
        with pytest.raises(PermissionRefusedError, match="d-flat"):
            chain.verify()


def test_identities_tell_what_changed(files: DatastoreFiles, root: Path) -> None:
    with DiskChain(files, "[ds] d-1.vmdk", ["[ds] d.vmdk"]) as chain:
        before = chain.identity()
        assert [a.difference(b) for a, b in zip(before, chain.identity(), strict=True)] == [""] * 4
        os.utime(root / "d-flat.vmdk", ns=(1, 1))
        (root / "copy").write_text((root / "d.vmdk").read_text())
        (root / "copy").replace(root / "d.vmdk")
        changes = [a.difference(b) for a, b in zip(before, chain.identity(), strict=True)]
        assert changes[:2] == ["", ""]
        assert "another file has taken its name" in changes[2]
        assert "modification time" in changes[3]
        (root / "d.vmdk").unlink()
        with pytest.raises(NotFoundError):
            chain.identity()


def test_a_file_that_shrinks_while_it_is_read_is_a_move(files: DatastoreFiles, root: Path) -> None:
    with DiskChain(files, "[ds] d.vmdk") as chain:
        os.truncate(root / "d-flat.vmdk", 1000)
        with pytest.raises(VmMovedError, match="byte 1000"):
            chain.read_into(0, bytearray(4096))


def test_cid_mismatch_is_an_integrity_error(files: DatastoreFiles, root: Path) -> None:
    flat_disk(root, "d", BASE, cid=9)
    with pytest.raises(IntegrityError, match=r"00000001.*00000009"):
        DiskChain(files, "[ds] d-1.vmdk", ["[ds] d.vmdk"])


def test_extents_must_be_there_with_the_declared_size(files: DatastoreFiles, root: Path) -> None:
    os.truncate(root / "d-flat.vmdk", len(BASE) + 1)
    with pytest.raises(IntegrityError, match="declares"):
        DiskChain(files, "[ds] d.vmdk")
    (root / "d-flat.vmdk").unlink()
    with pytest.raises(NotFoundError, match="d-flat"):
        DiskChain(files, "[ds] d-1.vmdk")


def test_an_extent_name_cannot_leave_its_directory(files: DatastoreFiles, root: Path) -> None:
    for name in ("../secret", "/etc/passwd", "sub/x"):
        (root / "evil.vmdk").write_text(descriptor([f'RW 8 VMFS "{name}"']))
        with pytest.raises(InvalidInputError):
            DiskChain(files, "[ds] evil.vmdk")


def test_a_symbolic_link_is_not_followed(files: DatastoreFiles, root: Path) -> None:
    (root / "d-flat.vmdk").unlink()
    (root / "d-flat.vmdk").symlink_to("/etc/passwd")
    with pytest.raises(UnsupportedError, match="symbolic link"):
        DiskChain(files, "[ds] d.vmdk")


def test_capacity_must_agree_with_vcenter_and_between_layers(files: DatastoreFiles, root: Path) -> None:
    with pytest.raises(IntegrityError, match="in vCenter"):
        DiskChain(files, "[ds] d.vmdk", capacity_bytes=len(BASE) + SECTOR)
    delta_disk(root, "d-1", SECTORS + 1, [], parent="d", cid=2, parent_cid=1)
    with pytest.raises(IntegrityError, match="its parent"):
        DiskChain(files, "[ds] d-1.vmdk")


def test_the_chain_is_the_one_that_vcenter_tells(files: DatastoreFiles, root: Path) -> None:
    with pytest.raises(IntegrityError, match="vCenter names"):
        DiskChain(files, "[ds] d.vmdk", ["[ds] d-1.vmdk"])
    delta_disk(root, "d-2", SECTORS, [], parent="d-1", cid=3, parent_cid=2)
    with pytest.raises(IntegrityError, match="chain ends there"):
        DiskChain(files, "[ds] d-2.vmdk", ["[ds] d-1.vmdk"])


def test_loops_and_depth_are_bounded(files: DatastoreFiles, root: Path) -> None:
    delta_disk(root, "a", SECTORS, [], parent="b", cid=5, parent_cid=6)
    delta_disk(root, "b", SECTORS, [], parent="a", cid=6, parent_cid=5)
    with pytest.raises(IntegrityError, match="comes back"):
        DiskChain(files, "[ds] a.vmdk")
    for number in range(2, MAX_LAYERS + 1):
        parent = f"d-{number - 1}"
        delta_disk(root, f"d-{number}", SECTORS, [], parent=parent, cid=number + 1, parent_cid=number)
    with DiskChain(files, f"[ds] d-{MAX_LAYERS - 1}.vmdk") as chain:
        assert chain.verify().chain_depth == MAX_LAYERS
    with pytest.raises(UnsupportedError, match="more than 32"):
        DiskChain(files, f"[ds] d-{MAX_LAYERS}.vmdk")


def test_formats_are_told_by_magic_not_by_name(files: DatastoreFiles, root: Path) -> None:
    raw = bytearray((root / "d-1-delta.vmdk").read_bytes())
    raw[:8] = b"\xbe\xba\xfe\xca\x00\x00\x00\x00"
    (root / "d-1-delta.vmdk").write_bytes(raw)
    with pytest.raises(UnsupportedError, match=r"seSparse.*0xcafebabe"):
        DiskChain(files, "[ds] d-1.vmdk")


def test_a_guest_cannot_make_its_flat_disk_look_like_another_format(
    files: DatastoreFiles, root: Path
) -> None:
    content = b"COWD" + BASE[4:]
    flat_disk(root, "d", content, cid=1)
    with DiskChain(files, "[ds] d.vmdk") as chain:
        buffer = bytearray(len(content))
        chain.read_into(0, buffer)
        assert buffer == content


def test_several_extents_and_holes_read_in_order(files: DatastoreFiles, root: Path) -> None:
    (root / "p1").write_bytes(b"xx" * SECTOR + b"1" * 3 * SECTOR)
    (root / "p2").write_bytes(b"2" * 2 * SECTOR)
    lines = ['RW 3 FLAT "p1" 2', "RW 2 ZERO", 'RW 2 FLAT "p2"']
    (root / "m.vmdk").write_text(descriptor(lines, create_type="twoGbMaxExtentFlat"))
    with DiskChain(files, "[ds] m.vmdk") as chain:
        buffer = bytearray(b"\xff" * 7 * SECTOR)
        chain.read_into(0, buffer)
        assert buffer == b"1" * 3 * SECTOR + bytes(2 * SECTOR) + b"2" * 2 * SECTOR
        small = bytearray(2 * SECTOR)
        chain.read_into(2 * SECTOR + 100, small)
        assert small == buffer[2 * SECTOR + 100 : 4 * SECTOR + 100]


def test_an_unclean_redo_log_is_a_warning(files: DatastoreFiles, root: Path) -> None:
    raw = bytearray((root / "d-1-delta.vmdk").read_bytes())
    raw[1648] = 1
    (root / "d-1-delta.vmdk").write_bytes(raw)
    with DiskChain(files, "[ds] d-1.vmdk") as chain:
        assert "not cleanly closed" in chain.verify().warnings[0]
