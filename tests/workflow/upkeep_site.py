"""Two MediaAgents with real repositories, and workers for their upkeep: in this process, or as the real program."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.commserve import CommServe
from activities.peers import Peers
from activities.upkeep_copy import BackupCopies, CopyDesk
from activities.upkeep_verify import RepositoryVerification, VerificationDesk
from lab.processes import LabProcess, tool
from safehaul.config.loader import load
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from tests.workflow.conftest import THROTTLE
from workers.bootstrap import sandbox
from workflows import policies
from workflows.catalogue import WORKFLOWS

CONFIG = """
installation_id = "{installation}"
[temporal]
address = "{temporal}"
[catalog]
url = "sqlite:///{home}/catalog.db"
[[vcenters]]
name = "vc"
url = "https://vc.example.net"
user = "u"
password = {{ env = "NOT_SET" }}
[[access_nodes]]
name = "n1"
[[media_agents]]
name = "{vault}"
repository = "file://{home}/repository"
copy_to = "{offsite}"
[[media_agents]]
name = "{offsite}"
repository = "file://{home}/offsite/repository"
[[vm_groups]]
name = "nightly"
vcenter = "vc"
media_agent = "{vault}"
rules = [{{ name = "*" }}]
"""


class UpkeepSite:
    """A configuration of its own, so that its queues are; `vault` and `offsite` are its MediaAgents' names."""

    def __init__(self, home: Path, temporal: str, mark: str = "") -> None:
        self.home = home
        mark = mark or uuid.uuid4().hex[:8]
        self.vault, self.offsite = f"vault-{mark}", f"offsite-{mark}"
        self.config = home / "safehaul.toml"
        self.config.write_text(
            CONFIG.format(
                installation=uuid.uuid4(),
                temporal=temporal,
                home=home,
                vault=self.vault,
                offsite=self.offsite,
            )
        )

    def repository(self, folder: str = "") -> Repository:
        """The vault's, or `offsite`'s, as another process opens it."""
        return Repository.open(LocalStore(self.home / folder / "repository"))

    def media_agent(self, name: str) -> LabProcess:
        """The real program."""
        command = [tool("safehaul"), "--config", str(self.config), "worker", "media-agent", name]
        return LabProcess(name, command, self.home / f"{name}.log")

    @asynccontextmanager
    async def workers(
        self, client: Client, *, agents: tuple[str, ...] = (), part_s: float = 0.0, sandboxed: bool = True
    ) -> AsyncIterator[None]:
        """The CommServe, and the upkeep of `agents`, in this process."""
        peers = Peers(load(self.config))
        verification, copies = RepositoryVerification(peers, part_s), BackupCopies(peers)
        upkeep: list[Any] = [
            verification.begin_verification,
            verification.verify_part,
            verification.finish_verification,
            copies.plan_copy,
            copies.copy_backup,
        ]
        async with AsyncExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(8))
            commserve = Worker(
                client,
                task_queue=policies.COMMSERVE_QUEUE,
                workflows=WORKFLOWS,
                activities=[
                    CommServe(peers, client).request_cancel,
                    CopyDesk(peers).open_copy,
                    VerificationDesk(peers).open_verification,
                ],
                activity_executor=threads,
                workflow_runner=sandbox() if sandboxed else UnsandboxedWorkflowRunner(),
            )
            await stack.enter_async_context(commserve)
            for name in agents:
                worker = Worker(
                    client,
                    task_queue=policies.upkeep_queue(name),
                    activities=upkeep,
                    activity_executor=threads,
                    max_heartbeat_throttle_interval=THROTTLE,
                    default_heartbeat_throttle_interval=THROTTLE,
                )
                await stack.enter_async_context(worker)
            yield
        peers.close()
