"""Each step replaced by a successful no-op, one at a time: the end-to-end check must notice what the step is for."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule
from tests.e2e.noop_worker import NOTHING_DONE
from tests.e2e.replaced import NAMES, NODE, Replacing, role_of, tidy, tiny_site
from tests.e2e.site import ENDED, data_centre, failure_of, run_job, start_job, status, until, wait_end
from tests.e2e.test_each_restore_step_matters import RESTORE_STEPS
from tests.e2e.truth import before, violations

QUICK = {"transfer_disk", "remove_snapshot", "take_lease"}
# Far beyond what any of these jobs needs (2 to 12 s): a job that does not end is no sign that the step was missed.
ENDS_WITHIN_S = 120.0
WAITS = "choose_coordinator"
"""The one no-op after which a job must wait: nobody is the coordinator, so step 2 stands in a queue that no worker
polls, for half a minute with each of five coordinators. Its progress tells so at once."""

# The observable effect of each step (docs/architecture.md), as the end-to-end check misses it.
MISSED: dict[str, tuple[str, ...]] = {
    # 1: the job's settings, each node's answer and the choice stand in the history
    "open_job": (r"the job is Failed: no access node of VM group 'demo' answers \(asked: \)",),
    "ping": (r"a node's sign of life says nothing: .*'version': ''",),
    WAITS: (r"waits at 'discovering VMs' with the coordinator ''",),
    # 2: objects jobs/JOB/vms
    "discover": (r"step 2 has left no object jobs/JOB/vms", r"the report tells of \[\]"),
    # 3: object jobs/JOB/lease; without it steps 4, 5 and 17 refuse
    "take_lease": (r"no report: the job's result cannot be kept: .*no coordinator holds lease 1",),
    # 4: object jobs/JOB/nodes: admitted nodes, cores, load, reachable datastores
    "prepare_node": (r"a node has not looked at itself: .*'memory_bytes': 0",),
    "admit_nodes": (r"step 4 has left no object jobs/JOB/nodes",),
    # 5: objects jobs/JOB/plan: queues of VMs
    "distribute": (r"step 5 has left no object jobs/JOB/plan", r"the report tells of \[\]"),
    "load_page": (r"the job is Failed: the pages of the plan hold 2 VMs fewer than were planned",),
    # 6: the VM's state before it in the history, on which the proof of the removal stands
    "inspect_vm": (
        r"one is Failed: step 14: the removal of .* is not certified: nobody has looked for its files",
    ),
    # 6 and 7: a snapshot task in vCenter; the snapshot in the VM's tree
    "create_snapshot": (r"one: the hosts never made its snapshot 'snapshot-0'",),
    # 8: for each disk: format, extents, identity, or the reason why it is skipped
    "check_transport": (r"one is Failed: step 8: no disk of VM 'one' can go .*: no disks",),
    # 9: the VM's files in the node's spool
    "download_files": (
        r"one is Failed: step 10: the spool of access node 'node-1' holds no files of VM 'one'",
    ),
    # 10: objects sessions/ID/open and sessions/ID/files
    "open_backup": (r"one is Failed: step 10: the repository has no session",),
    "store_files": (r"its files are not in the backup \(\['\[nfs-gold\] one/one\.vmx'",),
    # 11: packs, and sessions/ID/disk-KEY; the filer's served bytes
    "transfer_disk": (
        r"the filer served \d{1,6} bytes, the report claims 16777216",
        r"one is Failed: step 12: session \S+ holds disks \[\]; described are \[2000\]",
    ),
    # 12: every pack read back; object manifests/VCGUID/BACKUP: restorable
    "finish_reading": (r"one is Failed: step 12: .*Hard disk 1: its chain had 2 files and has 0 now",),
    "seal_backup": (r"one is Failed: step 14: there is no backup none of VM",),
    # 13: the snapshot is gone from the tree, its disks are consolidated, no file of it is left
    "remove_snapshot": (
        r"one: snapshot snapshot-\d+ \('safehaul \S+'\) is left behind",
        r"one: file one-000001-delta\.vmdk is left behind",
        r"one is Failed: step 14: snapshot snapshot-\d+ of VM 'one' is still in vCenter",
    ),
    # 14: the spool is empty; object index/VCGUID/BACKUP; the catalogue's rows
    "mark_completed": (r"spool/node-1/\S+ is left in the spool",),
    "write_index": (r"one: step 14 has left no index", r"the catalogue says of its backups: \[\]"),
    # 15: the node's request in the history; later VMs are `given_by: request`
    "ask_for_vm": (r"a VM was given although no dry node had asked for it",),
    # 17: objects jobs/JOB/reports and jobs/JOB/report; the catalogue's job
    "write_reports": (r"no report: the job's result cannot be kept: .*reports/",),
    "close_job": (r"step 17 has left no report in the repository", r"the report tells of \[\]"),
    "record_job": (r"the catalogue says of the job: \[\]",),
}
# Shown by tests of their own: below, in test_each_restore_step_matters, (`reconcile`) in test_long_job, and
# (`watch_snapshot`) in tests/workflow/test_hold.py and tests/fault/test_space.py.
OF_THEIR_OWN = {"request_cancel", "report_unled_job", "reconcile", "watch_snapshot", *RESTORE_STEPS}


# Restores in place, of one disk, and by option: tests/e2e/test_restore.py looks at what they leave.
OF_OTHER_RESTORES = {
    "power_on_vm",
    "open_disk_restore",
    "prepare_in_place",
    "prepare_disk",
    "switch_disks",
    "remove_old_disks",
    "discard_disks",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(tiny_site(), nodes=(NODE,), streams=1) as started:
        started.start_workers()
        yield started


@pytest.fixture(scope="module")
def replacing(lab: DataCentre) -> Replacing:
    return Replacing(lab)


def test_every_step_has_a_no_op_and_an_effect() -> None:
    """The lists are complete: a new step must be added to them."""
    named = set()
    # Those of a repository's upkeep and of the sweep, in files of that name, belong to no backup: tests/workflow and
    # tests/e2e/test_sweep.py hold them.
    for path in (Path(__file__).parents[2] / "activities").glob("*.py"):
        if path.stem.startswith(("upkeep", "sweep")):
            continue
        for line in path.read_text().splitlines():
            if line.strip().startswith(("@step(", '@activity.defn(name="')):
                named.add(line.split('"')[1])
    assert named > OF_OTHER_RESTORES
    named -= OF_OTHER_RESTORES
    assert named == set(NOTHING_DONE)
    assert named == set(MISSED) | OF_THEIR_OWN
    assert not set(MISSED) & OF_THEIR_OWN


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in sorted(MISSED, key=lambda name: (role_of(name), name))
    ],
)
def test_a_step_that_does_nothing_is_missed(lab: DataCentre, replacing: Replacing, name: str) -> None:
    at_first = before(lab)
    replacing.replace(name)
    job = f"noop-{name}"
    try:
        start_job(lab, job)
        found: Iterable[str]
        if name == WAITS:
            found = [_how_it_waits(lab, job, MISSED[name][0])]
        else:
            wait_end(lab, job, ENDS_WITHIN_S)
            report = _shown(lab, job)["report"]
            found = (
                violations(lab, report, at_first, NAMES, 1)
                if report
                else [f"no report: {failure_of(lab, job)}"]
            )
        assert _not_among(found, MISSED[name]) == [], f"nobody misses what {name} does"
    finally:
        tidy(lab)


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_a_cancel_that_is_not_asked_for_lets_the_job_go_on(
    lab: DataCentre, replacing: Replacing, *, real: bool
) -> None:
    """`request_cancel`: the signal becomes the workflow's cancel."""
    _use(replacing, "request_cancel", real=real)
    lab.hosts.add_fault(
        FaultRule(operation="CreateSnapshot", effect="stall", nth=1, seconds=4.0, phase="middle")
    )
    job = f"noop-request-cancel-{real}"
    try:
        start_job(lab, job)
        until(lambda: any(task.state == "running" for task in lab.hosts.state().tasks))
        done = lab.temporal.cli("workflow", "signal", "--workflow-id", job, "--name", "cancel")
        assert done.returncode == 0, done.stderr
        assert wait_end(lab, job, ENDS_WITHIN_S) == ("CANCELED" if real else "COMPLETED")
    finally:
        lab.hosts.clear_faults()
        tidy(lab)


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_a_job_that_nobody_led_is_in_the_catalogue(
    lab: DataCentre, replacing: Replacing, *, real: bool
) -> None:
    """`report_unled_job`: a job to which no access node answers stands in the catalogue as Failed."""
    _use(replacing, "report_unled_job", real=real)
    lab.workers[f"access-node.{NODE}"].stop()
    job = f"noop-unled-{real}"
    try:
        start_job(lab, job)
        assert wait_end(lab, job, ENDS_WITHIN_S) == "FAILED"
        assert "no access node of VM group 'demo' answers (asked: node-1)" in failure_of(lab, job)
        with closing(sqlite3.connect(f"file:{lab.home / 'catalog.db'}?mode=ro", uri=True)) as database:
            rows = database.execute("select status from jobs where workflow_id = ?", (job,)).fetchall()
        assert rows == ([("Failed",)] if real else [])
    finally:
        tidy(lab)
        lab.start_worker("access-node", NODE)


