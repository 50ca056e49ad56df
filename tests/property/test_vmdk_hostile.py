"""Goal: damaged or hostile files end in one of our errors, at once, and never allocate by a number that they name."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from safehaul.errors import SafehaulError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.mounted import MountedExport
from safehaul.vmdk.chain import DiskChain
from safehaul.vmdk.descriptor import parse_descriptor
from tests.vmdk_images import SECTOR, cowd_bytes, delta_disk, descriptor, flat_disk

SECTORS = 5000
MAX_MEMORY_BYTES = 8 * 2**20
_GRAINS = [(number, bytes([number % 251]) * SECTOR) for number in [0, 1, 2, 4095, 4096, 4999, 17]]
_GOOD = cowd_bytes(SECTORS, _GRAINS)

_words = st.one_of(
    st.sampled_from([0, 1, 3, 4, 5, 127, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]), st.integers(0, 2**32 - 1)
)


def _read_all(root: str) -> None:
    definition = ExportDefinition(name="x", remote_hosts=("h",), remote_path="/", mounted_at=root)
    with MountedExport(definition) as export:
        files = DatastoreFiles({"ds": export})
        with DiskChain(files, "[ds] d-000001.vmdk", ["[ds] d.vmdk"]) as chain:
            chain.delta_ranges(0)
            buffer = bytearray(65536)
            for offset in range(0, min(chain.capacity_bytes, 4 * 2**20) - len(buffer), len(buffer)):
                chain.read_into(offset, buffer)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 8 + 4 + 40), _words), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, len(_GOOD))),
)
@example(changes=[(3, 2**32 - 1), (6, 2**32 - 1)], cut=None)
@example(changes=[(4, 2**31)], cut=None)
@example(changes=[(5, 2**32 - 1)], cut=None)
def test_a_damaged_redo_log_never_hangs_or_grows(changes: list[tuple[int, int]], cut: int | None) -> None:
    raw = bytearray(_GOOD)
    for position, word in changes:
        # The header's numbers, then the grain directory, then the first table.
        place = position * 4 if position < 8 else 4 * SECTOR + (position - 8) * 4
        place = place if position < 12 else 5 * SECTOR + (position - 12) * 4
        raw[place : place + 4] = word.to_bytes(4, "little")
    with tempfile.TemporaryDirectory() as root:
        flat_disk(Path(root), "d", bytes(SECTORS * SECTOR), cid=1)
        delta_disk(Path(root), "d-000001", SECTORS, [], parent="d", cid=2, parent_cid=1)
        Path(root, "d-000001-delta.vmdk").write_bytes(raw[:cut] if cut is not None else raw)
        started = time.monotonic()
        tracemalloc.start()
        try:
            _read_all(root)
        except SafehaulError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MAX_MEMORY_BYTES
        assert time.monotonic() - started < 10


@settings(max_examples=200, deadline=None)
@given(
    raw=st.one_of(
        st.binary(max_size=2000), st.text(max_size=500).map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    """Goal: the descriptor parser raises nothing but our errors."""
    for prefix in (b"", b"# Disk DescriptorFile\n", descriptor(['RW 8 VMFS "a"']).encode()):
        try:
            parse_descriptor(prefix + raw, "[ds] a.vmdk")
        except SafehaulError:
            continue
