"""Goal: `make bench` works from beginning to end: disks, filer, peers, restores that are compared, the JSON object."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.ganesha import GANESHA

ROOT = Path(__file__).parents[2]
MARKS = [
    *GANESHA,
    pytest.mark.slow,
    pytest.mark.requires_debian("restic", package="restic"),
    pytest.mark.requires_debian("borg", package="borgbackup"),
    pytest.mark.requires_debian("mke2fs", package="e2fsprogs"),
]


@pytest.mark.parametrize("size_mib", [pytest.param(32, marks=MARKS)])
def test_the_quick_benchmark_measures_everything_but_what_the_product_lacks(size_mib: int) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "bench", "BENCH_ARGS=--rounds 1"],
        env=environment | {"BENCH_SIZE_MIB": str(size_mib)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["rounds"], found["image_mib"]) == (1, size_mib)
    assert found.pop("not_measured") == {}
    assert [key for key, value in found.items() if value is None] == []
    # Whatever the machine: the same data, compressed alike, in repositories of about the same size.
    assert 0.8 < found["stored_vs_restic"] < 1.3
    assert not (ROOT / "build" / "bench" / "run").exists()
