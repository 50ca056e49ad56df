"""Plays cases one after the other, as told on standard input; answers on standard output, a line of JSON for each.

    {"trace": SEED}        →  {"trace": {…}}
    {"play": "CASE"}       →  {"outcome": {…}}

The data centre is used again from case to case, and built anew when something is off, or after a while: repository
and histories grow.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from tests.crash.play import Outcome, play
from tests.crash.points import Case, parse_case
from tests.crash.stage import Stage
from tests.crash.trace import trace, warm_up

_CASES_A_STAGE = 25
_TRIES = 2
T = TypeVar("T")


class Player:
    """Holds the stage that is in use. A context manager."""

    def __init__(self, evidence: Path, product: Path | None = None) -> None:
        self._evidence = evidence
        self._product = product
        self._stage: Stage | None = None
        self._cases = 0
        self._read_again_clean = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_stage()

    def trace(self, seed: int) -> dict[str, Any]:
        """Watch clean jobs."""
        found: dict[str, Any] = json.loads(trace(self.stage(), seed).text())
        return found

    def play(self, case: Case) -> Outcome:
        """Play a case; when the lab fails, once more on a new stage. The second failure is told as a violation."""
        for tries_left in reversed(range(_TRIES)):
            try:
                outcome = play(self.stage(), case, self._evidence, self._read_again_clean)
            except Exception as error:  # noqa: BLE001 - whatever it is, the matrix goes on with the next case
                traceback.print_exc()
                self.end_stage()
                outcome = Outcome(case.id, "broken", violations=[f"the case could not be played: {error!r}"])
                if tries_left:
                    continue
            self._cases += 1
            if outcome.violations or self._cases >= _CASES_A_STAGE:
                self.end_stage()
            return outcome
        raise AssertionError("the last try returns")

    def stage(self) -> Stage:
        """The stage in use, or a new one that has run its first job."""
        if self._stage is None:
            stage = Stage(self._product).__enter__()
            try:
                self._read_again_clean = warm_up(stage)
            except BaseException:
                stage.close()
                raise
            self._stage, self._cases = stage, 0
        return self._stage

    def end_stage(self) -> None:
        """End the stage, if there is one."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()


def serve(player: Player, orders: TextIO, answers: TextIO) -> None:
    """Do what is asked until the orders end."""
    doing: dict[str, Callable[[Any], dict[str, Any]]] = {
        "trace": lambda seed: {"trace": player.trace(seed)},
        "play": lambda case: {"outcome": player.play(parse_case(case)).as_json()},
    }
    for line in orders:
        ((order, argument),) = json.loads(line).items()
        print(json.dumps(doing[order](argument)), file=answers, flush=True)


def main(evidence: Path, product: Path | None) -> None:
    """Serve on this process's own standard input and output."""
    # What a library prints may not stand among the answers: Temporal's client writes its warnings to standard output.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        with Player(evidence, product) as player:
            serve(player, sys.stdin, answers)
