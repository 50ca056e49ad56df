"""What passes between access nodes and the filer: seen, paced, and every byte of a disk counted."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict

from lab.nfs_gate import ACCESS, LOOKUP, READ, NfsGate, Passing
from tests.crash.sightings import Sighting, Sightings

_NAMES = {LOOKUP: "LOOKUP", ACCESS: "ACCESS", READ: "READ"}
_FLAT = "-flat.vmdk"
"""Of a disk's files the one that a try reads once, from where it begins to the end. The redo logs are small here, and
what they hold lies in the order in which it was written: it is read in pieces that overlap."""
_PACED_FROM_BYTES = 64 * 1024
RATE_BYTES_S = 24 * 2**20
"""Of each connection. A disk of the lab would be read in a blink otherwise, and nobody could die meanwhile."""


def same_name(name: str) -> str:
    """A file's name without what differs from job to job: the numbers of snapshots and redo logs."""
    return re.sub(r"\d+", "N", name)


class FilerTap:
    """The gate's watcher."""

    def __init__(self, gate: NfsGate, sightings: Sightings) -> None:
        self._sightings = sightings
        self._lock = threading.Lock()
        self._read: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._marks: dict[str, int] = {}
        gate.watcher = self._watch

    def begin(self) -> None:
        """Count bytes from nothing."""
        with self._lock:
            self._read.clear()
            self._marks.clear()

    def mark(self) -> None:
        """Tell what has been served until now apart from what will be."""
        with self._lock:
            self._marks = {name: len(spans) for name, spans in self._read.items()}

    def recorded_again_bytes(self, recorded: dict[str, int]) -> dict[str, int]:
        """By VM: bytes below `recorded` (by VM, from the disk's start) that were served before the mark and after."""
        found: dict[str, int] = {}
        with self._lock:
            for name, spans in self._read.items():
                vm, mark = name.removesuffix(_FLAT), self._marks.get(name, 0)
                before, end = spans[:mark], recorded.get(vm, 0)
                after = [
                    (offset, min(length, end - offset)) for offset, length in spans[mark:] if offset < end
                ]
                new = covered_bytes([*before, *after]) - covered_bytes(before)
                found[vm] = sum(length for _, length in after) - new
        return found

    def read_again_bytes(self) -> dict[str, int]:
        """By VM: bytes of its disk that were served more than once, all tries together."""
        with self._lock:
            return {
                name.removesuffix(_FLAT): sum(length for _, length in spans) - covered_bytes(spans)
                for name, spans in self._read.items()
            }

    def _watch(self, passing: Passing) -> None:
        if passing.answered and passing.procedure == READ and passing.length_bytes:
            if passing.name.endswith(_FLAT):
                with self._lock:
                    self._read[passing.name].append((passing.offset_bytes, passing.length_bytes))
            if passing.length_bytes >= _PACED_FROM_BYTES:
                time.sleep(passing.length_bytes / RATE_BYTES_S)
        self._sightings.see(
            Sighting(
                "nfs",
                f"{_NAMES[passing.procedure]} {same_name(passing.name)}",
                "after" if passing.answered else "before",
                client_port=passing.client_port,
            ),
            may_wait=True,
        )


def covered_bytes(spans: list[tuple[int, int]]) -> int:
    """Bytes that stand in at least one of the (offset, length)s."""
    covered = end = 0
    for offset, length in sorted(spans):
        covered += max(0, offset + length - max(offset, end))
        end = max(end, offset + length)
    return covered
