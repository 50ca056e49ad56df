"""What is seen from outside while a job runs, counted; and a stop at the one sighting that is waited for."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from tests.crash.points import Point, When

LONGEST_HOLD_S = 180.0


@dataclass(frozen=True)
class Sighting:
    """Something has just happened. `client_port` or `node` tell who did it, where that is known."""

    kind: str
    name: str
    when: When
    client_port: int = 0
    node: str = ""


class Sightings:
    """Counts sightings by kind, name and side. Safe for many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._point: Point | None = None
        self._reached: Sighting | None = None

    def begin(self, point: Point | None) -> None:
        """Count from nothing, and stop at `point`."""
        with self._changed:
            self._counts.clear()
            self._point, self._reached = point, None
            self._changed.notify_all()

    def see(self, sighting: Sighting, *, may_wait: bool = False) -> None:
        """Count a sighting. With `may_wait` this returns only after `release` if it is the one waited for."""
        key = (sighting.kind, sighting.name, sighting.when)
        with self._changed:
            self._counts[key] += 1
            point = self._point
            if point is None or (point.kind, point.name, point.when) != key or point.nth != self._counts[key]:
                return
            self._reach(sighting)
            if may_wait:
                self._changed.wait_for(lambda: self._point is not point, LONGEST_HOLD_S)

    def reach(self, sighting: Sighting) -> None:
        """The point is reached, as somebody else has counted."""
        with self._changed:
            if self._point is not None:
                self._reach(sighting)

    def wait(self, timeout_s: float) -> Sighting | None:
        """The sighting at the point, or None when it does not come in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._reached is not None, timeout_s)
            return self._reached

    def release(self) -> None:
        """Let what waits go on; nothing more is waited for."""
        with self._changed:
            self._point = None
            self._changed.notify_all()

    def counted(self) -> dict[tuple[str, str, str], int]:
        """Sightings since `begin` by kind, name and side."""
        with self._changed:
            return dict(self._counts)

    def _reach(self, sighting: Sighting) -> None:
        if self._reached is None:
            self._reached = sighting
            self._changed.notify_all()
