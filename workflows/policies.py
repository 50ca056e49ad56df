"""Every queue name, time-out and retry policy of the workflows, each with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta

from temporalio.common import RetryPolicy, SearchAttributeKey, VersioningBehavior
from temporalio.workflow import ActivityCancellationType


@dataclass(frozen=True)
class StepPolicy:
    """Time-outs, tries, and what a cancel of the workflow does to a step."""

    start_to_close: timedelta
    retry: RetryPolicy
    schedule_to_start: timedelta | None = None
    schedule_to_close: timedelta | None = None
    heartbeat: timedelta | None = None
    cancellation: ActivityCancellationType = ActivityCancellationType.TRY_CANCEL


COMMSERVE_QUEUE = "commserve"
ACCESS_NODES_QUEUE = "access-nodes"
"""Any access node: clean-up that must not wait for one node to come back."""


def control_queue(node: str) -> str:
    """The node's queue for coordination, snapshots, checks and removals: it has slots of its own."""
    return f"access-node.{node}"


def streams_queue(node: str) -> str:
    """The node's queue for transfers: as many slots as streams."""
    return f"access-node.{node}.streams"


def media_agent_queue(name: str) -> str:
    """The MediaAgent's queue."""
    return f"media-agent.{name}"


def upkeep_queue(name: str) -> str:
    """The MediaAgent's queue for long work on its repository (prune, verification), beside that of the backups."""
    return f"media-agent.{name}.upkeep"


def prune_id(media_agent: str) -> str:
    """The workflow that prunes a MediaAgent's repository; its schedule, whose runs add their time to it."""
    return f"prune-{media_agent}"


def verify_id(media_agent: str) -> str:
    """The same for its verification."""
    return f"verify-{media_agent}"


def copy_id(media_agent: str) -> str:
    """The same for the copy of its backups elsewhere."""
    return f"copy-{media_agent}"


SWEEP_ID = "sweep-snapshots"
"""The workflow that sweeps; its schedule, whose runs add their time to it."""


def outlives_its_build() -> VersioningBehavior:
    """For a workflow that moves to the current build; all others stay on theirs (see docs/upgrades.md).

    The server refuses the word of a worker that has no build, so it is said only where there is one. Workflow modules
    are imported anew for each run, this one is not: it sees the process's environment.
    """
    versioned = bool(os.environ.get(BUILD_ID_VARIABLE))
    return VersioningBehavior.AUTO_UPGRADE if versioned else VersioningBehavior.UNSPECIFIED


BUILD_ID_VARIABLE = "SAFEHAUL_BUILD_ID"

JOB_ID = SearchAttributeKey.for_keyword("JobId")
VM_NAME = SearchAttributeKey.for_keyword("VmName")
VC_GUID = SearchAttributeKey.for_keyword("VcGuid")
VM_GROUP = SearchAttributeKey.for_keyword("VmGroup")
ACCESS_NODE = SearchAttributeKey.for_keyword("AccessNode")
BACKUP_STATUS = SearchAttributeKey.for_keyword("BackupStatus")
SEARCH_ATTRIBUTES = (JOB_ID, VM_NAME, VC_GUID, VM_GROUP, ACCESS_NODE, BACKUP_STATUS)

