"""What a crash point is, what a case of the matrix is, and how each is written as one line.

    case   PROCESS/AFTERMATH/POINT             access-node/never/vcenter:CreateSnapshot_Task:1:after
    point  KIND:NAME:NTH:WHEN                  nfs:READ one-flat.vmdk:3:before
           clock:SECONDS                       clock:1.250
           zombie:NAME                         zombie:held-call

The line alone says what a case does: whoever has it can repeat the case.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, cast

When = Literal["before", "after"]

PROCESSES = ("commserve", "access-node", "media-agent", "temporal", "vcenter", "filer")
AFTERMATHS = ("at-once", "late", "never")
KINDS = ("vcenter", "nfs", "repository", "history", "clock", "zombie")
REPLACEABLE = ("commserve", "access-node", "media-agent")
"""Where another can take over, so that one may never come back."""
ZOMBIES = ("held-call", "stalled-task", "terminated")
"""See tests.crash.zombies."""

_LATE_S = (20.0, 45.0)


@dataclass(frozen=True, order=True)
class Point:
    """A moment of a job. `name` and `nth` say which of the moments of that kind; `clock` has seconds as its name."""

    kind: str
    name: str
    nth: int = 1
    when: When = "before"

    @property
    def id(self) -> str:
        """As a case's line has it."""
        if self.kind in ("clock", "zombie"):
            return f"{self.kind}:{self.name}"
        return f"{self.kind}:{self.name}:{self.nth}:{self.when}"


@dataclass(frozen=True, order=True)
class Case:
    """One process is killed at one point, and comes back at once, late, or never."""

    process: str
    aftermath: str
    point: Point

    @property
    def id(self) -> str:
        """The line that says it all."""
        return f"{self.process}/{self.aftermath}/{self.point.id}"

    @property
    def cell(self) -> tuple[str, str]:
        """Where it counts in the table."""
        return self.process, self.aftermath

    @property
    def late_s(self) -> float:
        """How long the process stays away when it comes back late: beyond the heartbeat's time-out of 15 s."""
        least, most = _LATE_S
        return round(least + (most - least) * drawn(self.id), 1)


def cells() -> list[tuple[str, str]]:
    """Every (process, aftermath) that there is."""
    return [
        (process, aftermath)
        for aftermath in AFTERMATHS
        for process in PROCESSES
        if aftermath != "never" or process in REPLACEABLE
    ]


def drawn(text: str) -> float:
    """A number in [0, 1) that follows from a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def parse_point(text: str) -> Point:
    """The point of a line. Raises ValueError, which says what is wrong."""
    kind, _, rest = text.partition(":")
    if kind == "clock" and re.fullmatch(r"\d+(\.\d+)?", rest):
        return Point(kind, rest)
    if kind == "zombie" and rest in ZOMBIES:
        return Point(kind, rest)
    found = re.fullmatch(r"(.+):(\d+):(before|after)", rest)
    if kind in KINDS and found:
        return Point(kind, found[1], int(found[2]), cast("When", found[3]))
    message = f"{text!r} is no point: KIND:NAME:NTH:before|after, clock:SECONDS or zombie:{'|'.join(ZOMBIES)}"
    raise ValueError(message)


def parse_case(text: str) -> Case:
    """The case of a line. Raises ValueError, which says what is wrong."""
    process, _, rest = text.strip().partition("/")
    aftermath, _, point = rest.partition("/")
    if (process, aftermath) not in cells():
        known = ", ".join("/".join(cell) for cell in cells())
        message = f"{text!r} does not begin with one of {known}"
        raise ValueError(message)
    return Case(process, aftermath, parse_point(point))
