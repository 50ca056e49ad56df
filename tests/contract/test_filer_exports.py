"""Goal: one suite for every way to open an export: the NFS client on three filers, and a mounted path."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.filer import Filer
from lab.ganesha import Ganesha, GaneshaExport, Version
from safehaul.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    SafehaulError,
    UnsupportedError,
    VmMovedError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import open_export
from safehaul.nas.export import FileKind, NasExport
from tests.ganesha import needs_ganesha

MIB = 2**20
_WAYS = ["rclone", needs_ganesha("ganesha 3"), needs_ganesha("ganesha 4.1"), "mounted"]


class Place:
    """A directory, how to open it as an export, and a wait for what was written over NFS to arrive there."""

    def __init__(self, directory: Path, definition: ExportDefinition, settle: Callable[[], None]) -> None:
        self.directory = directory
        self.definition = definition
        self.settle = settle


def _place(way: str, directory: Path, state: Path, *, writable: bool) -> Iterator[Place]:
    base = ExportDefinition(name="e", remote_hosts=("127.0.0.1",), remote_path="/", writable=writable)
    if way == "mounted":
        mounted = base.model_copy(update={"mounted_at": str(directory)})
        yield Place(directory, mounted, lambda: None)
    elif way == "rclone":
        with Filer(directory, state=state, writable=writable) as filer:
            ports = {"nfs_port": filer.port, "mount_port": filer.port, "reserved_port": False}
            served = base.model_copy(update={"version": "3", **ports})
            yield Place(directory, served, filer.wait_settled)
    else:
        version: Version = "3" if way == "ganesha 3" else "4.1"
        export = GaneshaExport(directory, "/exports/e", (version,), writable=writable, privileged_port=True)
        with Ganesha([export], state=state, versions=(version,)) as ganesha:
            ports = {"nfs_port": ganesha.port} | (
                {"mount_port": ganesha.mount_port} if version == "3" else {}
            )
            served = base.model_copy(update={"version": version, "remote_path": "/exports/e", **ports})
            yield Place(directory, served, lambda: None)


@pytest.fixture(scope="module", params=_WAYS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("export")
    (root / "vm").mkdir()
    yield from _place(request.param, root, tmp_path_factory.mktemp("state"), writable=False)


@pytest.fixture(scope="module", params=_WAYS)
def writable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("restore")
    yield from _place(request.param, root, tmp_path_factory.mktemp("state"), writable=True)


@pytest.fixture
def export(place: Place) -> Iterator[NasExport]:
    with open_export(place.definition) as opened:
        yield opened


@pytest.fixture
def restore(writable: Place) -> Iterator[NasExport]:
    with open_export(writable.definition) as opened:
        yield opened


def test_stat_and_list_tell_what_is_there(
    export: NasExport, place: Place, request: pytest.FixtureRequest
) -> None:
    (place.directory / "vm" / "Größe 虚拟.vmx").write_bytes(b"abc")
    (place.directory / "vm" / "sub").mkdir(exist_ok=True)
    entries = {entry.name: entry.stat for entry in export.list("vm")}
    assert entries["Größe 虚拟.vmx"].kind is FileKind.FILE
    assert entries["sub"].kind is FileKind.DIRECTORY
    found = export.stat("vm/Größe 虚拟.vmx")
    real = (place.directory / "vm" / "Größe 虚拟.vmx").stat()
    assert (found.size_bytes, found.mtime_ns, found.uid) == (3, real.st_mtime_ns, real.st_uid)
    # rclone numbers files anew at each look-up; everybody else's number proves that a file is still the same.
    assert found.file_id == (None if "rclone" in request.node.name else real.st_ino)
    assert [entry.name for entry in export.list()] == ["vm"]
    assert 0 < export.free_bytes() <= 2**60


def test_reads_fill_the_buffer_at_any_offset(export: NasExport, place: Place) -> None:
    content = os.urandom(5 * MIB + 17)
    (place.directory / "vm" / "d-flat.vmdk").write_bytes(content)
    file = export.open_read("vm/d-flat.vmdk")
    assert file.size_bytes == len(content)
    for offset, length in [(0, len(content)), (17, 4 * MIB), (len(content) - 1, 1), (3, 0), (511, 513)]:
        buffer = bytearray(length)
        assert file.read_into(offset, buffer) == length
        assert buffer == content[offset : offset + length]
    assert export.bytes_read == len(content) + 4 * MIB + 1 + 513
    part = memoryview(bytearray(100))
    file.read_into(1000, part[10:20])
    assert bytes(part) == bytes(10) + content[1000:1010] + bytes(80)
    file.close()
    file.close()


def test_threads_share_a_file(export: NasExport, place: Place) -> None:
    content = os.urandom(4 * MIB)
    (place.directory / "vm" / "shared").write_bytes(content)
    file = export.open_read("vm/shared")
    found = bytearray(len(content))

    def read(first: int) -> None:
        for offset in range(first * 65536, len(content), 4 * 65536):
            file.read_into(offset, memoryview(found)[offset : offset + 65536])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == content


def test_a_read_past_the_end_means_that_the_file_changed(export: NasExport, place: Place) -> None:
    (place.directory / "vm" / "short").write_bytes(b"x" * 100)
    file = export.open_read("vm/short")
    for offset, length in [(90, 20), (100, 1), (5000, 1)]:
        with pytest.raises(VmMovedError, match="short"):
            file.read_into(offset, bytearray(length))


def test_small_files_are_limited(export: NasExport, place: Place) -> None:
    (place.directory / "vm" / "vm.vmx").write_bytes(b"x" * 100)
    (place.directory / "vm" / "empty").write_bytes(b"")
    assert export.read_small("vm/vm.vmx", 100) == b"x" * 100
    assert export.read_small("vm/empty", 100) == b""
    with pytest.raises(PolicyError, match="at most 99"):
        export.read_small("vm/vm.vmx", 99)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vm/missing", NotFoundError),
        ("nowhere/x", NotFoundError),
        ("vm", UnsupportedError),
        ("../etc/passwd", InvalidInputError),
        ("/etc/passwd", InvalidInputError),
        ("vm/..", InvalidInputError),
        ("vm//x", InvalidInputError),
        ("", InvalidInputError),
    ],
)
def test_what_cannot_be_opened(export: NasExport, path: str, expected: type[SafehaulError]) -> None:
    with pytest.raises(expected):
        export.open_read(path)


def test_symbolic_links_are_never_followed(export: NasExport, place: Place) -> None:
    """Goal: neither a linked file nor a linked directory is read (rclone does not even show them)."""
    for name, target in [("link", "vm.vmx"), ("outside", "/etc/passwd"), ("directory", "/etc")]:
        link = place.directory / "vm" / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    for path in ("vm/link", "vm/outside", "vm/directory/passwd"):
        with pytest.raises((UnsupportedError, NotFoundError)):
            export.open_read(path)
    with pytest.raises((UnsupportedError, NotFoundError)):
        export.list("vm/directory")


def test_special_files_do_not_hold_us(export: NasExport, place: Place) -> None:
    fifo = place.directory / "vm" / "fifo"
    if not fifo.exists():
        os.mkfifo(fifo)
    with pytest.raises((UnsupportedError, NotFoundError)):
        export.open_read("vm/fifo")


def test_a_reading_definition_never_writes(export: NasExport, place: Place) -> None:
    before = sorted(path.name for path in (place.directory / "vm").iterdir())
    for attempt in (
        lambda: export.create_exclusive("vm/new"),
        lambda: export.open_write("vm/vm.vmx"),
        lambda: export.make_directory_exclusive("new"),
        lambda: export.remove("vm/vm.vmx"),
        lambda: export.remove_directory("vm/sub"),
        lambda: export.rename("vm/vm.vmx", "vm/other"),
    ):
        with pytest.raises(PermissionRefusedError, match="reading only"):
            attempt()
    assert sorted(path.name for path in (place.directory / "vm").iterdir()) == before


def test_files_of_a_closed_export_are_closed(place: Place) -> None:
    (place.directory / "vm" / "left").write_bytes(b"x" * 10)
    with open_export(place.definition) as opened:
        file = opened.open_read("vm/left")
    with pytest.raises(SafehaulError):
        file.read_into(0, bytearray(10))


def test_a_new_file_is_written_and_kept(
    restore: NasExport, writable: Place, request: pytest.FixtureRequest
) -> None:
    restore.make_directory_exclusive("copy")
    content = os.urandom(3 * MIB)
    file = restore.create_exclusive("copy/d.vmdk")
    file.set_size(4 * MIB)
    file.write_at(MIB, content[MIB:])
    file.write_at(0, memoryview(content)[:MIB])
    file.flush()
    file.close()
    file.close()
    assert restore.stat("copy/d.vmdk").size_bytes == 4 * MIB
    writable.settle()
    written = writable.directory / "copy" / "d.vmdk"
    assert written.read_bytes() == content + bytes(MIB)
    # rclone keeps no modes. Elsewhere a disk is for root alone, as ESXi makes it.
    assert written.stat().st_mode & 0o777 == (0o644 if "rclone" in request.node.name else 0o600)


def test_nothing_is_overwritten(restore: NasExport, writable: Place) -> None:
    restore.make_directory_exclusive("once")
    with pytest.raises(AlreadyExistsError):
        restore.make_directory_exclusive("once")
    file = restore.create_exclusive("once/a")
    file.write_at(0, b"keep")
    file.close()
    restore.create_exclusive("once/b").close()
    with pytest.raises(AlreadyExistsError):
        restore.create_exclusive("once/a")
    with pytest.raises(AlreadyExistsError):
        restore.rename("once/b", "once/a")
    writable.settle()
    assert (writable.directory / "once" / "a").read_bytes() == b"keep"


def test_an_interrupted_file_can_be_written_on(restore: NasExport, writable: Place) -> None:
    restore.make_directory_exclusive("again")
    file = restore.create_exclusive("again/a")
    file.write_at(0, b"1111")
    file.close()
    file = restore.open_write("again/a")
    file.write_at(4, b"2222")
    file.close()
    assert restore.read_small("again/a", 100) == b"11112222"
    with pytest.raises(NotFoundError):
        restore.open_write("again/missing")


def test_rename_and_remove(restore: NasExport, writable: Place) -> None:
    restore.make_directory_exclusive("gone")
    restore.create_exclusive("gone/a.part").close()
    restore.rename("gone/a.part", "gone/a")
    assert [entry.name for entry in restore.list("gone")] == ["a"]
    restore.remove("gone/a")
    with pytest.raises(NotFoundError):
        restore.remove("gone/a")
    restore.remove_directory("gone")
    writable.settle()
    assert not (writable.directory / "gone").exists()