# A node's slots are counted by the job's ledger, so a task that nobody takes means that the node is dead, not
# busy. Together with the ping that follows it is known dead within 25 s; a worker that its service manager starts again
# is back by then.
NODE_SILENT_AFTER = timedelta(seconds=15)
# A node that is busy with another job is asked again, later and later: each time costs a few events of history.
BUSY_NODE_ASKED_EVERY = timedelta(minutes=10)
# Pings are answered at once or not at all; ten seconds keep the start of a job short when nodes are down.
PING_WITHIN = timedelta(seconds=10)
# Heartbeats are sent every two seconds (the workers lower the throttle): seven missed ones mean dead.
HEARTBEAT = timedelta(seconds=15)
# Of the time after which a VM group takes a silent node for dead, this part is waited for a sign of it, the rest for
# the answer to a ping.
SILENT_SHARE = HEARTBEAT / (HEARTBEAT + PING_WITHIN)
# A creation that failed sooner was heard of: no server takes a worker for dead in less time.
LEAST_SILENCE = timedelta(seconds=10)
# A restore does not move to another node: its own one is given as long as a worker's restart takes.
RESTORE_NODE_DEAD_AFTER_S = 60.0
# A step whose heartbeats stop although its node answers hangs: it is run again, and not for ever.
HUNG_STEP_TRIES = 6
# A VM whose node died asks its job again for another one: signals are hints.
ANOTHER_NODE_ASKED_EVERY = timedelta(minutes=1)
# A MediaAgent or the CommServe may be restarted for maintenance: the job waits for it, but not for ever.
AGENT_SILENT_AFTER = timedelta(hours=4)
# The ledger compares its running children with the server this often (signals are hints).
RECONCILE_EVERY = timedelta(seconds=30)
# A datastore that no node reaches in step 4, because its filer does not answer, is looked for again this often and this
# long: a filer that restarts would otherwise fail all of its VMs. As long as step 4 waits for a vCenter.
FILER_ASKED_EVERY = timedelta(seconds=15)
FILER_RETURNS_WITHIN = timedelta(minutes=2)
# When no access node answers any more, the job waits this long for one to come back.
NODES_RETURN_WITHIN = timedelta(minutes=5)
# A VM that moves while it is read is backed up anew from a new snapshot. One that has moved this many times in one
# job is being balanced by vSphere: the next job finds it at rest.
VM_TRIES = 3
# A coordinator that answers pings and nothing else is not tried for ever.
COORDINATORS_TRIED = 5
# Reports are made durable in pages of this many VMs.
REPORT_PAGE_VMS = 50
# … or fewer: a message may have 2 MB, and a VM with sixty disks and fifty warnings takes 50 KB.
REPORT_PAGE_BYTES = 1_000_000
# The history of one run of a job stays far below the server's 51,200 events.
HISTORY_EVENTS_PER_RUN = 8_000
# A cancelled job waits for its VMs' snapshots; after this long it reports what is still pending.
CHILDREN_STOP_WITHIN = timedelta(minutes=30)

# The room for a held snapshot: in two minutes a guest that writes 100 MB/s fills 12 GB. A look costs five events of the
# VM's history: 1,800 in the twelve hours that max_hold_s allows by default.
ROOM_LOOKED_AT_EVERY = timedelta(minutes=2)
# A snapshot that is held for a pause goes this long before max_hold_s is over: the VM then waits for its resume, and
# does not fail.
PAUSE_ENDS_BEFORE_HOLD = timedelta(seconds=1)
# A removal that knows no moref (the creation's answer was lost, its workflow was terminated) looks again after this
# long: until then a try of the creation may ask vCenter still. It asks within 12 s of its start (ASK_WITHIN_S), its
# call takes 15 s at most (VCENTER_TIMEOUT_S), and from then on its task is seen and waited for.
LATE_CREATION_WITHIN = timedelta(seconds=45)
# A sweep: how many of our snapshots one page tells (each with its owner, 500 bytes), and how many orphans are removed
# at once, in one sweep, and for how long removals are begun: hundreds of consolidations at a time would bring the filer
# to its knees, and what is left is the next sweep's. A removal is waited for, for its certificate, and goes on anyway.
SWEEP_PAGE_SNAPSHOTS = 200
SWEEP_AT_ONCE = 4
SWEEP_REMOVALS = 100
SWEEP_REMOVES_FOR = timedelta(minutes=10)
SWEEP_WAITS_FOR_REMOVAL = timedelta(minutes=3)
SWEEP_REASON_CHARS = 500
# Listing a directory is a task of vCenter: each sweep searches a few VMs', the next one the next few. Ten thousand VMs
# take three days at a sweep every quarter of an hour.
SWEEP_DIRECTORIES = 40
SWEEP_TURN = timedelta(minutes=15)
# How long one try of a removal holds a worker's slot. What it waits for (a consolidation, a lock) goes on in vCenter,
# and the next try finds it. Short on the common queue, where one VM's trouble must not keep others waiting.
REMOVAL_TRY = timedelta(minutes=2)
CLEAN_UP_TRY = timedelta(minutes=1)
# RemoveSnapshot's pauses: soon at first, since most trouble passes; never longer than somebody who has just given a
# privilege back likes to wait (who cannot wait sends `retry_now`).
CLEAN_UP_FIRST_PAUSE = timedelta(seconds=10)
CLEAN_UP_LAST_PAUSE = timedelta(minutes=5)
# A VM that is in no inventory and whose directory nobody recorded may be registered again by somebody who is at it.
VM_LOST_AFTER = timedelta(days=1)

