"""A MediaAgent's process: opens, seals and indexes backups in its repository, and looks after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from activities.index import MediaAgentIndexing
from activities.peers import Peers
from activities.upkeep_copy import BackupCopies
from activities.upkeep_verify import RepositoryVerification
from safehaul.config.settings import Settings
from workers.bootstrap import GRACE, HEARTBEAT_THROTTLE, connect, deployment, run_until_stopped
from workflows import policies

SLOTS = 8
UPKEEP_SLOTS = 2
"""Verification, copy, prune: long work, a stream each, which must not keep a backup's seal waiting."""


async def serve(settings: Settings, name: str) -> None:
    """Run the MediaAgent `name` until the process is asked to stop. Errors: its repository cannot be opened."""
    role = f"media-agent.{name}"
    peers = Peers(settings)
    peers.repository(name)
    client = await connect(settings, role)
    steps = MediaAgentIndexing(peers)
    try:
        with (
            ThreadPoolExecutor(max_workers=SLOTS, thread_name_prefix=role) as threads,
            ThreadPoolExecutor(max_workers=UPKEEP_SLOTS, thread_name_prefix=f"{role}.upkeep") as upkeep,
        ):
            quick: list[Callable[..., Any]] = [steps.open_backup, steps.seal_backup, steps.write_index]
            workers = [
                _worker(client, policies.media_agent_queue(name), quick, threads, SLOTS),
                _worker(client, policies.upkeep_queue(name), upkeep_steps(peers), upkeep, UPKEEP_SLOTS),
            ]
            await run_until_stopped(workers, role)
    finally:
        peers.close()


def upkeep_steps(peers: Peers) -> list[Callable[..., Any]]:
    """The activities of the queue for long work."""
    copies, verification = BackupCopies(peers), RepositoryVerification(peers)
    return [
        copies.plan_copy,
        copies.copy_backup,
        verification.begin_verification,
        verification.verify_part,
        verification.finish_verification,
    ]


def _worker(
    client: Client,
    queue: str,
    activities: Sequence[Callable[..., Any]],
    threads: ThreadPoolExecutor,
    slots: int,
) -> Worker:
    return Worker(
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
