"""Goal: descriptors as ESXi writes them are understood; every other kind is refused by its name."""

from __future__ import annotations

import pytest

from safehaul.errors import IntegrityError, SafehaulError, UnsupportedError
from safehaul.vmdk.descriptor import Descriptor, DiskFormat, ExtentLine, parse_descriptor
from tests.vmdk_images import descriptor

PATH = "[ds] vm/vm.vmdk"
FLAT = 'RW 67108864 VMFS "vm-flat.vmdk"'


def _parse(text: str, codec: str = "utf-8") -> Descriptor:
    return parse_descriptor(text.encode(codec), PATH)


def test_a_base_disk() -> None:
    found = _parse(descriptor([FLAT], cid=0xABCDEF01, extra='changeTrackPath="vm-ctk.vmdk"\n'))
    assert found.format is DiskFormat.FLAT
    assert (found.cid, found.has_parent) == (0xABCDEF01, False)
    assert found.extents == (ExtentLine("RW", 67108864, "VMFS", "vm-flat.vmdk", 0),)
    assert found.sectors == 67108864
    assert found.database["ddb.adapterType"] == "lsilogic"
    assert found.settings["changetrackpath"] == "vm-ctk.vmdk"


def test_a_redo_log() -> None:
    text = descriptor(
        ['RW 2048 VMFSSPARSE "vm-000001-delta.vmdk"'],
        cid=2,
        parent_cid=1,
        create_type="vmfsSparse",
        parent="/vmfs/volumes/base/t/t.vmdk",
    )
    found = _parse(text)
    assert found.format is DiskFormat.COWD
    assert (found.parent_cid, found.parent_hint) == (1, "/vmfs/volumes/base/t/t.vmdk")


def test_several_extents_offsets_spaces_and_other_line_ends() -> None:
    lines = ['RW 10 FLAT "a b.vmdk" 5', "RW 6 ZERO", 'RDONLY 4 VMFS "c.vmdk"']
    text = descriptor(lines, create_type="twoGbMaxExtentFlat").replace("\n", "\r\n") + "\x00" * 16
    found = _parse(text)
    assert [extent.offset_sectors for extent in found.extents] == [5, 0, 0]
    assert [extent.name for extent in found.extents] == ["a b.vmdk", "", "c.vmdk"]
    assert found.sectors == 20


@pytest.mark.parametrize(
    ("label", "codec", "name"),
    [
        ("UTF-8", "utf-8", "磁盘"),
        ("windows-1252", "cp1252", "Größe"),
        ("GBK", "gbk", "磁盘"),
        ("Shift_JIS", "shift_jis", "日"),
    ],
)
def test_encodings(label: str, codec: str, name: str) -> None:
    text = descriptor([f'RW 8 VMFS "{name}-flat.vmdk"']).replace('"UTF-8"', f'"{label}"')
    assert _parse(text, codec).extents[0].name == f"{name}-flat.vmdk"


@pytest.mark.parametrize(
    ("create_type", "line", "word"),
    [
        ("seSparse", 'RW 8 SESPARSE "a-sesparse.vmdk"', "seSparse"),
        ("vmfs", 'RW 8 SESPARSE "a-sesparse.vmdk"', "seSparse"),
        ("monolithicSparse", 'RW 8 SPARSE "a.vmdk"', "monolithicSparse"),
        ("streamOptimized", 'RW 8 SPARSE "a.vmdk"', "streamOptimized"),
        ("vmfsPassthroughRawDeviceMap", 'RW 8 VMFSRDM "a-rdmp.vmdk"', "raw device"),
        ("vmfs", 'RW 8 VMFSSPARSE "a.vmdk"', "VMFSSPARSE"),
        ("vmfsSparse", 'RW 8 VMFS "a.vmdk"', "vmfsSparse"),
        ("custom", 'RW 8 FLAT "a.vmdk"', "custom"),
        ("vmfs", 'NOACCESS 8 VMFS "a.vmdk"', "NOACCESS"),
    ],
)
def test_formats_that_cannot_be_read_are_named(create_type: str, line: str, word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        _parse(descriptor([line], create_type=create_type))


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ('ddb.iofilters = "vmwarevmcrypt"\n', "encrypted"),
        ('encryptionKeys = "vmware:key/list"\n', "encrypted"),
        ('isNativeSnapshot="yes"\n', "native snapshot"),
    ],
)
def test_encrypted_and_native_disks_are_refused(extra: str, word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        _parse(descriptor([FLAT], extra=extra))
    _parse(descriptor([FLAT], extra='isNativeSnapshot="no"\n'))


def test_a_flat_disk_with_a_parent_is_a_native_clone() -> None:
    with pytest.raises(UnsupportedError, match="native"):
        _parse(descriptor([FLAT], parent_cid=7, parent="p.vmdk"))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"KDMV\x01\x00\x00\x00", UnsupportedError),
        (b"COWD\x01\x00\x00\x00", IntegrityError),
        (b"\xbe\xba\xfe\xca", IntegrityError),
        (b"", IntegrityError),
        (b"\x00" * 512, IntegrityError),
        (b"# Disk DescriptorFile\n" + b"x" * 70_000, IntegrityError),
    ],
)
def test_other_files_are_told_by_their_magic(raw: bytes, expected: type[SafehaulError]) -> None:
    with pytest.raises(expected):
        parse_descriptor(raw, PATH)


GOOD = descriptor([FLAT])


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("CID=11111111", "CID=xyz"),
        GOOD.replace("CID=11111111\n", ""),
        GOOD.replace("createType", "other"),
        GOOD + "CID=22222222\n",
        GOOD.replace(FLAT, ""),
        GOOD.replace("67108864", "0"),
        GOOD.replace("67108864", "9" * 20),
        GOOD.replace("67108864", "9" * 21),
        GOOD.replace('VMFS "vm-flat.vmdk"', "VMFS"),
        GOOD + "nonsense\n",
        GOOD + "\x00later\n",
        GOOD.replace(FLAT, "\n".join([FLAT] * 1025)),
    ],
)
def test_damaged_descriptors_are_integrity_errors(text: str) -> None:
    with pytest.raises(IntegrityError):
        _parse(text)


def test_text_that_is_not_in_its_encoding_is_refused() -> None:
    with pytest.raises(IntegrityError, match="byte"):
        parse_descriptor(GOOD.encode() + b"# \xff\n", PATH)
    with pytest.raises(UnsupportedError, match="klingon"):
        _parse(GOOD.replace("UTF-8", "klingon"))