_SOON = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=6,
)
_PATIENT = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(minutes=1),
)
# Before there is a snapshot: the ten minutes or so that a vCenter takes to restart (1 + 2 + … + 16 s, then 18 times
# 30 s). The VM holds nothing but its place, and a VM skipped tonight has no backup until tomorrow.
_BEFORE = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=24,
)
# While the snapshot is held: half an hour of a vCenter, filer or repository that is away (1 + … + 32 s, then 29 times a
# minute). What was read is not read again, so waiting is cheaper than another night; but the redo logs grow meanwhile,
# and `max_hold` ends it earlier where it must.
_HELD = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=36,
)
_ONCE = RetryPolicy(maximum_attempts=1)

PING = StepPolicy(
    schedule_to_start=PING_WITHIN,
    start_to_close=PING_WITHIN,
    retry=_ONCE,
)


def noticing(policy: StepPolicy, dead_after_s: float) -> StepPolicy:
    """The same for a step that is bound to one node: the workflow hears at once when the node falls silent.

    Without that the server would queue the step again for the node that has just died.
    """
    silent = timedelta(seconds=dead_after_s * SILENT_SHARE)
    once = [*(policy.retry.non_retryable_error_types or ()), "TemporalTimeout:Heartbeat"]
    return replace(
        policy,
        schedule_to_start=silent,
        heartbeat=None if policy.heartbeat is None else silent,
        retry=replace(policy.retry, non_retryable_error_types=once),
    )


def pinging(dead_after_s: float) -> StepPolicy:
    """`PING` with the rest of that time."""
    within = timedelta(seconds=dead_after_s * (1 - SILENT_SHARE))
    return replace(PING, schedule_to_start=within, start_to_close=within)


# The CommServe's own small steps: configuration, catalogue, Describe.
COMMSERVE = StepPolicy(
    start_to_close=timedelta(minutes=2),
    schedule_to_close=AGENT_SILENT_AFTER,
    retry=_SOON,
)
# Discovery of 10,000 VMs takes minutes; it heartbeats with each page. A vCenter that restarts is waited for: without
# this step no VM has a backup tonight.
COORDINATOR = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=1),
    heartbeat=HEARTBEAT,
    retry=_BEFORE,
)
# A node prepares by logging in and opening exports; a dead filer costs it its own connect time-outs. Nearly two minutes
# of a vCenter that is away (1 + 2 + 4 + 8 s, then six times 15 s), which fails all nodes alike. For as long one single
# node that is kept out may delay the others.
PREPARE = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=5),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=15),
        maximum_attempts=11,
    ),
)
# Short steps of a VM on its node: looks, checks, small files. They wait for a cancel to be seen, so that a
# step never goes on behind a workflow that has already ended. The look before step 6:
VM_STEP_BEFORE = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=30),
    heartbeat=HEARTBEAT,
    retry=_BEFORE,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# Steps 8 to 12, while the snapshot is held:
