"""Goal: a random chain of redo logs over a flat base reads exactly as the model says, whatever is asked of it."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.mounted import MountedExport
from safehaul.vmdk.chain import DiskChain
from tests.vmdk_images import SECTOR, delta_disk, flat_disk


def _build(directory: Path, rng: random.Random, sectors: int, layers: int, grain_sectors: int) -> bytes:
    model = bytearray(rng.randbytes(sectors * SECTOR))
    flat_disk(directory, "d", bytes(model), cid=1)
    for number in range(1, layers):
        grain_bytes = grain_sectors * SECTOR
        total = -(-sectors // grain_sectors)
        grains: dict[int, bytes] = {}
        for _ in range(rng.randint(0, 6)):
            start = rng.randrange(total)
            run = range(start, min(total, start + rng.choice([1, 2, 7, 300])))
            order = list(run)
            if rng.random() < 0.5:
                rng.shuffle(order)
            for grain in order[:: rng.choice([1, 2])]:
                content = rng.randbytes(grain_bytes)
                grains[grain] = content
        for grain, content in grains.items():
            start = grain * grain_bytes
            model[start : start + grain_bytes] = content[: len(model) - start]
        delta_disk(
            directory,
            f"d-{number:06d}",
            sectors,
            grains.items(),
            parent="d" if number == 1 else f"d-{number - 1:06d}",
            cid=number + 1,
            parent_cid=number,
            grain_sectors=grain_sectors,
        )
    return bytes(model)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sectors=st.sampled_from([1, 63, 4095, 4096, 4097, 9000]),
    layers=st.integers(1, 5),
    grain_sectors=st.sampled_from([1, 1, 1, 8]),
    told=st.booleans(),
)
def test_a_random_chain_reads_as_its_model(
    seed: int, sectors: int, layers: int, grain_sectors: int, *, told: bool
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root, "vm")
        directory.mkdir()
        model = _build(directory, rng, sectors, layers, grain_sectors)
        names = ["d.vmdk", *(f"d-{number:06d}.vmdk" for number in range(1, layers))][::-1]
        paths = [f"[ds] vm/{name}" for name in names]
        definition = ExportDefinition(name="x", remote_hosts=("h",), remote_path="/", mounted_at=root)
        with MountedExport(definition) as export:
            files = DatastoreFiles({"ds": export})
            with DiskChain(files, paths[0], paths[1:] if told else [], capacity_bytes=len(model)) as chain:
                whole = bytearray(len(model))
                assert chain.read_into(0, whole) == len(model)
                assert whole == model
                for _ in range(8):
                    start = rng.randrange(len(model))
                    length = rng.choice([1, 511, 512, 5000, 70_000, 2**20])
                    end = min(len(model), start + length)
                    buffer = bytearray(b"\xa5") * (end - start)
                    chain.read_into(start, buffer)
                    assert buffer == model[start:end]
                _check_ranges(chain, directory, names)


def _check_ranges(chain: DiskChain, directory: Path, names: list[str]) -> None:
    """Goal: what delta_ranges tells is what the redo log stores: merged, ordered, as many grains as were written."""
    for depth, name in enumerate(names):
        ranges = chain.delta_ranges(depth)
        if depth == len(names) - 1:
            assert ranges is None
            continue
        assert ranges is not None
        ends = [0]
        for start, end in ranges:
            assert start < end
            assert not ends[1:] or start > ends[-1]
            ends.append(end)
        assert ends[-1] <= chain.capacity_bytes
        stored = (directory / name.replace(".vmdk", "-delta.vmdk")).stat().st_size
        assert sum(end - start for start, end in ranges) <= stored
