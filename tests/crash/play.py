"""Plays one case on a stage: run a job to the point, kill, bring back as the aftermath says, wait for rest, judge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from activities.read_ahead import READ_BYTES
from safehaul.media.encoder import HELD_CHUNKS
from safehaul.media.writer import RECORD_PACKS
from tests.crash.committed import durable_bytes
from tests.crash.expectations import must_complete
from tests.crash.histories import History
from tests.crash.judge import Verdict, before, judge, leftovers
from tests.crash.points import Case
from tests.crash.sightings import Sighting
from tests.crash.stage import MIB, VMS, Stage
from tests.crash.triggers import armed, release, release_after_s, rest_after_s
from tests.crash.victims import Victims

PACK_BYTES = RECORD_PACKS * MIB
"""How much of a disk one pack may stand for: the lab's packs have 1 MiB, and what compresses well is recorded after
four packs' worth of disk at the latest."""
IN_FLIGHT_BYTES = 4 * READ_BYTES + HELD_CHUNKS * MIB
"""What an access node may have read and not yet put into a pack, ahead of the writer (`activities.read_ahead`) and in
its hands: it is lost with the try."""
MAX_REREAD_PACKS = 1.0
JOB_WITHIN_S = 420.0
"""A step of the CommServe without heartbeats is known to be lost after two minutes, one of the others after 15 s."""
REST_WITHIN_S = 240.0
"""From the job's end until nothing that it started runs any more: RemoveSnapshot looks at most every five minutes, and
after a crash within one."""
_LOOK_EVERY_S = 0.1


@dataclass
class Outcome:
    """What became of a case. `state`: `played`, `missed` (the job ended before the point) or `broken` (the harness)."""

    case: str
    state: str = "played"
    victim: str = ""
    violations: list[str] = field(default_factory=list)
    reread_packs: float = 0.0
    """The most that one stream has read again beyond what was in flight, in packs."""
    recovery_s: float = 0.0
    """From the kill to the job's end."""
    seconds: float = 0.0
    status: str = ""
    statuses: dict[str, str] = field(default_factory=dict)
    commit: str = "unknown"
    """What the product was when the case was played: a run that was stopped may go on with another one."""

    def as_json(self) -> dict[str, Any]:
        """For a line of the results."""
        return asdict(self)


def play(stage: Stage, case: Case, evidence: Path, read_again_clean: int) -> Outcome:
    """Play the case. What a violation needs to be understood is left below `evidence`.

    `read_again_clean`: bytes of a disk that a job reads twice even when nobody dies (its checks of the transport).

    Raises: LabError and the like when the lab itself fails.
    """
    outcome = Outcome(case.id)
    begun = time.monotonic()
    victims = Victims(stage)
    if case.aftermath == "never":
        victims.add_spare(case.process)
    try:
        with stage.foreign_snapshots():
            _play(stage, case, victims, outcome, read_again_clean)
            if outcome.violations:
                save_evidence(stage, outcome, evidence)
    finally:
        victims.end_spares()
    outcome.seconds = round(time.monotonic() - begun, 1)
    return outcome


def _play(stage: Stage, case: Case, victims: Victims, outcome: Outcome, read_again_clean: int) -> None:
    stage.admin().expire_sessions()  # each job logs in, as after a restart
    at_first = before(stage)
    stage.filer_tap.begin()
    with armed(stage, case.point):
        job = begin_job(stage)
        sighting = _wait_for_point(stage, job)
        if sighting is None:
            outcome.state = "missed"
            wait_for_rest(stage, job)
            return
        outcome.victim = victims.chosen(case, sighting)
        victims.kill(outcome.victim)
        killed = time.monotonic()
        stage.filer_tap.mark()
        recorded = durable_bytes(stage)
        releasing = threading.Timer(release_after_s(case.point), release, [stage])
        releasing.start()
        revived = _come_back(case, victims, outcome.victim, killed, job)
        outcome.violations += wait_for_rest(stage, job, not_before=killed + rest_after_s(case.point))
        outcome.recovery_s = round(_ended_at(job) - killed, 1)
        releasing.join()
    verdict = judge_at_rest(stage, at_first, job, must=must_complete(case))
    outcome.violations += verdict.violations
    outcome.status, outcome.statuses = verdict.status, verdict.statuses
    outcome.violations += [
        f"{name} ended although nobody had killed it" for name in victims.ended_by_themselves(outcome.victim)
    ]
    outcome.violations += [
        f"{again} bytes of the disk of {vm} were recorded before the kill and read again"
        for vm, again in stage.filer_tap.recorded_again_bytes(recorded).items()
        if again > read_again_clean
    ]
    outcome.reread_packs = reread_packs(stage, read_again_clean)
    if outcome.reread_packs > MAX_REREAD_PACKS:
        outcome.violations.append(f"{outcome.reread_packs:.2f} packs of one disk were read again")
    if not revived:
        victims.revive(outcome.victim)