def test_the_real_steps_pass_the_check(lab: DataCentre, replacing: Replacing) -> None:
    """Last, after all no-ops: what they were noticed by was theirs, and not the lab's or the check's own."""
    replacing.restore()
    at_first = before(lab)
    report = run_job(lab, "real")
    assert list(violations(lab, report, at_first, NAMES, 1)) == []


def _use(replacing: Replacing, name: str, *, real: bool) -> None:
    if real:
        replacing.restore()
    else:
        replacing.replace(name)


def _shown(lab: DataCentre, job: str) -> dict[str, Any]:
    shown = lab.safehaul("job", "show", job, "--json", check=False)
    return dict(json.loads(shown)) if shown else {"report": None, "progress": None}


def _how_it_waits(lab: DataCentre, job: str, wanted: str) -> str:
    """Where a job stands that must wait, as soon as it stands there."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    where = ""
    while not re.search(wanted, where):
        assert time.monotonic() < deadline, f"{job} never waited: {where}"
        assert status(lab, job) not in ENDED, f"{job} has ended"
        progress = _shown(lab, job)["progress"]
        if progress:
            where = f"waits at {progress['stage']!r} with the coordinator {progress['coordinator']!r}"
    return where


def _not_among(found: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """Which of the wanted violations are not found; looks no further than it must."""
    missing, seen = list(wanted), []
    for violation in found:
        seen.append(violation)
        missing = [pattern for pattern in missing if not re.search(pattern, violation)]
        if not missing:
            return []
    return [*missing, "only found:", *seen]
