"""Goal: the lab's filer shows at once what the lab writes, counts what it serves, and keeps what is restored."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.filer import Filer, FilerControl, FilerError
from safehaul.errors import ConnectionLostError, NotFoundError, PermissionRefusedError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.nfs_client import NfsClientExport
from safehaul.vmdk.chain import DiskChain
from tests.vmdk_images import delta_disk, flat_disk

MIB = 2**20


def export_of(filer: Filer, path: str = "/ds1", *, writable: bool = False) -> ExportDefinition:
    return ExportDefinition(
        name=path.strip("/") or "all",
        remote_hosts=("127.0.0.1",),
        remote_path=path,
        version="3",
        nfs_port=filer.port,
        mount_port=filer.port,
        reserved_port=False,
        writable=writable,
        operation_timeout_s=20,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("datastores")
    (directory / "ds1").mkdir()
    (directory / "ds2").mkdir()
    return directory


@pytest.fixture(scope="module")
def filer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filer]:
    with Filer(data, state=tmp_path_factory.mktemp("filer")) as running:
        yield running


def test_it_is_coherent_with_its_directory(filer: Filer, data: Path) -> None:
    filer.assert_coherent()
    assert sorted(path.name for path in data.iterdir()) == ["ds1", "ds2"]


def test_every_datastore_is_an_export_of_its_own(filer: Filer, data: Path) -> None:
    (data / "ds1" / "one").write_bytes(b"1")
    (data / "ds2" / "two").write_bytes(b"2")
    with NfsClientExport(export_of(filer, "/ds1")) as one, NfsClientExport(export_of(filer, "/ds2")) as two:
        assert [entry.name for entry in two.list()] == ["two"]
        assert one.read_small("one", 10) == b"1"
        with pytest.raises(NotFoundError):
            two.stat("one")
    with pytest.raises(NotFoundError, match="no such export"):
        NfsClientExport(export_of(filer, "/ds3"))


def test_served_bytes_are_exact_also_for_concurrent_clients(filer: Filer, data: Path) -> None:
    """Goal: the count that the end-to-end test compares with the report; and parallel clients read right bytes."""
    content = random.Random(7).randbytes(8 * MIB)
    flat_disk(data / "ds1", "busy", content)
    before = filer.served_bytes()
    wrong: list[int] = []

    def read(first: int) -> None:
        with NfsClientExport(export_of(filer)) as export:
            file = export.open_read("busy-flat.vmdk")
            buffer = bytearray(MIB)
            for offset in range(first * MIB, len(content), 2 * MIB):
                file.read_into(offset, buffer)
                if buffer != content[offset : offset + MIB]:
                    wrong.append(offset)

    threads = [threading.Thread(target=read, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert filer.served_bytes() - before == 2 * len(content)


def test_a_frozen_chain_reads_the_same_over_nfs(filer: Filer, data: Path) -> None:
    rng = random.Random(3)
    base = bytearray(rng.randbytes(3 * MIB))
    flat_disk(data / "ds1", "c", bytes(base), cid=1)
    grains = [(number, rng.randbytes(512)) for number in rng.sample(range(3 * MIB // 512), 900)]
    delta_disk(data / "ds2", "c-000001", len(base) // 512, grains, parent="c", cid=2, parent_cid=1)
    for number, grain in grains:
        base[number * 512 : number * 512 + 512] = grain
    with NfsClientExport(export_of(filer, "/ds1")) as one, NfsClientExport(export_of(filer, "/ds2")) as two:
        files = DatastoreFiles({"one": one, "two": two})
        with DiskChain(files, "[two] c-000001.vmdk", ["[one] c.vmdk"], capacity_bytes=len(base)) as chain:
            found = bytearray(len(base))
            chain.read_into(0, found)
            assert found == base
            before = chain.identity()
            # rclone gives a file another id at each look-up: that must not look like a move.
            assert {facts.file_id for facts in before} == {None}
            assert chain.identity() == before


def test_it_survives_a_restart_with_open_handles(data: Path, tmp_path: Path) -> None:
    (data / "ds1" / "held").write_bytes(b"still here")
    with Filer(data, state=tmp_path) as first:
        export = NfsClientExport(export_of(first))
        file = export.open_read("held")
    with Filer(data, state=tmp_path, port=first.port), export:
        buffer = bytearray(10)
        file.read_into(0, buffer)
        assert buffer == b"still here"


def test_a_filer_that_has_gone_is_a_lost_connection(data: Path, tmp_path: Path) -> None:
    """Goal: neither reading nor closing hangs longer than the time-outs, nor hides the cause."""
    with Filer(data, state=tmp_path) as filer:
        (data / "ds1" / "gone").write_bytes(b"x" * 100)
        short = export_of(filer).model_copy(update={"operation_timeout_s": 1.0, "connect_timeout_s": 1.0})
        export = NfsClientExport(short)
        file = export.open_read("gone")
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="'ds1'"), export:
        file.read_into(0, bytearray(100))
    with pytest.raises(ConnectionLostError, match="'ds1'"):
        NfsClientExport(short)
    assert time.monotonic() - started < 25


def test_a_read_only_filer_refuses_to_write(filer: Filer) -> None:
    with NfsClientExport(export_of(filer, writable=True)) as export, pytest.raises(PermissionRefusedError):
        export.make_directory_exclusive("new")


def test_what_is_written_over_nfs_reaches_the_directory(tmp_path: Path) -> None:
    """Goal: a restored file is complete in the directory once settled, with its holes, and reads back at once."""
    (tmp_path / "data").mkdir()
    content = random.Random(5).randbytes(6 * MIB)
    with Filer(tmp_path / "data", state=tmp_path / "state", writable=True) as filer:
        filer.assert_coherent()
        with NfsClientExport(export_of(filer, "/", writable=True)) as export:
            export.make_directory_exclusive("vm copy")
            file = export.create_exclusive("vm copy/d-flat.vmdk")
            file.set_size(9 * MIB)
            for offset in range(0, len(content), MIB):
                file.write_at(offset + MIB, content[offset : offset + MIB])
            file.flush()
            file.close()
            wanted = bytes(MIB) + content + bytes(2 * MIB)
            assert export.read_small("vm copy/d-flat.vmdk", 16 * MIB) == wanted
            filer.wait_settled()
            assert (tmp_path / "data" / "vm copy" / "d-flat.vmdk").read_bytes() == wanted


def test_a_port_in_use_is_told(filer: Filer, data: Path, tmp_path: Path) -> None:
    with pytest.raises(FilerError, match="address already in use"):
        Filer(data, state=tmp_path, port=filer.port).start()


def test_it_runs_as_a_program_and_ends_by_signal(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab.filer", str(data), "--state", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert '"port"' in line
        served = FilerControl(tmp_path).served_bytes()
        assert served > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    pid = int(line.split('"pid": ')[1].split(",")[0])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("rclone is still running")
