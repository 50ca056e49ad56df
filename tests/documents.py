"""The commands that the documents tell a reader to type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"(?m)^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL)
_COMMAND_WORDS = ("safehaul", "temporal", "make", "apt-get", "openssl", "export", "uuidgen")


@dataclass(frozen=True)
class Command:
    """One command of a document, in the order of reading; several lines when it goes on with a backslash."""

    document: str
    text: str


def commands(document: Path) -> list[Command]:
    """What stands after `$ ` in the blocks marked `console`; what follows such a line is its output."""
    found: list[Command] = []
    for _, language, body in _FENCE.findall(document.read_text()):
        if language != "console":
            continue
        lines = iter(body.splitlines())
        for line in lines:
            stripped = line.strip()
            if not stripped.startswith("$ "):
                continue
            text = stripped[2:]
            while text.endswith("\\"):
                text += "\n" + next(lines)
            found.append(Command(document.name, text))
    return found


def stray_commands(document: Path) -> list[str]:
    """Lines that look like a command and stand in no block marked `console`: nobody would run them."""
    rest = _FENCE.sub(
        lambda block: "" if block.group(2) == "console" else block.group(3), document.read_text()
    )
    return [
        line.strip()
        for line in rest.splitlines()
        if re.match(rf"\s*(\$ )?({'|'.join(_COMMAND_WORDS)}) ", line)
    ]


def inline_commands(document: Path) -> list[str]:
    """Code spans that begin with `safehaul `."""
    text = _FENCE.sub("", document.read_text())
    return re.findall(r"`(safehaul [^`\n]+)`", text)
