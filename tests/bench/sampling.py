"""The run's side of a profile: tells perf when to sample (see profile.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PIPES_VARIABLE = "BENCH_PERF_PIPES"
"""Names the folder of the two pipes; not set when there is no profile."""


@contextmanager
def sampled() -> Iterator[None]:
    """In the run: what happens inside is in the profile, if there is one."""
    pipes = os.environ.get(PIPES_VARIABLE)
    if pipes:
        _order(Path(pipes), "enable")
    try:
        yield
    finally:
        if pipes:
            _order(Path(pipes), "disable")


def _order(pipes: Path, word: str) -> None:
    (pipes / "control").write_text(f"{word}\n")
    with (pipes / "answer").open("rb", buffering=0) as answer:
        answer.read(5)
