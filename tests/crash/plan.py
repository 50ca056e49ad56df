"""Which cases are played, in which order: a seeded choice that covers every process, aftermath and kind of point."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.crash.play import Outcome
from tests.crash.points import Case, Point, cells, parse_case

CASES_A_CELL = 14
"""Of the 15 pairs of process and aftermath: 210 cases."""
SEED = 20_260
_ROUND = (
    "vcenter",
    "history",
    "nfs",
    "repository",
    "clock",
    "zombie",
    "vcenter",
    "history",
    "nfs",
    "repository",
    "vcenter",
    "history",
    "nfs",
    "repository",
)
"""The kinds of the points of a cell's cases."""
_ZOMBIES_OF = ("access-node", "commserve", "temporal", "vcenter")
"""A creation of which nobody hears concerns these."""

_SPARED = ("commserve", "media-agent")
"""What a second worker of the same name stands in for."""

Cell = tuple[str, str]


def candidates(cell: Cell, points: Iterable[Point], seed: int) -> list[Case]:
    """Every case of a cell, in the order in which they are tried: kind by kind, and by chance within each.

    What is seen rarely (a creation of a snapshot) has its turn as often as what is seen all the time (a look at a VM).
    """
    process, aftermath = cell
    by_name: dict[str, dict[str, list[Point]]] = {}
    for point in sorted(points):
        if point.kind != "zombie" or process in _ZOMBIES_OF:
            by_name.setdefault(point.kind, {}).setdefault(point.name, []).append(point)
    by_kind = {
        kind: _mixed(names, random.Random(f"{seed} {process} {aftermath} {kind}"))
        for kind, names in by_name.items()
    }
    ordered: list[Case] = []
    while any(by_kind.values()):
        ordered.extend(Case(process, aftermath, by_kind[kind].pop()) for kind in _ROUND if by_kind.get(kind))
    return ordered


def _mixed(by_name: dict[str, list[Point]], chance: random.Random) -> list[Point]:
    """All points, by chance, such that the names take turns; the last ones are used first."""
    queues = list(by_name.values())
    for queue in queues:
        chance.shuffle(queue)
    turns: list[Point] = []
    while queues:
        chance.shuffle(queues)
        turns += [queue.pop() for queue in queues]
        queues = [queue for queue in queues if queue]
    return turns[::-1]


def made(points: list[Point], seed: int, *, quick: bool) -> Plan:
    """The plan of the whole matrix, or of a sample: each process is killed twice there, with what is soon over.

    In the sample the kinds of the points differ from process to process.
    """
    if not quick:
        found = {cell: candidates(cell, points, seed) for cell in cells()}
        return Plan(found, dict.fromkeys(found, CASES_A_CELL))
    wanted: dict[Cell, int] = {}
    for process, aftermath in cells():
        if aftermath == "at-once":
            wanted[process, aftermath] = 1 if process in _SPARED else 2
        elif aftermath == "never" and process in _SPARED:
            wanted[process, aftermath] = 1
    processes = sorted({process for process, _ in wanted})
    chosen: dict[Cell, list[Case]] = {}
    for cell in wanted:
        ordered = [case for case in candidates(cell, points, seed) if case.point.kind != "zombie"]
        start = (2 * processes.index(cell[0])) % len(ordered)
        chosen[cell] = [*ordered[start:], *ordered[:start]]
    return Plan(chosen, wanted)


@dataclass
class Plan:
    """Hands out cases; one that missed its point is replaced by the next of its cell."""

    candidates: dict[Cell, list[Case]]
    wanted: dict[Cell, int]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By case, those of earlier runs too."""
    _out: set[str] = field(default_factory=set)

    def next_case(self) -> Case | None:
        """A case of the cell that is least complete; None when nothing more is to be given out now."""
        open_cells = [cell for cell in self.candidates if self._wants(cell)]
        for cell in sorted(open_cells, key=self._share):
            for case in self.candidates[cell]:
                if case.id not in self.outcomes and case.id not in self._out:
                    self._out.add(case.id)
                    return case
        return None

    def ended(self, outcome: Outcome) -> None:
        """A case was tried."""
        self._out.discard(outcome.case)
        self.outcomes[outcome.case] = outcome

    @property
    def played(self) -> list[Outcome]:
        """What counts: the outcomes of the cells' cases that reached their point."""
        return [item for item in self.outcomes.values() if item.state != "missed"]

    @property
    def left(self) -> int:
        """Cases that are still to be played."""
        return sum(max(0, number - self._done(cell)) for cell, number in self.wanted.items())

    def _done(self, cell: Cell) -> int:
        return sum(parse_case(item.case).cell == cell for item in self.played)

    def _under_way(self, cell: Cell) -> int:
        return sum(parse_case(case).cell == cell for case in self._out)

    def _wants(self, cell: Cell) -> bool:
        return self._done(cell) + self._under_way(cell) < self.wanted[cell]

    def _share(self, cell: Cell) -> float:
        return (self._done(cell) + self._under_way(cell)) / self.wanted[cell]
