"""Goal: the files that the simulated hosts write are true VMware files, by the judgement of others' readers."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
import pyvmdk

from lab.esx.cowd import CowdError, CowdExtent, create_cowd
from lab.esx.descriptor import Descriptor, DescriptorError, read_descriptor
from lab.esx.home import parse_lines, render_lines, uuid_from_vmx
from lab.esx.paths import HostError, join, resolve, sibling, split

SECTORS = 5 * 1024 * 1024 // 512 + 7


def write_chain(directory: Path, links: int) -> tuple[Path, bytes]:
    """A flat base below `links` redo logs with random writes; the top's descriptor and the true content."""
    source = random.Random(links)
    model = bytearray(source.randbytes(SECTORS * 512))
    (directory / "x-flat.vmdk").write_bytes(model)
    parent = "x.vmdk"
    base = Descriptor(content_id="11111111", create_type="vmfs", sectors=SECTORS, extent_name="x-flat.vmdk")
    (directory / parent).write_text(base.render())
    for number in range(1, links + 1):
        path = directory / f"x-{number:06}-delta.vmdk"
        create_cowd(path, SECTORS, parent)
        extent = CowdExtent(path, writable=True)
        for _ in range(150):
            count = source.choice([8, 8, 8, 1, 3, 100])
            sector = source.randrange(SECTORS - count + 1)
            data = source.randbytes(count * 512)
            extent.write(sector * 512, data)
            model[sector * 512 : (sector + count) * 512] = data
            if source.random() < 0.05:
                extent.close()
                extent = CowdExtent(path, writable=True)
        extent.write((SECTORS - 1) * 512, b"Z" * 512)
        model[-512:] = b"Z" * 512
        extent.close()
        top = Descriptor(
            content_id=f"{number + 1}" * 8,
            parent_content_id=f"{number}" * 8,
            parent_name=parent,
            create_type="vmfsSparse",
            sectors=SECTORS,
            extent_name=path.name,
        )
        parent = f"x-{number:06}.vmdk"
        (directory / parent).write_text(top.render())
    return directory / parent, bytes(model)


@pytest.mark.requires_debian("qemu-img", package="qemu-utils")
def test_qemu_reads_a_chain_of_redo_logs_as_it_was_written(tmp_path: Path) -> None:
    top, model = write_chain(tmp_path, 3)
    raw = tmp_path / "out.raw"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(top), str(raw)], check=True)
    assert raw.read_bytes() == model


def test_libvmdk_reads_a_chain_of_redo_logs_as_it_was_written(tmp_path: Path) -> None:
    _, model = write_chain(tmp_path, 2)
    parent = None
    for name in ("x.vmdk", "x-000001.vmdk", "x-000002.vmdk"):
        handle = pyvmdk.handle()
        handle.open(str(tmp_path / name))
        handle.open_extent_data_files()
        if parent is not None:
            handle.set_parent(parent)
        parent = handle
    assert handle.get_media_size() == len(model)
    assert handle.read_buffer_at_offset(len(model), 0) == model


