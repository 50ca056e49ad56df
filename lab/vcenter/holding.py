"""Holds one call on its way: before it is executed, or after it was executed and before it is answered.

What a network or a busy vCenter does to a call, at a moment that somebody chooses: he arms it with the method's name
and the number of the arrival, is told when that call has come, does what he wants done at that moment, and releases it.
A call that was held before its execution is executed then, even when nobody waits for its answer any more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

LONGEST_HOLD_S = 180.0
When = Literal["before", "after"]


class HoldOrder(BaseModel):
    """Which call is held: the `nth` arrival of `method` from now on."""

    method: str
    nth: int = Field(default=1, ge=1)
    when: When = "before"


@dataclass(frozen=True)
class Visit:
    """A call that has arrived while an order stood: the how manyth of its method it is."""

    number: int
    client_port: int


class CallHold:
    """At most one order at a time. Safe for many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._order: HoldOrder | None = None
        self._arrived = 0
        self._reached: dict[str, Any] | None = None

    def arm(self, order: HoldOrder) -> None:
        """Hold what the order says; an earlier order is released."""
        with self._changed:
            self._order, self._arrived, self._reached = order, 0, None
            self._changed.notify_all()

    def release(self) -> None:
        """Let the held call go on, and hold nothing more."""
        with self._changed:
            self._order = None
            self._changed.notify_all()

    def wait_reached(self, timeout_s: float) -> dict[str, Any]:
        """`{"reached": true, "client_port": …}` once the call is held; `{"reached": false}` after the time."""
        with self._changed:
            self._changed.wait_for(lambda: self._reached is not None, timeout_s)
            return {"reached": False} if self._reached is None else {"reached": True, **self._reached}

    def arrive(self, method: str, client_port: int) -> Visit | None:
        """Count a call; None when no order concerns its method."""
        with self._changed:
            if self._order is None or self._order.method != method:
                return None
            self._arrived += 1
            return Visit(self._arrived, client_port)

    def stop_here(self, visit: Visit | None, when: When) -> None:
        """Return when nothing holds the call (any more)."""
        if visit is None:
            return
        with self._changed:
            order = self._order
            if order is None or order.when != when or order.nth != visit.number:
                return
            self._reached = {"client_port": visit.client_port}
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._order is not order, LONGEST_HOLD_S)
