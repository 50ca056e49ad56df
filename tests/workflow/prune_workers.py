"""Workers for PruneRepository: CommServe with its real workflows, and a MediaAgent's queue for upkeep."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from activities.commserve import CommServe
from activities.peers import Peers
from safehaul.messages.prune import Collected, ForgetPage, ForgottenItem, PruneStep, Purged, VmPruned
from tests.workflow.conftest import THROTTLE
from tests.workflow.trivial import _defn
from workers.bootstrap import sandbox
from workflows import policies
from workflows.catalogue import WORKFLOWS


@asynccontextmanager
async def upkeep(
    client: Client, steps: Sequence[Callable[..., Any]], media_agent: str = "vault"
) -> AsyncIterator[None]:
    """CommServe and the MediaAgent's upkeep, which has these steps."""
    commserve = CommServe(Peers.__new__(Peers), client)
    with ThreadPoolExecutor(4) as threads:
        async with (
            Worker(
                client,
                task_queue=policies.COMMSERVE_QUEUE,
                workflows=WORKFLOWS,
                activities=[commserve.request_cancel],
                workflow_runner=sandbox(),
            ),
            Worker(
                client,
                task_queue=policies.upkeep_queue(media_agent),
                activities=steps,
                activity_executor=threads,
                max_concurrent_activities=2,
                max_heartbeat_throttle_interval=THROTTLE,
                default_heartbeat_throttle_interval=THROTTLE,
            ),
        ):
            yield


class TrivialPrune:
    """The steps of a prune under their real names: fakes, of two pieces of forgetting."""

    def __init__(self, hook: Callable[[str], None] = lambda _: None) -> None:
        self.called: list[tuple[str, PruneStep]] = []
        self._hook = hook

    @_defn("forget_backups")
    def forget_backups(self, arg: PruneStep) -> ForgetPage:
        self._did("forget_backups", arg)
        number = 2 if arg.after else 1
        vm = VmPruned(
            vc_guid=f"vc.{number}",
            vm_name=f"web {number}",
            forgotten=[ForgottenItem(backup_id="b1", reason="no rule keeps it")],
            forgotten_count=1,
            kept_count=3,
            kept_for={"daily": 3},
        )
        return ForgetPage(
            after=vm.vc_guid,
            ended=number == 2,
            vms=1,
            backups=4,
            forgotten=1,
            told=[vm],
            rules={"nightly": "3 daily, at least 1"},
            problems=[f"p{number}"],
        )

    @_defn("purge_forgotten")
    def purge_forgotten(self, arg: PruneStep) -> Purged:
        self._did("purge_forgotten", arg)
        return Purged(purged=1, waiting=2)

    @_defn("collect_garbage")
    def collect_garbage(self, arg: PruneStep) -> Collected:
        self._did("collect_garbage", arg)
        return Collected(freed_bytes=3 << 20, numbers={"packs_deleted": 3})

    def all(self) -> list[Callable[..., Any]]:
        """The three steps."""
        return [self.forget_backups, self.purge_forgotten, self.collect_garbage]

    def _did(self, name: str, arg: PruneStep) -> None:
        self.called.append((name, arg))
        self._hook(name)
