"""From runs to figures: medians, spreads, paired ratios, and the one JSON object that the benchmark ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from tests.bench.contenders import Step
from tests.bench.images import Images
from tests.bench.rounds import Run

HEADLINE = "safehaul, NFS, encrypted"
LOCAL = "safehaul, file, encrypted"
"""Stands in where there is no filer, for figures that the source has no part in."""
RESTIC, BORG, LIMIT, LOCAL_LIMIT = "restic", "borg, encrypted", "limit, NFS", "limit, file"

Value = Callable[[Run], float]


class Spread(NamedTuple):
    """Several runs of one thing."""

    least: float
    middle: float
    most: float
    runs: int


def spread(values: Iterable[float]) -> Spread | None:
    """Least, median and most; None of nothing."""
    found = sorted(values)
    return Spread(found[0], median(found), found[-1], len(found)) if found else None


def wall(run: Run) -> float:
    """Seconds that the run took."""
    return run.cost.wall_s


def durable(run: Run) -> float:
    """Seconds until the result was on the disk."""
    return run.cost.wall_s + run.cost.flush_s


def cpu(run: Run) -> float:
    """CPU seconds of the run's processes, the filer's apart."""
    return run.cost.cpu_s


def stored(run: Run) -> float:
    """Bytes that the run added to the repository."""
    return float(run.stored_bytes)


def of(runs: Iterable[Run], contender: str, step: Step) -> list[Run]:
    """One contender's runs of a step, by round."""
    return sorted(
        (run for run in runs if run.contender == contender and run.step is step), key=lambda run: run.round
    )


def paired(runs: Sequence[Run], step: Step, upper: str, lower: str, value: Value) -> Spread | None:
    """`upper` / `lower`, round by round: what disturbs a round disturbs both. None when either has no runs."""
    below = {run.round: value(run) for run in of(runs, lower, step)}
    return spread(
        value(run) / below[run.round] for run in of(runs, upper, step) if below.get(run.round, 0.0) > 0
    )


class Figures:
    """The figures of a benchmark, and for each that could not be measured the reason."""

    def __init__(
        self,
        runs: Sequence[Run],
        images: Images,
        missing: dict[str, str],
        jobs: Mapping[str, float | str | None] | None = None,
    ) -> None:
        """`missing`: contender → why it did not run. `jobs`: figures of whole jobs, or for each why there is none."""
        self._runs = runs
        self._images = images
        self._missing = missing
        self._stored_by = LOCAL if HEADLINE in missing else HEADLINE
        self._notes = {key: value for key, value in (jobs or {}).items() if isinstance(value, str)}
        self._jobs = {key: None if isinstance(value, str) else value for key, value in (jobs or {}).items()}

    def as_json(self) -> dict[str, object]:
        """The object that the benchmark prints last; `not_measured` says why a value is null."""
        disk_gib = self._images.size_gib
        full = of(self._runs, HEADLINE, Step.FULL)
        seconds = spread(cpu(run) for run in full)
        zero_gib = spread(run.cost.facts["bytes_zero"] / (1 << 30) for run in full)
        start = spread(run.cost.facts["start_s"] for run in full)
        opening = spread(run.cost.facts["open_s"] for run in full)
        memory = spread(run.cost.facts["stream_memory_mib"] for run in full)
        values: dict[str, float | None] = {
            "full_cpu_s_per_gib": seconds and seconds.middle / disk_gib,
            "full_cpu_s_per_nonzero_gib": seconds
            and zero_gib
            and seconds.middle / (disk_gib - zero_gib.middle),
        }
        for peer, name in ((RESTIC, "restic"), (BORG, "borg"), (LIMIT, "limit")):
            values[f"full_wall_vs_{name}"] = self._ratio(Step.FULL, peer, wall)
        values |= self._from_file()
        for peer, name in ((RESTIC, "restic"), (BORG, "borg")):
            values[f"increment_vs_{name}"] = self._ratio(Step.INCREMENT, peer, wall)
            values[f"rescan_vs_{name}"] = self._ratio(Step.RESCAN, peer, wall)
            values[f"restore_vs_{name}"] = self._ratio(Step.RESTORE, peer, durable, self._stored_by)
            values[f"restore_unsynced_vs_{name}"] = self._ratio(Step.RESTORE, peer, wall, self._stored_by)
        ours = paired(self._runs, Step.FULL, self._stored_by, RESTIC, stored)
        values["stored_vs_restic"] = ours and ours.middle
        # Not the median: it is a bound.
        values["stream_memory_mib"] = memory and memory.most
        values |= self._four_streams() | self._jobs
        values["start_s_not_counted"] = start and start.middle
        values["open_s_counted"] = opening and opening.middle
        for key, value in values.items():
            if value is None:
                self._notes.setdefault(key, self._why(key))
        rounded = {key: value and round(value, 3) for key, value in values.items()}
        return rounded | {
            "rounds": max((run.round + 1 for run in self._runs), default=0),
            "image_mib": self._images.size_bytes >> 20,
            "not_measured": self._notes,
        }

    def _four_streams(self) -> dict[str, float | None]:
        """Disks at once against one alone, by the same work: without the commit, which comes after all of them."""
        who = self._stored_by
        alone = {
            run.round: run.cost.wall_s - run.cost.facts["commit_s"] for run in of(self._runs, who, Step.FULL)
        }
        at_once = [run for run in of(self._runs, who, Step.STREAMS) if run.round in alone]
        faster = spread(run.cost.facts["disks"] * alone[run.round] / run.cost.wall_s for run in at_once)
        fairness = spread(run.cost.facts["fairness"] for run in at_once)
        memory = spread(run.cost.facts["stream_memory_mib"] for run in at_once)
        return {
            "four_streams_vs_one": faster and faster.middle,
            "four_streams_fairness": fairness and fairness.least,
            "four_streams_memory_mib_each": memory and memory.most,
        }

    def _from_file(self) -> dict[str, float | None]:
        """The ratios of what reads the disk, with our run from the local file too: the same source for all."""
        peers = ((RESTIC, "restic"), (BORG, "borg"), (LOCAL_LIMIT, "limit"))
        values = {
            f"full_wall_vs_{name}_file": self._ratio(Step.FULL, peer, wall, LOCAL) for peer, name in peers
        }
        for peer, name in peers[:2]:
            values[f"rescan_vs_{name}_file"] = self._ratio(Step.RESCAN, peer, wall, LOCAL)
            values[f"increment_vs_{name}_file"] = self._ratio(Step.INCREMENT, peer, wall, LOCAL)
        return values

    def _ratio(self, step: Step, peer: str, value: Value, ours: str = HEADLINE) -> float | None:
        """The peer's time over ours: above 1 we are faster."""
        found = paired(self._runs, step, peer, ours, value)
        return found and found.middle

    def _why(self, key: str) -> str:
        named = {"restic": RESTIC, "borg": BORG, "limit": LIMIT}
        wanted = [HEADLINE, *(peer for name, peer in named.items() if key.endswith(name))]
        reasons = [f"{name}: {self._missing[name]}" for name in wanted if name in self._missing]
        return "; ".join(reasons) or "no run"
