"""Markdown for Temporal's web UI (current details): tables that can be read there, foreign text made harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from urllib.parse import quote

from safehaul.sizes import readable

MAX_CELL_CHARS = 200
# The UI sets a table's columns without any space between them, and trims ordinary spaces.
GAP = "\N{EM SPACE}"
# The UI loads what it shows as the query of an address, and web servers before it take lines of 8 KiB (nginx).
MAX_ENCODED_BYTES = 7_000
_PUNCTUATION = re.compile(r"([\\`*_\[\]<>|~&!#])")


def cell(text: str) -> str:
    """Untrusted text: one line, bounded, and none of it markup, so that no name can make a link or an image."""
    line = " ".join(text[:MAX_CELL_CHARS].split())
    return _PUNCTUATION.sub(r"\\\1", line).replace("://", ":\\//").replace("www.", "www\\.")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; columns that end with `>` are numbers. Cells are markdown: see `cell`."""
    head = " | ".join(name.rstrip(">") + GAP for name in columns)
    rule = "|".join("---:" if name.endswith(">") else "---" for name in columns)
    return [
        f"| {head} |",
        f"|{rule}|",
        *("| " + " | ".join(item + GAP for item in row) + " |" for row in rows),
    ]


def link(text: str, namespace: str, workflow_id: str) -> str:
    """A link to a workflow in the web UI that shows it."""
    return f"[{cell(text)}](/namespaces/{quote(namespace, safe='')}/workflows/{quote(workflow_id, safe='')})"


def size(size_bytes: int) -> str:
    """A number of bytes that is not broken into two lines."""
    return readable(size_bytes).replace(" ", "\N{NO-BREAK SPACE}")


def bounded(lines: Iterable[str]) -> str:
    """The lines as one text, cut where the web UI could no longer load it."""
    taken: list[str] = []
    room = MAX_ENCODED_BYTES
    for line in lines:
        room -= len(quote(line)) + len("%0A")
        if room < 0:
            return "\n".join([*taken, "", "…"])
        taken.append(line)
    return "\n".join(taken)


def stamp(at: datetime) -> str:
    """A point in time as people are told it."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
