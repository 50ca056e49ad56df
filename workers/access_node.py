"""An access node's process: its control queue, its streams, and its part of the common clean-up queue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from activities.coordination import JobCoordination, NodeCoordination
from activities.discovery import Discoverer
from activities.index import AccessNodeIndexing
from activities.peers import Peers
from activities.restore import Restores
from activities.restore_into import RestoresInto
from activities.snapshot import Snapshots
from activities.transfer import Transfers
from activities.transport import Transport
from safehaul.config.settings import Settings
from workers.bootstrap import GRACE, HEARTBEAT_THROTTLE, connect, deployment, run_until_stopped
from workflows import policies

Step = Callable[..., Any]
CONTROL_SLOTS_PER_STREAM = 4
"""A VM in work needs one control slot at a time; other jobs', restores', and pings must never wait behind them."""
LEAST_CONTROL_SLOTS = 16
CLEAN_UP_SLOTS = 16
"""A removal that gets stuck holds a slot for a minute of each of its tries (`policies.CLEAN_UP_TRY`), and a dead node
leaves as many VMs at once as it had streams."""


async def serve(settings: Settings, name: str) -> None:
    """Run the access node `name` until the process is asked to stop."""
    node = settings.access_node(name)
    streams = node.streams or len(os.sched_getaffinity(0))
    role = f"access-node.{name}"
    client = await connect(settings, role)
    peers = Peers(settings)
    of_node = {group.media_agent for group in settings.vm_groups if node in settings.access_nodes_of(group)}
    await asyncio.to_thread(peers.load_indexes, sorted(of_node))
    control, transfers, anyones = steps(peers, name, streams)
    slots = max(LEAST_CONTROL_SLOTS, CONTROL_SLOTS_PER_STREAM * streams)
    pools = [ThreadPoolExecutor(size, role) for size in (slots, streams, CLEAN_UP_SLOTS)]
    try:
        await run_until_stopped(
            [
                _worker(client, policies.control_queue(name), control, pools[0], slots),
                _worker(client, policies.streams_queue(name), transfers, pools[1], streams),
                _worker(client, policies.ACCESS_NODES_QUEUE, anyones, pools[2], CLEAN_UP_SLOTS),
            ],
            role,
        )
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        peers.close()


def steps(peers: Peers, name: str, streams: int) -> tuple[list[Step], list[Step], list[Step]]:
    """The steps of the control queue, of the streams, and of the queue that all access nodes serve."""
    node, job = NodeCoordination(peers, name, streams), JobCoordination(peers, name)
    snapshots, transport = Snapshots(peers), Transport(peers)
    transfers, restores, into = Transfers(peers), Restores(peers), RestoresInto(peers)
    indexing = AccessNodeIndexing(peers)
    control: list[Step] = [
        node.ping,
        node.prepare_node,
        node.ask_for_vm,
        Discoverer(peers).discover,
        job.take_lease,
        job.admit_nodes,
        job.distribute,
        job.load_page,
        job.write_reports,
        job.close_job,
        snapshots.inspect_vm,
        snapshots.create_snapshot,
        snapshots.watch_snapshot,
        snapshots.remove_snapshot,
        transport.check_transport,
        transport.download_files,
        transfers.store_files,
        transfers.finish_reading,
        indexing.mark_completed,
        restores.prepare_restore,
        restores.write_vm_files,
        restores.register_vm,
        restores.finish_vm,
        restores.power_on_vm,
        restores.discard_restore,
        into.prepare_in_place,
        into.prepare_disk,
        into.switch_disks,
        into.remove_old_disks,
        into.discard_disks,
    ]
    anyones: list[Step] = [
        snapshots.watch_snapshot,
        snapshots.remove_snapshot,
        indexing.mark_completed,
        restores.discard_restore,
        into.discard_disks,
    ]
    return control, [transfers.transfer_disk, restores.restore_disk], anyones


def _worker(
    client: Client, queue: str, activities: Sequence[Step], pool: ThreadPoolExecutor, slots: int
) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        activities=activities,
        activity_executor=pool,
        max_concurrent_activities=slots,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=GRACE,
        deployment_config=deployment(),
    )