VM_STEP = replace(VM_STEP_BEFORE, retry=_HELD)
# Step 14, when the snapshot is gone and the backup is sealed: nothing is held any more, and a backup without its index
# would be lost to everybody who looks for it. Hours of a vCenter that is away, and a reboot of all nodes.
VM_STEP_AFTER = replace(
    VM_STEP_BEFORE,
    schedule_to_start=timedelta(minutes=15),
    schedule_to_close=timedelta(hours=6),
    retry=_PATIENT,
)
# A look that fails is not tried again: the next one comes.
LOOK = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=2),
    retry=_ONCE,
)
# A snapshot task can take long on a loaded host. Waited for even when cancelled: else it leaks. Each try may halt the
# guest for a moment, so there are fewer than the look before has: three minutes of a vCenter that is away.
SNAPSHOT = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=1),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(
        initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1), maximum_attempts=8
    ),
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# A disk may take a day; what was committed is not read again, so tries are cheap.
TRANSFER = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=24),
    heartbeat=HEARTBEAT,
    retry=_HELD,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# The MediaAgent's steps while the snapshot is held: opening is short, sealing reads every pack back, and may wait for
# other VMs' seals.
MEDIA_AGENT = StepPolicy(
    start_to_close=timedelta(hours=12),
    schedule_to_close=timedelta(hours=24),
    heartbeat=HEARTBEAT,
    retry=_HELD,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# … and the index, when it is gone: a day of a repository that is away.
MEDIA_AGENT_AFTER = replace(MEDIA_AGENT, retry=_PATIENT)
# A cancel that comes between two tries to write the index: the first may have written it, so the next one is awaited.
INDEX_AFTER_CANCEL = timedelta(minutes=1)
# A part of a prune or a verification, or the copy of one backup. It may wait for a slot for as long as other upkeep
# takes, and goes on where it was: a MediaAgent or a store may be away for days. Then somebody must be told.
UPKEEP_PART = StepPolicy(
    start_to_close=timedelta(hours=24),
    schedule_to_close=timedelta(hours=72),
    heartbeat=HEARTBEAT,
    retry=_PATIENT,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# What an unfinished backup has stored: worth waiting a while for a slot beside prunes and verifications, which may hold
# it for hours, and an hour of reading back; what is listed by then counts. It is never worth more than the next backup.
LEAVE = StepPolicy(
    schedule_to_start=timedelta(minutes=10),
    start_to_close=timedelta(hours=1),
    schedule_to_close=timedelta(hours=2),
    heartbeat=HEARTBEAT,
    retry=_SOON,
)
# A removal's try ends by itself after REMOVAL_TRY, and later only while it lists many directories or hangs.
REMOVAL = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=15),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=30)),
)
# RemoveSnapshot tries without limit and pauses by itself, visibly, holding no slot. A try that no access node takes
# within minutes is told as such.
CLEAN_UP = replace(
    REMOVAL,
    schedule_to_start=timedelta(minutes=5),
    retry=_ONCE,
)
# A sweep's look at a vCenter with 10,000 VMs takes a minute, at forty directories two. With no access node within
# minutes this sweep can do nothing, and the next one comes.
SWEEP_LOOK = StepPolicy(
    schedule_to_start=timedelta(minutes=5),
    start_to_close=timedelta(minutes=30),
    heartbeat=HEARTBEAT,
    retry=_SOON,
)
# Step 15 only asks; a node that does not answer gets no further VM until it answers a ping.
ASK = StepPolicy(
    schedule_to_start=PING_WITHIN,
    start_to_close=PING_WITHIN,
    retry=_ONCE,
)
# What a failed restore leaves must go, also when vCenter or the filer is away for a while; then a human is told.
DISCARD = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=30),
    schedule_to_close=timedelta(hours=1),
    heartbeat=HEARTBEAT,
    retry=_SOON,
)
# A restored disk is written, read back and compared; a try begins the disk again.
RESTORE_DISK = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=24),
    heartbeat=HEARTBEAT,
    retry=_SOON,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
