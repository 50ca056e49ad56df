"""Counts the bytes that an export has read, over all of its files and threads."""

from __future__ import annotations

import threading


class ByteTally:
    """A counter that threads share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        """The sum so far."""
        return self._total_bytes

    def add(self, length_bytes: int) -> None:
        """Count some more."""
        with self._lock:
            self._total_bytes += length_bytes
