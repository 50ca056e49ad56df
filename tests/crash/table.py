"""The matrix as a table of docs/crash-matrix.md, and as the last line that a run prints."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.crash.play import Outcome
from tests.crash.points import KINDS, cells, parse_case

BEGIN, END = "<!-- written by `make crash-matrix`: begin -->", "<!-- written by `make crash-matrix`: end -->"


def last_line(outcomes: list[Outcome]) -> str:
    """The result in one line."""
    return json.dumps(
        {
            "points": len(outcomes),
            "processes": len({parse_case(item.case).process for item in outcomes}),
            "violations": sum(bool(item.violations) for item in outcomes),
            "reread_packs_max": max((item.reread_packs for item in outcomes), default=0.0),
        }
    )


def table(outcomes: list[Outcome], *, date: str, points: int) -> str:
    """The part of the document that a run writes; `points`: how many were found."""
    commits = Counter(item.commit for item in outcomes)
    played = ", ".join(f"{count} at commit {commit}" for commit, count in commits.items())
    lines = [
        f"Ended on {date}: {len(outcomes)} cases, chosen among {points} points of a job; {played}.",
        "",
        "| process | comes back | " + " | ".join(KINDS) + " | cases | violations | re-read, packs at most | "
        "recovery, median | VMs Completed |",
        "|---|---|" + "---|" * (len(KINDS) + 5),
    ]
    for process, aftermath in sorted(cells()):
        found = [item for item in outcomes if parse_case(item.case).cell == (process, aftermath)]
        lines.append(_row(process, aftermath, found))
    return "\n".join([*lines, "", "```json", last_line(outcomes), "```", *_told(outcomes)])


def _row(process: str, aftermath: str, found: list[Outcome]) -> str:
    kinds = Counter(parse_case(item.case).point.kind for item in found)
    statuses = [status for item in found for status in item.statuses.values()]
    cells_ = [
        process,
        aftermath.replace("-", " "),
        *(str(kinds[kind]) for kind in KINDS),
        str(len(found)),
        str(sum(bool(item.violations) for item in found)),
        f"{max((item.reread_packs for item in found), default=0.0):g}",
        f"{statistics.median(item.recovery_s for item in found):.0f} s" if found else "–",
        f"{statuses.count('Completed')} of {len(statuses)}",
    ]
    return "| " + " | ".join(cells_) + " |"


def _told(outcomes: Iterable[Outcome]) -> list[str]:
    bad = [item for item in outcomes if item.violations]
    if not bad:
        return []
    lines = ["", "Violations:", ""]
    for item in bad:
        lines += [f"- `{item.case}`: {'; '.join(item.violations)}"]
    return lines


def write(document: Path, text: str) -> None:
    """Put the table into the document, between its marks. Raises ValueError when they are missing."""
    whole = document.read_text()
    before, _, rest = whole.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        message = f"{document} has no marks for the table"
        raise ValueError(message)
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
