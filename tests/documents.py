"""The commands that the documents tell a reader to type, and which of them another test runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"(?m)^( *)```([\w-]*)\n(.*?)^\1```$", re.DOTALL)
_SHELLS = {"sh", "bash", "zsh", "fish", "shell", "shell-session", "session"}
# A program and what follows it in a command, but hardly in a sentence.
_A_COMMAND = re.compile(
    r"\s*(?:[-*\d.]+\s+)?(?:"
    r"\$ |"
    r"(?:sudo )?(?:"
    r"safehaul (?:-|(?:demo|version|setup)\b|"
    r"(?:worker|group|job|backups|copy|restore|repo|retention|snapshots|catalog|config) [a-z])|"
    r"temporal (?:workflow|server|operator|worker|activity|batch|schedule|task-queue) [a-z]|"
    r"make (?:demo|test|test-all|bench|check|venv|format|lock|clean)\b|"
    r"(?:apt|apt-get|dnf|pip|uv) (?:install|update)|"
    r"python3? -|git (?:clone|checkout|pull) |openssl [a-z_]+ -|curl -|docker run|systemctl [a-z]|mount -|"
    r"export \w+=|\. \.?/?\.venv"
    r"))"
)
ELSEWHERE = {
    r"make demo( |$)": "tests/e2e/test_demo.py; with --keep the fixture of tests/e2e/test_documented_commands.py",
    r"make test( |$)": ".ci/run",
    r"make bench( |$)": "tests/e2e/test_bench.py, with a small disk",
    r"safehaul worker ": "lab/datacentre.py starts every worker so",
    r"safehaul repo init$": "lab/datacentre.py makes every repository so; a second one is refused",
    r"safehaul copy ": "tests/workflow/test_copy_backups.py, between two MediaAgents",
    r"python docs/restore_standalone.py ": "tests/unit/test_restore_standalone.py",
    r"aws s3api ": "tests/contract/test_object_lock.py makes the same requests with Amazon's own client",
    r"openssl s_client ": "tests/contract/test_vcenter_role.py",
    r"apt-get install ": ".ci/run installs Debian's packages",
    r"temporal (worker deployment|workflow update-options) ": "tests/workflow/test_versioning.py",
}
"""Commands that tests/e2e/test_documented_commands.py leaves out → what runs them, or the like of them."""


@dataclass(frozen=True)
class Command:
    """One command of a document, in the order of reading; several lines when it goes on with a backslash."""

    document: str
    text: str

    @property
    def runs_elsewhere(self) -> bool:
        """True when ELSEWHERE names what runs it."""
        return any(re.match(pattern, self.text) for pattern in ELSEWHERE)


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


def stray_commands(text: str) -> list[str]:
    """Lines of a document that look like a command and stand in no block marked `console`: nobody would run them.

    Every line of a block that is marked as a shell's counts, whatever it looks like.
    """
    stray: list[str] = []

    def keep(block: re.Match[str]) -> str:
        _, language, body = block.groups()
        if language in _SHELLS:
            stray.extend(line.strip() for line in body.splitlines() if line.strip())
        return body if language not in {"console", *_SHELLS} else ""

    rest = _FENCE.sub(keep, text)
    return stray + [line.strip() for line in rest.splitlines() if _A_COMMAND.match(line)]


def inline_commands(document: Path) -> list[str]:
    """Code spans that begin with `safehaul `."""
    text = _FENCE.sub("", document.read_text())
    return re.findall(r"`(safehaul [^`\n]+)`", text)
