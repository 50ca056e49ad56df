"""The call log: one JSON line per SOAP call, so that a test can count calls and see what a client asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO


class CallLog:
    """Appends `{"at", "method", "target", "user", "fault", "ms"}` per call; no arguments: they hold secrets.

    Also keeps the number of calls per method in memory (`counts`).
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._file: IO[str] | None = path.open("a", buffering=1, encoding="utf-8") if path else None

    def record(
        self, method: str, target: str, *, user: str, fault: str, started: float, detail: str = ""
    ) -> None:
        """Log one call that began at `started` (`time.monotonic()`)."""
        line = {
            "at": round(time.time(), 3),
            "method": method,
            "target": target,
            "user": user,
            "fault": fault,
            "ms": round((time.monotonic() - started) * 1000, 1),
        }
        if detail:
            line["detail"] = detail
        with self._lock:
            self._counts[method] += 1
            if self._file is not None:
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def counts(self) -> dict[str, int]:
        """Calls per method since the start."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
