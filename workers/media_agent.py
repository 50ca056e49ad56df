"""A MediaAgent's process: opens, seals and indexes backups in its repository, and keeps that in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from temporalio.worker import Worker

from activities.index import MediaAgentIndexing
from activities.peers import Peers
from activities.upkeep_copy import BackupCopies
from activities.upkeep_prune import UpkeepPrune
from activities.upkeep_verify import RepositoryVerification
from safehaul.config.settings import Settings
from workers.bootstrap import GRACE, HEARTBEAT_THROTTLE, connect, deployment, run_until_stopped
from workflows import policies

SLOTS = 8
UPKEEP_SLOTS = 2
"""Of the queue for long work: it must not keep a backup's steps waiting, nor a verification a prune."""


async def serve(settings: Settings, name: str) -> None:
    """Run the MediaAgent `name` until the process is asked to stop. Errors: its repository cannot be opened."""
    role = f"media-agent.{name}"
    peers = Peers(settings)
    peers.repository(name)
    await asyncio.to_thread(peers.load_indexes, [name])
    client = await connect(settings, role)
    steps, prune = MediaAgentIndexing(peers), UpkeepPrune(peers)
    verification, copies = RepositoryVerification(peers), BackupCopies(peers)
    queues: dict[str, tuple[list[Callable[..., Any]], int]] = {
        policies.media_agent_queue(name): (
            [steps.open_backup, steps.seal_backup, steps.write_index, steps.leave_unfinished],
            SLOTS,
        ),
        policies.upkeep_queue(name): (
            [
                prune.forget_backups,
                prune.purge_forgotten,
                prune.collect_garbage,
                verification.begin_verification,
                verification.verify_part,
                verification.finish_verification,
                copies.plan_copy,
                copies.copy_backup,
                steps.leave_unfinished,
            ],
            UPKEEP_SLOTS,
        ),
    }
    try:
        with ThreadPoolExecutor(max_workers=SLOTS + UPKEEP_SLOTS, thread_name_prefix=role) as threads:
            workers = [
                Worker(
                    client,
                    task_queue=queue,
                    activities=activities,
                    activity_executor=threads,
                    max_concurrent_activities=slots,
                    max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                    default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                    graceful_shutdown_timeout=GRACE,
                    deployment_config=deployment(),
                )
                for queue, (activities, slots) in queues.items()
            ]
            await run_until_stopped(workers, role)
    finally:
        peers.close()
