"""The rounds: in each, every step is run by all contenders one right after the other, in another order each time."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contenders import ALONE, Contender, Step, restored
from tests.bench.images import Images
from tests.bench.processes import BenchError, Command, Cost, run, stored_bytes
from tests.bench.sources import NfsSource


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's step in one round."""

    contender: str
    step: Step
    round: int
    cost: Cost
    stored_bytes: int
    """Added to the repository; of `restore` and `verify` nothing."""
    filer_cpu_s: float
    """Of the filer that it read from; 0 for a local file."""


def rotated(contenders: Sequence[Contender], by: int) -> list[Contender]:
    """Another order each time, so that nobody always comes after the same one."""
    start = by % len(contenders)
    order = [*contenders[start:], *contenders[:start]]
    return order[::-1] if by % 2 else order


class Rounds:
    """Runs rounds below one folder, which is empty between two of them."""

    def __init__(
        self,
        folder: Path,
        images: Images,
        contenders: Sequence[Contender],
        nfs: NfsSource | None,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._images = images
        self._contenders = contenders
        self._nfs = nfs
        self._say = say

    def run(self, number: int, steps: Sequence[Step]) -> list[Run]:
        """One round. Raises BenchError when a command fails or a restore is not what was backed up."""
        found = []
        shutil.rmtree(self._folder, ignore_errors=True)
        self._prepare("main")
        for place, step in enumerate(steps):
            if step in ALONE:
                self._prepare(step.name)
            for contender in rotated(self._contenders, number + place):
                done = self._one(contender, step, number)
                if done is not None:
                    found.append(done)
            if step in ALONE:
                shutil.rmtree(self._folder / step.name)
        shutil.rmtree(self._folder)
        return found

    def _prepare(self, name: str) -> None:
        for contender in self._contenders:
            place = self._place(contender, name)
            place.mkdir(parents=True)
            contender.prepare(place)

    def _place(self, contender: Contender, name: str) -> Path:
        return (
            self._folder.resolve()
            / name
            / "".join(char if char.isalnum() else "-" for char in contender.name)
        )

    def _one(self, contender: Contender, step: Step, number: int) -> Run | None:
        place = self._place(contender, step.name if step in ALONE else "main")
        command = contender.command(step, place)
        if command is None:
            return None
        before = stored_bytes(contender.repository(place))
        filer = self._nfs.cpu_s() if self._nfs and contender.nfs else 0.0
        cost = run(command, self._folder / "report.json")
        filer = self._nfs.cpu_s() - filer if self._nfs and contender.nfs else 0.0
        self._say(
            f"round {number + 1}  {step:<14} {contender.name:<26} {cost.wall_s:7.2f} s wall {cost.cpu_s:7.2f} s CPU"
        )
        stored = stored_bytes(contender.repository(place)) - before
        if step is Step.RESTORE:
            self._compare(contender, command, place)
            stored = 0
        return Run(contender.name, step, number, cost, stored, filer)

    def _compare(self, contender: Contender, command: Command, place: Path) -> None:
        """Whatever is fast but wrong does not count."""
        written = command.flush or restored(place)
        if not filecmp.cmp(written, self._images.flat("ext4"), shallow=False):
            raise BenchError(f"{contender.name} restored other bytes than it had backed up")
        written.unlink()
