"""The CommServe's process: all workflows, and the CommServe's own steps."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from temporalio.client import Client
from temporalio.worker import Worker

from activities.commserve import CommServe
from activities.coordination import JobCoordination
from activities.peers import Peers
from activities.restore_desk import RestoreDesk
from activities.sweep_desk import SweepDesk
from activities.upkeep_copy import CopyDesk
from activities.upkeep_verify import VerificationDesk
from safehaul.config.settings import Settings
from safehaul.errors import TransientError
from workers.bootstrap import GRACE, HEARTBEAT_THROTTLE, connect, deployment, run_until_stopped, sandbox
from workers.search_attributes import ensure_search_attributes
from workflows import policies
from workflows.catalogue import WORKFLOWS

SLOTS = 16

_log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run the CommServe until the process is asked to stop. Errors: the catalogue refuses, or is a newer safehaul's."""
    client = await connect(settings, "commserve")
    await ensure_search_attributes(client)
    peers = Peers(settings, upgrade_catalog=True)
    try:
        await asyncio.to_thread(open_catalog, peers)
        with ThreadPoolExecutor(max_workers=SLOTS, thread_name_prefix="commserve") as threads:
            await run_until_stopped([worker(client, peers, threads)], "commserve")
    finally:
        peers.close()


def open_catalog(peers: Peers) -> None:
    """Bring the catalogue's schema to this version's."""
    try:
        peers.catalog()
    except TransientError as error:
        # Jobs do not wait for a catalogue: it is opened again with the next row.
        _log.warning("%s; jobs run without it, and `safehaul catalog rebuild` brings their rows", error)


def worker(client: Client, peers: Peers, threads: ThreadPoolExecutor) -> Worker:
    """The worker of the queue `commserve`."""
    steps, restores, sweeps = CommServe(peers, client), RestoreDesk(peers), SweepDesk(peers, client)
    # When no access node answers any more, what the job knows is still kept: these need the repository alone.
    unled = JobCoordination(peers, "commserve")
    return Worker(
        client,
        task_queue=policies.COMMSERVE_QUEUE,
        workflows=WORKFLOWS,
        activities=[
            steps.open_job,
            steps.choose_coordinator,
            steps.request_cancel,
            steps.reconcile,
            steps.record_job,
            steps.report_unled_job,
            unled.load_page,
            unled.write_reports,
            unled.close_job,
            restores.open_restore,
            restores.open_disk_restore,
            sweeps.open_sweep,
            sweeps.look_up_owners,
            sweeps.cancel_jobless_vms,
            CopyDesk(peers).open_copy,
            VerificationDesk(peers).open_verification,
        ],
        activity_executor=threads,
        workflow_runner=sandbox(),
        max_concurrent_activities=SLOTS,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=GRACE,
        deployment_config=deployment(),
    )
