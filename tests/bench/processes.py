"""One measured run: a process of its own, from inputs that are all in the page cache, to a disk that is idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LAUNCHER = Path(__file__).with_name("launcher.py")
_TIMEOUT_S = 3600
_BLOCK = 4 << 20


class BenchError(Exception):
    """The benchmark cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and what it reads and writes."""

    arguments: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    inputs: tuple[Path, ...] = ()
    """Files and folders that are read into the page cache before the run."""
    flush: Path | None = None
    """A file of the result that the command does not sync itself; its sync is timed apart."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run cost. The command's own report, when its last line of output is one, wins over the launcher's."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    flush_s: float = 0.0
    """Until the result was on the disk, after `wall_s`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the command said of itself."""


def run(command: Command, report: Path) -> Cost:
    """Run and measure. Raises BenchError with the end of its output when it fails."""
    warm(command.inputs)
    # What an earlier run left to be written must not be written during this one.
    os.sync()
    arguments = [sys.executable, "-I", "-S", str(_LAUNCHER), str(report), str(command.flush or "")]
    done = subprocess.run(
        [*arguments, *command.arguments],
        env={**os.environ, "LC_ALL": "C.UTF-8", **command.environment},
        cwd=command.directory,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        shown = " ".join(command.arguments)
        message = f"{shown} ended with {done.returncode}:\n{(done.stdout + done.stderr).strip()[-2000:]}"
        raise BenchError(message)
    return cost(json.loads(report.read_text()), done.stdout)


def cost(measured: Mapping[str, Any], output: str) -> Cost:
    """Join the launcher's report with the command's own, which may correct times and add facts."""
    own = _own_report(output)
    merged = {key: own.pop(key, measured[key]) for key in ("wall_s", "cpu_s", "peak_mib", "flush_s")}
    return Cost(**merged, facts=own)


def _own_report(output: str) -> dict[str, Any]:
    lines = output.strip().splitlines()
    if not lines or not lines[-1].startswith('{"bench":'):
        return {}
    report: dict[str, Any] = json.loads(lines[-1])["bench"]
    return report


def tell(report: Mapping[str, Any]) -> None:
    """Print a command's own report, for `run` to find."""
    print(json.dumps({"bench": report}), flush=True)


def warm(paths: Iterable[Path]) -> None:
    """Read files, and all files below folders, into the page cache."""
    buffer = bytearray(_BLOCK)
    for path in files_of(paths):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def files_of(paths: Iterable[Path]) -> Iterable[Path]:
    """The plain files that are named or lie below what is named."""
    for path in paths:
        if path.is_dir():
            yield from (found for found in sorted(path.rglob("*")) if found.is_file())
        elif path.exists():
            yield path


def stored_bytes(path: Path) -> int:
    """Length of all files below a folder, or of a file; 0 when there is none."""
    return sum(found.stat().st_size for found in files_of([path]))


def call(arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run something that is not measured. Raises BenchError when it fails."""
    done = subprocess.run(
        arguments,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        message = f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        raise BenchError(message)
