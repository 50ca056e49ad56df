"""What the trivial steps work on: a test changes it beforehand, and looks at it afterwards."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from temporalio import activity
from temporalio.exceptions import CancelledError

from safehaul.messages.job import Excluded
from safehaul.messages.plan import PlannedVm
from safehaul.messages.steps import Removal, RemovalInput
from safehaul.messages.vm import VmOptions, VmReport


class World:
    """What the trivial steps pretend to work on, and what they did: thread-safe."""

    def __init__(self, vm_count: int = 3, nodes: tuple[str, ...] = ("n1",), streams: int = 2) -> None:
        self.vm_count, self.nodes, self.streams = vm_count, nodes, streams
        self.stream_slots: int | None = None  # transfers at once; None: enough for all jobs
        self.distribution = "dynamic"
        self.power: dict[str, float] = {}  # node → power, as step 5 tells it
        self.snapshots: dict[str, str] = {}  # name → VC.GUID, of snapshots that exist
        self.calls: Counter[str] = Counter()
        self.order: list[tuple[str, str]] = []
        self.filer_is_away: Callable[[], bool] = lambda: False
        self.hooks: dict[str, Callable[[Any], object]] = {}
        self.removals: Callable[[RemovalInput], Removal] | None = (
            None  # what step 13 answers, instead of removing
        )
        self.reports: dict[str, list[VmReport]] = {}
        self.options = VmOptions(removal_handover_s=20)
        self.failed: list[Excluded] = []  # as discovery tells them
        self.transports = ["nas"]  # step 8's verdict for each disk of every VM
        self.lock = threading.Lock()

    def did(self, name: str, key: str, arg: Any) -> None:
        """Note a call, and run the test's hook for it."""
        with self.lock:
            self.calls[name] += 1
            self.order.append((name, key))
        hook = self.hooks.get(name)
        if hook is not None:
            hook(arg)

    def vms(self) -> list[PlannedVm]:
        """The VMs of the plan."""
        return [
            PlannedVm(vc_guid=f"vc.{number:05d}", name=f"vm-{number:05d}", moref=f"vm-{number}")
            for number in range(self.vm_count)
        ]


def wait_for_cancel(seconds: float = 30.0) -> None:
    """A step's body that ends early when it is cancelled, and ignores the cancel."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not activity.is_cancelled():
        activity.heartbeat()
        time.sleep(0.02)


def stops(_arg: Any) -> None:
    """A step's body that stops when it is told to, as a transfer does between two pieces."""
    wait_for_cancel()
    raise CancelledError("the step was asked to stop")


def ignores(_arg: Any) -> None:
    """A step's body that notices, and ends well all the same."""
    wait_for_cancel()


def first_call(world: World, step: str, body: Callable[[Any], None]) -> None:
    """`body` is the step's first run; the next ones do it at once."""
    world.hooks[step] = lambda arg: body(arg) if world.calls[step] == 1 else None
