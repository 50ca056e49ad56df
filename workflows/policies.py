"""Every queue name, time-out and retry policy of the workflows, each with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
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
# busy. Half a minute is longer than any restart of a worker that a service manager does by itself.
NODE_SILENT_AFTER = timedelta(seconds=30)
# A node that is busy with another job is asked again, later and later: each time costs a few events of history.
BUSY_NODE_ASKED_EVERY = timedelta(minutes=10)
# Pings are answered at once or not at all; ten seconds keep the start of a job short when nodes are down.
PING_WITHIN = timedelta(seconds=10)
# Heartbeats are sent every few seconds (the workers lower the throttle): four missed ones mean dead.
HEARTBEAT = timedelta(seconds=20)
# A MediaAgent or the CommServe may be restarted for maintenance: the job waits for it, but not for ever.
AGENT_SILENT_AFTER = timedelta(hours=4)
# The ledger compares its running children with the server this often (signals are hints).
RECONCILE_EVERY = timedelta(seconds=30)
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
_ONCE = RetryPolicy(maximum_attempts=1)

PING = StepPolicy(
    schedule_to_start=PING_WITHIN,
    start_to_close=PING_WITHIN,
    retry=_ONCE,
)
# The CommServe's own small steps: configuration, catalogue, Describe.
COMMSERVE = StepPolicy(
    start_to_close=timedelta(minutes=2),
    schedule_to_close=AGENT_SILENT_AFTER,
    retry=_SOON,
)
# Discovery of 10,000 VMs takes minutes; it heartbeats with each page.
COORDINATOR = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=1),
    heartbeat=HEARTBEAT,
    retry=_SOON,
)
# A node prepares by logging in and opening exports; a dead filer costs it its own connect time-outs.
PREPARE = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=5),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(maximum_attempts=2),
)
# Short steps of a VM on its node: looks, checks, small files. They wait for a cancel to be seen, so that a
# step never goes on behind a workflow that has already ended.
VM_STEP = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=30),
    heartbeat=HEARTBEAT,
    retry=_SOON,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# A snapshot task can take long on a loaded host. Waited for even when cancelled: else it leaks.
SNAPSHOT = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=1),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_attempts=3),
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# A disk may take a day; what was committed is not read again, so tries are cheap.
TRANSFER = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(hours=24),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1), maximum_attempts=20
    ),
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# The MediaAgent's steps: opening is short, sealing reads every pack back.
MEDIA_AGENT = StepPolicy(
    start_to_close=timedelta(hours=12),
    schedule_to_close=timedelta(hours=24),
    heartbeat=HEARTBEAT,
    retry=_PATIENT,
    cancellation=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
# A removal's try ends after minutes, so that a hung task is looked at again by a fresh try.
REMOVAL = StepPolicy(
    schedule_to_start=NODE_SILENT_AFTER,
    start_to_close=timedelta(minutes=30),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=30)),
)
# Handed-over removals are retried without limit: a snapshot left behind is never acceptable.
REMOVAL_UNLIMITED = StepPolicy(
    start_to_close=timedelta(hours=2),
    heartbeat=HEARTBEAT,
    retry=RetryPolicy(
        initial_interval=timedelta(seconds=10), backoff_coefficient=2.0, maximum_interval=timedelta(minutes=5)
    ),
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
