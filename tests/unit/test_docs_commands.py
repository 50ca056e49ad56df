"""Goal: no document tells a command that no test runs, or one that does not exist.

tests/e2e/test_documented_commands.py runs what stands in the blocks marked `console`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.documents import DOCUMENTS, ELSEWHERE, ROOT, commands, inline_commands, stray_commands
from workers.cli.app import app

# Names of the repository's format that begin like the command.
NO_COMMANDS = {"safehaul repository"}
KEY_CONTEXT = "safehaul v1 "
SPANS = sorted(
    {
        span
        for document in DOCUMENTS
        for span in inline_commands(document)
        if not span.startswith(KEY_CONTEXT) and span not in NO_COMMANDS
    }
)
TYPED = sorted(
    {
        part.strip()
        for document in DOCUMENTS
        for command in commands(document)
        for part in re.split(r"\|\|?|&&|>|\$\(|\)", command.text)
        if part.strip().startswith("safehaul ")
    }
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_command_stands_outside_of_a_console_block(document: Path) -> None:
    assert stray_commands(document.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "    make demo    # what it does",
        "    $ anything at all",
        "   1. temporal workflow list",
        "```sh\nls\n```",
        "```bash\n# a comment\nsafehaul job list\n```",
        "```\nsafehaul restore vm X\n```",
        "```text\nexport A=1\n```",
        "text\n\n    safehaul --debug config check\n",
        "    sudo apt-get install golang-go",
        "    . .venv/demo-environment",
    ],
)
def test_a_command_outside_of_a_console_block_would_be_found(text: str) -> None:
    assert stray_commands(text)


@pytest.mark.parametrize(
    "text",
    [
        "safehaul backs up VMs.\nsafehaul then runs as the user.\nsafehaul starts a job as well.",
        "make one of your own, make a role",
        "temporal --- commserve",
        "```console\n$ make demo\n```",
        "1. Start it:\n\n   ```console\n   $ safehaul job list\n   ```",
        "see `safehaul job list`",
    ],
)
def test_a_sentence_and_a_console_block_are_no_stray_commands(text: str) -> None:
    assert stray_commands(text) == []


@pytest.mark.parametrize("text", [*SPANS, *TYPED])
def test_every_safehaul_command_exists_with_its_options(text: str) -> None:
    """Spans may have placeholders in capitals and `[…]` around what may be left out."""
    words = [word.strip("[]") for word in shlex.split(text.replace("…", ""))[1:]]
    command: Any = typer.main.get_command(app)
    options = {"--help", "--install-completion", "--show-completion"}
    for word in words:
        options |= {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
        children: dict[str, Any] = getattr(command, "commands", {})
        if word.startswith("--"):
            assert word in options, f"{text}: there is no {word}"
        elif children and word != "COMMAND" and not word.startswith(("/", "safehaul.")):
            assert word in children, f"{text}: there is no {word}"
            command = children[word]
    unknown = [word for word in words if word.startswith("--") and word not in options]
    assert unknown == []


def test_what_is_run_elsewhere_is_still_in_a_document_and_its_test_exists() -> None:
    """An exception that no document needs any more would hide the next wrong command."""
    texts = [command.text for document in DOCUMENTS for command in commands(document)]
    assert [pattern for pattern in ELSEWHERE if not any(re.match(pattern, text) for text in texts)] == []
    for where in ELSEWHERE.values():
        for path in re.findall(r"(?:tests|lab|\.ci)/[\w/.]*\w", where):
            assert (ROOT / path).exists(), where


def test_every_document_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    named = [document for document in DOCUMENTS if document.name != "README.md"]
    assert [item.name for item in named if f"](docs/{item.name})" not in readme] == []
