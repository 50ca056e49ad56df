"""A MediaAgent's process: opens, seals and indexes backups in its repository."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from temporalio.worker import Worker

from activities.index import MediaAgentIndexing
from activities.peers import Peers
from safehaul.config.settings import Settings
from workers.bootstrap import GRACE, HEARTBEAT_THROTTLE, connect, deployment, run_until_stopped
from workflows import policies

SLOTS = 8


async def serve(settings: Settings, name: str) -> None:
    """Run the MediaAgent `name` until the process is asked to stop. Errors: its repository cannot be opened."""
    role = f"media-agent.{name}"
    peers = Peers(settings)
    peers.repository(name)
    await asyncio.to_thread(peers.load_indexes, [name])
    client = await connect(settings, role)
    steps = MediaAgentIndexing(peers)
    try:
        with ThreadPoolExecutor(max_workers=SLOTS, thread_name_prefix=role) as threads:
            worker = Worker(
                client,
                task_queue=policies.media_agent_queue(name),
                activities=[steps.open_backup, steps.seal_backup, steps.write_index],
                activity_executor=threads,
                max_concurrent_activities=SLOTS,
                max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                graceful_shutdown_timeout=GRACE,
                deployment_config=deployment(),
            )
            await run_until_stopped([worker], role)
    finally:
        peers.close()
