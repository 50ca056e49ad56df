"""The crash points of a job, found by watching clean ones: no list is kept by hand."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from pydantic import TypeAdapter

from lab.processes import LabError
from tests.crash.play import clean_job
from tests.crash.points import ZOMBIES, Point
from tests.crash.stage import Stage

CLOCK_POINTS = 48
_RUNS = 2
Counts = Counter[tuple[str, str, str]]


@dataclass(frozen=True)
class Trace:
    """What clean jobs have shown: how long one takes, and every point that each of them had."""

    seconds: float
    points: list[Point]

    def text(self) -> str:
        """As a file has it."""
        return _FILE.dump_json(self, indent=1).decode()


_FILE = TypeAdapter(Trace)


def parse_trace(text: str) -> Trace:
    """The trace in a file. Raises ValueError."""
    return _FILE.validate_json(text)


def warm_up(stage: Stage) -> int:
    """Run the first job; bytes of a disk that a clean job reads twice. Raises LabError when it is not clean."""
    verdict, _, _ = clean_job(stage)
    if verdict.violations:
        raise LabError(f"a job that nobody disturbed: {verdict.violations}")
    return max(stage.filer_tap.read_again_bytes().values(), default=0)


def trace(stage: Stage, seed: int) -> Trace:
    """Watch clean jobs. Their number of calls differs a little; only what each had becomes a point."""
    counted: list[Counts] = []
    seconds: list[float] = []
    for _ in range(_RUNS):
        asked = Counter(stage.admin().call_counts())
        verdict, _, took_s = clean_job(stage)
        if verdict.violations:
            raise LabError(f"a job that nobody disturbed: {verdict.violations}")
        counts = Counter(stage.sightings.counted())
        for method, number in (Counter(stage.admin().call_counts()) - asked).items():
            for when in ("before", "after"):
                counts["vcenter", method, when] = number
        counted.append(counts)
        seconds.append(took_s)
    common = counted[0]
    for other in counted[1:]:
        common &= other
    return Trace(min(seconds), [*_sighted(common), *_timed(min(seconds), seed), *_zombies()])


def _sighted(counts: Counts) -> list[Point]:
    return [
        Point(kind, name, nth, "before" if when == "before" else "after")
        for (kind, name, when), number in sorted(counts.items())
        if kind != "vcenter" or name.isidentifier()  # the REST endpoint's calls cannot be held
        for nth in range(1, number + 1)
    ]


def _timed(seconds: float, seed: int) -> list[Point]:
    chance = random.Random(f"{seed} clock")
    return [Point("clock", f"{chance.uniform(0.0, seconds):.3f}") for _ in range(CLOCK_POINTS)]


def _zombies() -> list[Point]:
    return [Point("zombie", name) for name in ZOMBIES]
