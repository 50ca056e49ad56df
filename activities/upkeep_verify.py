"""VerifyRepository's steps at the MediaAgent: one part after the other, each from where the last one ended."""

from __future__ import annotations

import threading
import time

from pydantic import ValidationError
from temporalio import activity

from activities.beat import beat
from activities.errors import step
from activities.peers import Peers
from safehaul.media.collection import record_damaged
from safehaul.media.verified import put_findings, put_report, read_findings, run_name
from safehaul.media.verify import Verification
from safehaul.media.verify_generations import read_noted
from safehaul.media.verify_summary import summarise
from safehaul.messages.verify import (
    BeginVerifyInput,
    VerifyPartInput,
    VerifyProgress,
    VerifyReport,
    VerifyRepositoryRequest,
    VerifyRun,
)

PART_S = 240.0
"""A step ends after about this long, so that the workflow shows how far it is. A day's work is some 360 steps."""
_KEPT = 2


class RepositoryVerification:
    """Activities of the MediaAgent's queue for upkeep."""

    def __init__(self, peers: Peers, part_s: float = PART_S) -> None:
        self._peers = peers
        self._part_s = part_s
        self._lock = threading.Lock()
        self._kept: dict[str, Verification] = {}
        """Between two parts of one verification: the table of packs takes minutes to make for 10⁶ of them."""

    @step("begin_verification")
    def begin_verification(self, arg: BeginVerifyInput) -> VerifyRun:
        """Decides which packs are read whole, by when they were verified last.

        Keyed by the workflow's first run: a second try plans the same verification anew. Changes nothing. Heartbeats
        while it lists. Errors: the repository cannot be opened or listed.
        """
        request = arg.request
        run = VerifyRun(
            media_agent=request.media_agent,
            mode=request.mode,
            name=run_name(arg.started_at, arg.run_id),
            started_at=arg.started_at,
            note_damage=request.note_damage,
        )
        work = self._open(run)
        due = work.plan(request)
        packs, stored = work.ages.totals()
        self._keep(run, work)
        return run.model_copy(
            update={
                "until": due.until,
                "packs_due": due.packs,
                "bytes_due": due.bytes,
                "packs_total": packs,
                "bytes_total": stored,
                "oldest_left": due.oldest_left,
            }
        )

    @step("verify_part")
    def verify_part(self, arg: VerifyPartInput) -> VerifyProgress:
        """Verifies for some minutes, from the cursor on, and records what it finds in `verified/` as it goes.

        A second try goes on from the last heartbeat's cursor: before it everything is recorded. Heartbeats with each
        object. Errors: the repository is away (tried again), or refuses what must be written.
        """
        run, progress = arg.run, _latest(arg.progress)
        with self._lock:
            work = self._kept.pop(run.name, None)
        work = work or self._open(run)
        end = time.monotonic() + self._part_s
        try:
            done = work.run(progress, run.until, lambda: time.monotonic() > end)
        except BaseException:
            work.close()
            raise
        self._keep(run, work)
        return done

    @step("finish_verification")
    def finish_verification(self, run: VerifyRun) -> VerifyReport:
        """Makes the report of what was recorded, and records it. A second run makes the same one.

        Notes damaged packs in `gc/` where a part was killed before it could. Heartbeats. Errors: as `verify_part`.
        """
        with self._lock:
            work = self._kept.pop(run.name, None)
        if work is not None:
            work.close()
        repository = self._peers.repository(run.media_agent)
        beat("report")
        parts = list(read_findings(repository, run.name))
        report = summarise(
            run.mode,
            parts,
            run=run.name,
            totals=(run.packs_total, run.bytes_total),
            oldest_left=run.oldest_left,
        )
        if run.note_damage and report.damaged_packs and not read_noted(repository).broken:
            record_damaged(repository, [bytes.fromhex(pack) for pack in report.damaged_packs])
        put_report(repository, run.name, report)
        return report.for_history()

    def _open(self, run: VerifyRun) -> Verification:
        repository = self._peers.repository(run.media_agent)
        beat(VerifyProgress(doing="opening the repository"))
        return Verification(
            repository,
            run.mode,
            run.started_at,
            lambda findings: put_findings(repository, run.name, findings),
            beat,
            note_damage=run.note_damage,
            known=read_findings(repository, run.name),
        )

    def _keep(self, run: VerifyRun, work: Verification) -> None:
        with self._lock:
            self._kept[run.name] = work
            while len(self._kept) > _KEPT:
                self._kept.pop(next(iter(self._kept))).close()


class VerificationDesk:
    """Activity of the CommServe's queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("open_verification")
    def open_verification(self, request: VerifyRepositoryRequest) -> VerifyRepositoryRequest:
        """Looks the MediaAgent up: a name that does not exist would wait for its worker for ever. Changes nothing."""
        self._peers.settings.media_agent(request.media_agent)
        return request


def _latest(given: VerifyProgress) -> VerifyProgress:
    """Where an earlier try of this step has come to; else what the workflow gave."""
    details = activity.info().heartbeat_details
    try:
        told = VerifyProgress.model_validate(details[0]) if details else given
    except ValidationError:
        # Of the opening, or of another version: this part begins anew, and finds what it recorded.
        return given
    if told.stage is not given.stage or not told.cursor:
        return given
    return told.model_copy(update={"stage_done": False, "doing": ""})