def test_a_new_redo_log_has_the_documented_header(tmp_path: Path) -> None:
    create_cowd(tmp_path / "d-delta.vmdk", SECTORS, "parent.vmdk")
    raw = (tmp_path / "d-delta.vmdk").read_bytes()
    fields = [int.from_bytes(raw[at : at + 4], "little") for at in range(4, 32, 4)]
    assert raw[:4] == b"COWD"
    assert fields == [1, 3, SECTORS, 1, 4, -(-SECTORS // 4096), 5]
    assert raw[32:44] == b"parent.vmdk\0"
    assert len(raw) == 5 * 512


def test_a_redo_log_holds_only_what_was_written_to_it(tmp_path: Path) -> None:
    create_cowd(tmp_path / "d", 20_000, "p")
    extent = CowdExtent(tmp_path / "d", writable=True)
    extent.write(4095 * 512, b"a" * 1024)  # across two grain tables
    extent.write(7 * 512, b"b" * 512)
    found = [(sector, count) for sector, count, _ in extent.runs()]
    buffer = bytearray(b"." * 4096)
    extent.overlay(buffer, 4 * 512)
    extent.close()
    assert found == [(7, 1), (4095, 1), (4096, 1)]
    assert buffer == b"." * 1536 + b"b" * 512 + b"." * 2048


@pytest.mark.parametrize("offset", [-512, 512 * 100, 100])
def test_a_write_outside_the_disk_or_within_a_sector_is_refused(tmp_path: Path, offset: int) -> None:
    create_cowd(tmp_path / "d", 100, "p")
    extent = CowdExtent(tmp_path / "d", writable=True)
    with pytest.raises(ValueError, match="not within"):
        extent.write(offset, bytes(512))
    extent.close()


def test_a_read_only_extent_cannot_be_written(tmp_path: Path) -> None:
    create_cowd(tmp_path / "d", 100, "p")
    extent = CowdExtent(tmp_path / "d", writable=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        extent.write(0, bytes(512))
    extent.close()


def test_what_is_no_redo_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"KDMV" + bytes(600))
    with pytest.raises(CowdError, match="COWD"):
        CowdExtent(tmp_path / "d", writable=False)


def test_a_descriptor_survives_writing_and_reading(tmp_path: Path) -> None:
    wanted = Descriptor(
        content_id="0badcafe",
        parent_content_id="12345678",
        parent_name="Büro-000001.vmdk",
        create_type="vmfsSparse",
        sectors=77,
        extent_name="Büro-000002-delta.vmdk",
    )
    (tmp_path / "d.vmdk").write_text(wanted.render(), encoding="utf-8")
    assert read_descriptor(tmp_path / "d.vmdk") == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        '# Disk DescriptorFile\nCID=1\ncreateType="vmfs"\n',
        "# Disk DescriptorFile\n" + "x" * 70_000,
    ],
)
def test_a_broken_descriptor_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.vmdk").write_text(text)
    with pytest.raises(DescriptorError):
        read_descriptor(tmp_path / "d.vmdk")


def test_a_vmx_keeps_quotes_pipes_and_unicode(tmp_path: Path) -> None:
    values = {"displayName": '数据库 "main" | 1\nsecond line', "a.b": "x"}
    (tmp_path / "x.vmx").write_bytes(render_lines(values))
    assert parse_lines(tmp_path / "x.vmx") == values
    assert uuid_from_vmx("56 4d 00 11 22 33 44 55-66 77 88 99 aa bb cc dd") == (
        "564d0011-2233-4455-6677-8899aabbccdd"
    )
    assert uuid_from_vmx("56 4d") is None


@pytest.mark.parametrize(
    "path",
    [
        "x/y",
        "[ds] ../../etc/passwd",
        "[ds] a/../../b",
        "[..] x",
        "[ds] a//b",
        "[a/b] c",
        "[ds] ./x",
        "[ds] a\0b",
    ],
)
def test_a_datastore_path_cannot_leave_its_datastore(tmp_path: Path, path: str) -> None:
    (tmp_path / "ds").mkdir()
    with pytest.raises(HostError) as error:
        resolve(tmp_path, path)
    assert error.value.fault.type == "InvalidDatastorePath"


def test_a_symbolic_link_cannot_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "out").symlink_to("/etc")
    with pytest.raises(HostError):
        resolve(tmp_path, "[ds] out/passwd")


def test_datastore_paths_are_taken_apart_and_joined(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    assert split("[ds] a b/x.vmx") == ("ds", "a b/x.vmx")
    assert join("ds", "a b", "x.vmx") == "[ds] a b/x.vmx"
    assert sibling("[ds] a b/x.vmx", "y.vmdk") == "[ds] a b/y.vmdk"
    assert resolve(tmp_path, "[ds] a b/x.vmx") == tmp_path / "ds" / "a b" / "x.vmx"
