"""Goal: large objects pass the page cache by where it can be, and are the same bytes where it cannot."""

from __future__ import annotations

import itertools
import mmap
import random
from pathlib import Path

import pytest

from safehaul.media.store_local import LocalStore

MIB = 1 << 20
DATA = random.Random(1).randbytes(5 * MIB)


def aligned(data: bytes) -> memoryview:
    """A copy that begins at a page."""
    pages = mmap.mmap(-1, max(len(data), 1))
    pages[: len(data)] = data
    return memoryview(pages)[: len(data)]


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([0, 2 * MIB, 4 * MIB, 4 * MIB + 777], id="whole-blocks-then-a-rest"),
        pytest.param([0, 777, 777 + 2 * MIB, 777 + 3 * MIB], id="whole-blocks-at-an-odd-place"),
        pytest.param([0, 2 * MIB, 2 * MIB + 4096, 4 * MIB], id="large-and-small"),
    ],
)
@pytest.mark.parametrize("at_a_page", [True, False])
def test_an_object_is_what_was_written(tmp_path: Path, cuts: list[int], at_a_page: bool) -> None:
    store = LocalStore(tmp_path)
    upload = store.create("packs/aa/one")
    for start, end in itertools.pairwise(cuts):
        piece = DATA[start:end]
        upload.write(aligned(piece) if at_a_page else memoryview(b"x" + piece)[1:])
    upload.commit()
    assert store.get("packs/aa/one", 10 * MIB) == DATA[: cuts[-1]]
