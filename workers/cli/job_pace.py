"""How fast a job gets on, and when it will be done at that pace."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from safehaul.messages.progress import JobProgress
from workers.cli.output import size
from workers.cli.vm_looks import Looks

WINDOW_S = 120.0
"""The pace is that of the last two minutes: it follows what happens, and not every stutter."""
MEASURED_S = 5.0
"""Heartbeats come every five seconds: what is shorter is no measurement."""
READ_STEP = 11


def covered_bytes(progress: JobProgress, looks: Looks) -> int:
    """Bytes of the selected VMs' disks that are dealt with: of ended VMs, and of running ones as far as they are."""
    done = progress.capacity_ended_bytes
    for vm in progress.running:
        look = looks(vm.child_id)
        if look is not None and look.beat is not None:
            done += min(look.beat.vm_done_bytes, vm.capacity_bytes)
        elif look is not None and look.step > READ_STEP:
            done += vm.capacity_bytes
    return done


@dataclass(frozen=True)
class Measure:
    """Where a job stands in bytes of its VMs' disks, and how fast that grows."""

    covered_bytes: int = 0
    capacity_bytes: int = 0
    bytes_per_s: float | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds until all is covered at this pace; None when nobody can say."""
        if not self.bytes_per_s or not self.capacity_bytes:
            return None
        return max(0, self.capacity_bytes - self.covered_bytes) / self.bytes_per_s

    def text(self) -> str:
        """`163.0 MiB of 361.0 MiB · 35.0 MiB/s · about 6 s left`, as far as it is known."""
        if not self.capacity_bytes:
            return ""
        parts = [f"{size(self.covered_bytes)} of {size(self.capacity_bytes)}"]
        if self.bytes_per_s is not None:
            parts.append(f"{size(self.bytes_per_s)}/s")
        if self.left_s is not None:
            parts.append(f"about {span(self.left_s)} left")
        return " · ".join(parts)


class Pace:
    """The pace over the last two minutes of watching."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def measure(self, progress: JobProgress, looks: Looks, now: float | None = None) -> Measure:
        """Take note of where the job stands now. `now`: seconds of a steady clock."""
        at = time.monotonic() if now is None else now
        covered = covered_bytes(progress, looks)
        self._seen.append((at, covered))
        while at - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        begun, before = self._seen[0]
        pace = max(0, covered - before) / (at - begun) if at - begun >= MEASURED_S else None
        return Measure(covered, progress.capacity_bytes, pace)


def span(seconds: float) -> str:
    """A time as a person reads it: `1 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
