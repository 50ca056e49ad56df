"""The demo as a person runs it: it passes, says so in its last line, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab.processes import processes_in, tool


def test_the_demo_passes_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [tool("safehaul"), "demo"],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env=dict(os.environ) | {"TMPDIR": str(tmp_path)},
    )
    assert done.stdout.rstrip().splitlines()[-1] == "demo: PASSED", done.stdout + done.stderr
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 12.0])
def test_ctrl_c_cleans_up(tmp_path: Path, seconds: float) -> None:
    demo = subprocess.Popen(
        [tool("safehaul"), "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ) | {"TMPDIR": str(tmp_path)},
    )
    assert demo.stdout is not None
    assert "Starting" in demo.stdout.readline()
    time.sleep(seconds)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=90)
    assert output.rstrip().splitlines()[-1] == "demo: FAILED"
    assert demo.returncode == 1
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []
