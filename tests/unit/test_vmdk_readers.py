"""Goal: other programs agree with our reader of chains: qemu-img, libvmdk, and the lab's own writer of redo logs."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pyvmdk

from lab.esx.cowd import CowdExtent as LabCowdExtent
from lab.esx.cowd import create_cowd
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.mounted import MountedExport
from safehaul.vmdk.chain import DiskChain
from tests.vmdk_images import SECTOR, delta_disk, descriptor, flat_disk

SECTORS = 20_000


@contextmanager
def _opened(root: Path, name: str) -> Iterator[DiskChain]:
    definition = ExportDefinition(name="x", remote_hosts=("h",), remote_path="/", mounted_at=str(root))
    with (
        MountedExport(definition) as export,
        DiskChain(DatastoreFiles({"ds": export}), f"[ds] {name}") as chain,
    ):
        yield chain


def _read(root: Path, name: str) -> bytes:
    with _opened(root, name) as chain:
        content = bytearray(chain.capacity_bytes)
        chain.read_into(0, content)
        return bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base and two redo logs, with scattered grains and runs over the borders of grain tables."""
    rng = random.Random(11)
    flat_disk(tmp_path, "d", rng.randbytes(SECTORS * SECTOR), cid=1)
    for number in (1, 2):
        numbers = {*rng.sample(range(SECTORS), 700), *range(4000 * number, 4000 * number + 300)}
        order = list(numbers)
        rng.shuffle(order)
        grains = [(grain, rng.randbytes(SECTOR)) for grain in order]
        parent = "d" if number == 1 else "d-1"
        delta_disk(tmp_path, f"d-{number}", SECTORS, grains, parent=parent, cid=number + 1, parent_cid=number)
    return tmp_path


@pytest.mark.requires_debian("qemu-img", package="qemu-utils")
@pytest.mark.parametrize("name", ["d", "d-1", "d-2"])
def test_qemu_img_reads_the_same(root: Path, name: str) -> None:
    raw = root / "raw"
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", f"{name}.vmdk", str(raw)]
    subprocess.run(command, cwd=root, check=True, timeout=60)
    assert raw.read_bytes() == _read(root, f"{name}.vmdk")


def test_libvmdk_reads_the_same(root: Path) -> None:
    handles: list[pyvmdk.handle] = []
    for name in ("d", "d-1", "d-2"):
        handle = pyvmdk.handle()
        handle.open(str(root / f"{name}.vmdk"))
        handle.open_extent_data_files()
        if handles:
            handle.set_parent(handles[-1])
        handles.append(handle)
    assert handles[-1].read_buffer_at_offset(SECTORS * SECTOR, 0) == _read(root, "d-2.vmdk")
    for handle in reversed(handles):
        handle.close()


def test_what_the_lab_writes_is_read(tmp_path: Path) -> None:
    """Goal: the lab's redo logs, rewritten in place, in any order and killed without a close, read as written."""
    rng = random.Random(5)
    model = bytearray(rng.randbytes(SECTORS * SECTOR))
    flat_disk(tmp_path, "d", bytes(model), cid=1)
    create_cowd(tmp_path / "d-1-delta.vmdk", SECTORS, "d.vmdk")
    line = f'RW {SECTORS} VMFSSPARSE "d-1-delta.vmdk"'
    text = descriptor([line], create_type="vmfsSparse", parent="d.vmdk", cid=2, parent_cid=1)
    (tmp_path / "d-1.vmdk").write_text(text)
    extent = LabCowdExtent(tmp_path / "d-1-delta.vmdk", writable=True)
    for number in range(300):
        first = rng.randrange(SECTORS)
        data = rng.randbytes(min(rng.choice([1, 8, 130]), SECTORS - first) * SECTOR)
        extent.write(first * SECTOR, data)
        model[first * SECTOR : first * SECTOR + len(data)] = data
        if number == 299:
            assert _read(tmp_path, "d-1.vmdk") == model
    extent.close()
    assert _read(tmp_path, "d-1.vmdk") == model
    with _opened(tmp_path, "d-1.vmdk") as chain:
        runs = LabCowdExtent(tmp_path / "d-1-delta.vmdk", writable=False)
        stored = sum(count for _, count, _ in runs.runs())
        runs.close()
        assert sum(end - start for start, end in chain.delta_ranges() or []) == stored * SECTOR
