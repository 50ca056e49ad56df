"""Runs the matrix: hands cases to the players, keeps the results, tells how it goes."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

from pydantic import TypeAdapter

from tests.crash import plan, table
from tests.crash.play import Outcome
from tests.crash.points import Case
from tests.crash.trace import Trace, parse_trace

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "crash-matrix"
DOCUMENT = ROOT / "docs" / "crash-matrix.md"
_OUTCOME = TypeAdapter(Outcome)


class PlayerDiedError(Exception):
    """A player's process has ended without an answer; its log says why."""


class PlayerProcess:
    """One `python -m tests.crash serve`, with a data centre of its own."""

    def __init__(self, number: int, build: Path, product: Path | None = None) -> None:
        self.log = build / f"player-{number}.log"
        command = [sys.executable, "-m", "tests.crash", "serve", "--build", str(build)]
        if product is not None:
            command += ["--product", str(product)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def ask(self, order: str, argument: object) -> Any:
        """One order and its answer. Raises PlayerDiedError."""
        orders, answers = _pipe(self._process.stdin), _pipe(self._process.stdout)
        try:
            print(json.dumps({order: argument}), file=orders, flush=True)
            line = answers.readline()
        except OSError:
            line = ""
        if not line:
            raise PlayerDiedError(f"a player has ended: see {self.log}")
        return json.loads(line)

    def stop(self) -> None:
        """Have it end its data centre now, also in the middle of a case."""
        self._process.terminate()

    def close(self) -> None:
        """Let it end its data centre when it has answered."""
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()
        self._process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


class Matrix:
    """One run: its results are lines of a file, so that a later run goes on where this one has stopped."""

    def __init__(self, build: Path, *, jobs: int, product: Path | None = None) -> None:
        self._build = build
        self._jobs = jobs
        self._product = product
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._played_now = 0
        self._failure: Exception | None = None
        self._players: dict[int, PlayerProcess] = {}
        build.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for player in self._players.values():
                player.stop()
        for player in self._players.values():
            player.close()

    @property
    def results(self) -> Path:
        """A line of JSON for each case that was tried."""
        return self._build / "results.jsonl"

    def trace(self, seed: int) -> Trace:
        """The points: from the file of an earlier run, or by watching clean jobs now."""
        path = self._build / "trace.json"
        if not path.exists():
            say("watching clean jobs for their crash points …")
            path.write_text(json.dumps(self._player(0).ask("trace", seed)["trace"]))
        found = parse_trace(path.read_text())
        kinds = ", ".join(
            f"{sum(point.kind == kind for point in found.points)} {kind}"
            for kind in dict.fromkeys(point.kind for point in found.points)
        )
        say(f"{len(found.points)} crash points in a job of {found.seconds:.1f} s: {kinds}")
        return found

    def earlier(self) -> dict[str, Outcome]:
        """What earlier runs have played."""
        if not self.results.exists():
            return {}
        lines = (line for line in self.results.read_text().splitlines() if line)
        return {item.case: item for item in map(_OUTCOME.validate_json, lines)}

    def run(self, plan_: plan.Plan) -> None:
        """Play everything that the plan wants. Raises PlayerDiedError."""
        self._total = plan_.left
        threads = [
            threading.Thread(target=self._work, args=(number, plan_))
            for number in range(min(self._jobs, max(1, plan_.left)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self, number: int, plan_: plan.Plan) -> None:
        player = self._player(number)
        try:
            while self._failure is None:
                with self._lock:
                    case = plan_.next_case()
                if case is None:
                    return
                outcome = _OUTCOME.validate_python(player.ask("play", case.id)["outcome"])
                with self._lock:
                    self._note(plan_, outcome)
        except Exception as error:  # noqa: BLE001 - raised by `run`, on the main thread
            self._failure = error

    def _player(self, number: int) -> PlayerProcess:
        with self._lock:
            if number not in self._players:
                self._players[number] = PlayerProcess(number, self._build, self._product)
            return self._players[number]

    def _note(self, plan_: plan.Plan, outcome: Outcome) -> None:
        outcome.commit = _commit()
        plan_.ended(outcome)
        with self.results.open("a") as file:
            file.write(json.dumps(outcome.as_json()) + "\n")
        self._played_now += outcome.state != "missed"
        pace_s = (time.monotonic() - self._begun) / max(1, self._played_now)
        say(
            f"[{self._played_now:3}/{self._total}] {outcome.case}: {_in_words(outcome)}"
            f" · {plan_.left * pace_s / 60:.0f} min to go"
        )
        tell_violations(outcome)


def _in_words(outcome: Outcome) -> str:
    if outcome.state == "missed":
        return "the job ended before this point came: another case takes its place"
    statuses = ", ".join(f"{name} {status}" for name, status in sorted(outcome.statuses.items()))
    verdict = "VIOLATED" if outcome.violations else "ok"
    return f"{verdict} · {statuses} · again {outcome.reread_packs:g} packs · {outcome.seconds:.0f} s"


def tell_violations(outcome: Outcome) -> None:
    """Each violation, and how to see it again."""
    for violation in outcome.violations:
        say(f"      {violation}")
    if outcome.violations:
        say(f"      again: make crash-matrix CASE='{outcome.case}'")


def play_one(build: Path, case: Case, product: Path | None) -> Outcome:
    """Play one case by itself."""
    build.mkdir(parents=True, exist_ok=True)
    player = PlayerProcess(0, build, product)
    try:
        outcome: Outcome = _OUTCOME.validate_python(player.ask("play", case.id)["outcome"])
    finally:
        player.close()
    return outcome


def run(*, quick: bool, fresh: bool, jobs: int, build: Path = BUILD) -> list[Outcome]:
    """The whole matrix, or a sample; the outcomes that count. The whole one also writes the document's table."""
    place = build / "quick" if quick else build
    if fresh or quick:
        shutil.rmtree(place, ignore_errors=True)
    with Matrix(place, jobs=jobs) as matrix:
        trace = matrix.trace(plan.SEED)
        plan_ = plan.made(trace.points, plan.SEED, quick=quick)
        plan_.outcomes = matrix.earlier()
        if plan_.played:
            say(f"{len(plan_.played)} cases were played earlier; FRESH=1 begins anew")
        matrix.run(plan_)
    if not quick:
        text = table.table(
            plan_.played,
            date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
            points=len(trace.points),
        )
        table.write(DOCUMENT, text)
    return plan_.played


def _commit() -> str:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return os.environ.get("SAFEHAUL_COMMIT", "unknown")
    done = subprocess.run(
        [git, "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def say(text: str) -> None:
    """Tell a person what happens."""
    print(text, flush=True)


def result_of(outcomes: Iterable[Outcome]) -> int:
    """Print the last line; the exit code."""
    found = list(outcomes)
    say(table.last_line(found))
    return 1 if any(item.violations for item in found) else 0