def begin_job(stage: Stage) -> History:
    """Start the next job, and follow it."""
    stage.follower.forget()
    workflow_id = stage.next_job()
    run_id = stage.follower.start_job(workflow_id, "demo")
    stage.follower.follow(workflow_id, run_id, "BackupJob")
    return stage.follower.histories()[0]


def wait_for_rest(stage: Stage, job: History, *, not_before: float = 0.0) -> list[str]:
    """Wait until the job has ended, and everything that it started. What has not come in time is a violation."""
    if not _until(lambda: bool(job.end), JOB_WITHIN_S):
        return [f"the job has not ended within {JOB_WITHIN_S:g} s"]
    _until(lambda: time.monotonic() >= not_before, JOB_WITHIN_S)
    if not _until(lambda: all(item.end for item in stage.follower.histories()), REST_WITHIN_S):
        running = [f"{item.type} {item.workflow_id}" for item in stage.follower.histories() if not item.end]
        return [f"{REST_WITHIN_S:g} s after the job's end there still runs {', '.join(running)}"]
    return []


def judge_at_rest(stage: Stage, at_first: Any, job: History, *, must: bool) -> Verdict:
    """Judge; where something is left, vCenter's tasks and the hosts' files get a moment to end."""
    _until(lambda: not leftovers(stage, at_first), 2.0)
    return judge(stage, at_first, job, must_complete=must)


def reread_packs(stage: Stage, read_again_clean: int) -> float:
    """The most that one VM's disk was read again, beyond a clean job's and what was in flight, in packs."""
    again = max(stage.filer_tap.read_again_bytes().values(), default=0)
    return round(max(0, again - read_again_clean - IN_FLIGHT_BYTES) / PACK_BYTES, 2)


def save_evidence(stage: Stage, outcome: Outcome, folder: Path) -> None:
    """Histories, logs and what vCenter was asked, for whoever looks into a violation."""
    target = folder / "".join(char if char.isalnum() or char in "-.," else "_" for char in outcome.case)
    target.mkdir(parents=True, exist_ok=True)
    (target / "violations.txt").write_text("\n".join(outcome.violations) + "\n")
    for number, history in enumerate(stage.follower.histories()):
        (target / f"history-{number}-{history.type}.txt").write_text(history.text())
    for log in sorted((stage.directory / "logs").glob("*.log")):
        (target / log.name).write_bytes(log.read_bytes()[-200_000:])
    calls = stage.directory / "vcenter-calls.jsonl"
    (target / "vcenter-calls.jsonl").write_bytes(calls.read_bytes()[-200_000:])
    (target / "vms.json").write_text(
        "\n".join(vm.model_dump_json(indent=1) for vm in stage.hosts.state().vms)
    )


def _wait_for_point(stage: Stage, job: History) -> Sighting | None:
    deadline = time.monotonic() + JOB_WITHIN_S
    while time.monotonic() < deadline:
        sighting = stage.sightings.wait(_LOOK_EVERY_S)
        if sighting is not None or job.end:
            return sighting
    return None


def _come_back(case: Case, victims: Victims, victim: str, killed: float, job: History) -> bool:
    """Bring the victim back when it is its time; False when it stays away."""
    if case.aftermath == "never":
        return False
    if case.aftermath == "late":
        # A job that has ended needs it no more; what else is to be judged may.
        _until(lambda: bool(job.end) or time.monotonic() - killed >= case.late_s, case.late_s)
    victims.revive(victim)
    return True


def _ended_at(job: History) -> float:
    """When the job's end was seen, on this process's clock."""
    return job.ended_at or time.monotonic()


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def clean_job(stage: Stage) -> tuple[Verdict, History, float]:
    """Run a job that nobody disturbs; its verdict and how long it took."""
    with stage.foreign_snapshots():
        stage.admin().expire_sessions()
        at_first = before(stage)
        stage.filer_tap.begin()
        stage.sightings.begin(None)
        begun = time.monotonic()
        job = begin_job(stage)
        late = wait_for_rest(stage, job)
        seconds = _ended_at(job) - begun
        verdict = judge_at_rest(stage, at_first, job, must=True)
    verdict.violations += late
    assert set(verdict.statuses) <= set(VMS)
    return verdict, job, seconds
