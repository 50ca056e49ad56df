"""The soak: jobs back to back while random processes die at random moments and come back."""

from __future__ import annotations

import datetime as dt
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.crash.judge import before
from tests.crash.play import (
    IN_FLIGHT_BYTES,
    MAX_REREAD_PACKS,
    PACK_BYTES,
    Outcome,
    begin_job,
    judge_at_rest,
    reread_packs,
    save_evidence,
    wait_for_rest,
)
from tests.crash.points import PROCESSES
from tests.crash.run import ROOT, say
from tests.crash.stage import Stage
from tests.crash.trace import warm_up
from tests.crash.victims import MEDIA_AGENT_WORKER, Victims

EVIDENCE = ROOT / "build" / "crash-matrix" / "soak"
_PAUSE_S = (0.3, 8.0)
_AWAY_S = (0.0, 30.0)
_JOBS_A_STAGE = 20
# A job that is disturbed all the time needs not end; after this long it is left in peace.
_DISTURBED_S = 240.0
# A pack, and what was in flight: the difference between one death and several is that the latter counts each time.
_PACKS_A_KILL = MAX_REREAD_PACKS + IN_FLIGHT_BYTES / PACK_BYTES
_VICTIMS = (
    "commserve",
    "access-node.node-1",
    "access-node.node-2",
    MEDIA_AGENT_WORKER,
    "temporal",
    "vcenter",
    "filer",
)


@dataclass
class Tally:
    """What the soak has seen."""

    jobs: int = 0
    completed: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    violations: int = 0
    reread_packs_max: float = 0.0

    def line(self, minutes: float, seed: int) -> str:
        """The last line."""
        return json.dumps(
            {
                "minutes": round(minutes, 1),
                "seed": seed,
                "jobs": self.jobs,
                "vms_completed": self.completed,
                "kills": sum(self.kills.values()),
                "processes": len(self.kills),
                "violations": self.violations,
                "reread_packs_max": self.reread_packs_max,
            }
        )


class Killer:
    """Kills one process after the other, each at a random moment, and brings each back after a random time."""

    def __init__(self, victims: Victims, chance: random.Random) -> None:
        self._victims = victims
        self._chance = chance
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self.killed: list[str] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Kill no more; everything has come back. Raises what a return has raised."""
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while not self._over.wait(self._chance.uniform(*_PAUSE_S)):
            name = self._chance.choice(_VICTIMS)
            self._victims.kill(name)
            self.killed.append(name)
            self._over.wait(self._chance.uniform(*_AWAY_S))
            try:
                self._victims.revive(name)
            except Exception as error:  # noqa: BLE001 - raised by `stop`, on the main thread
                self._failure = error
                return


def soak(minutes: float, seed: int) -> int:
    """Run it; the exit code. The moments follow from the seed (0: from the clock)."""
    seed = seed or int(dt.datetime.now(dt.UTC).timestamp())
    chance = random.Random(seed)
    begun, tally = time.monotonic(), Tally()
    until = begun + minutes * 60
    while time.monotonic() < until:
        with Stage() as stage:
            clean = warm_up(stage)
            for _ in range(_JOBS_A_STAGE):
                if time.monotonic() >= until or not _one_job(stage, chance, tally, clean):
                    break
    say(tally.line((time.monotonic() - begun) / 60, seed))
    return 1 if tally.violations else 0


def _one_job(stage: Stage, chance: random.Random, tally: Tally, clean: int) -> bool:
    """False when something was violated: the next job gets a new data centre."""
    victims = Victims(stage)
    outcome = Outcome(f"soak-{tally.jobs + 1}")
    with stage.foreign_snapshots():
        at_first = before(stage)
        stage.filer_tap.begin()
        stage.sightings.begin(None)
        begun = time.monotonic()
        job = begin_job(stage)
        killer = Killer(victims, chance)
        killer.start()
        # Processes die while the job runs; what it leaves to others must come to rest with all of them there.
        while not job.end and time.monotonic() - begun < _DISTURBED_S:
            time.sleep(0.1)
        killer.stop()
        outcome.violations += wait_for_rest(stage, job)
        verdict = judge_at_rest(stage, at_first, job, must=False)
        outcome.violations += verdict.violations
        outcome.violations += [f"{name} ended by itself" for name in victims.ended_by_themselves("")]
        outcome.statuses = verdict.statuses
        # Each death may cost a stream what it had in flight, and a pack.
        outcome.reread_packs = round(reread_packs(stage, clean) / max(1, len(killer.killed)), 2)
        if outcome.reread_packs > _PACKS_A_KILL:
            outcome.violations.append(f"{outcome.reread_packs} packs were read again for each kill")
        if outcome.violations:
            save_evidence(stage, outcome, EVIDENCE)
    _note(tally, outcome, killer.killed, time.monotonic() - begun)
    return not outcome.violations


def _note(tally: Tally, outcome: Outcome, killed: list[str], seconds: float) -> None:
    tally.jobs += 1
    tally.completed += list(outcome.statuses.values()).count("Completed")
    tally.kills.update(name.split(".")[0] for name in killed)
    tally.violations += bool(outcome.violations)
    tally.reread_packs_max = max(tally.reread_packs_max, outcome.reread_packs)
    assert set(tally.kills) <= set(PROCESSES)
    statuses = ", ".join(f"{name} {status}" for name, status in sorted(outcome.statuses.items()))
    say(
        f"job {tally.jobs}: {'VIOLATED' if outcome.violations else 'ok'} · {statuses} · {len(killed)} killed "
        f"({', '.join(killed)}) · {seconds:.0f} s"
    )
    for violation in outcome.violations:
        say(f"      {violation}")
