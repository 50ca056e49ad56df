"""The guest's writer: a thread that lets the VM write blocks at a steady rate until it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TICK_S = 0.02
# After a stall (a frozen VM, a busy machine) the guest does not catch up more than this at once.
MAX_BURST_S = 0.2


class GuestWriter:
    """Calls `write_next` `rate` times a second. An exception of `write_next` ends it and is told to
    `failed`.
    """

    def __init__(
        self, name: str, rate: int, write_next: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        self._rate = rate
        self._write_next = write_next
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"guest of {name}", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Stop writing; returns when the last write is done. Idempotent."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        due = 0.0
        last = time.monotonic()
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            due = min(due + (now - last) * self._rate, self._rate * MAX_BURST_S + 1)
            last = now
            try:
                while due >= 1 and not self._stop.is_set():
                    self._write_next()
                    due -= 1
            except Exception as error:  # noqa: BLE001 - whatever stops a guest is recorded by `failed`
                self._failed(error)
                return
