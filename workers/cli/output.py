"""How every command shows things: tables for people, JSON for scripts, foreign text made harmless."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from safehaul.config.loader import find_config, load
from safehaul.config.settings import Settings
from safehaul.sizes import readable as size

__all__ = [
    "Json",
    "Output",
    "console",
    "of",
    "plain",
    "run",
    "safe",
    "say",
    "show_json",
    "size",
    "table",
]

ResultT = TypeVar("ResultT")
PIPE_WIDTH = 1000
"""Columns of a table that goes to a pipe or file, so that no id is broken."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, and nothing else.")]


@dataclass
class Output:
    """What the global options say; commands get it as their context's object."""

    config: Path | None = None
    debug: bool = False

    def settings(self) -> Settings:
        """The configuration. Raises ConfigError with everything that is wrong with it."""
        return load(find_config(self.config))


def of(context: typer.Context) -> Output:
    """The global options of a command's context."""
    output = context.find_object(Output)
    assert output is not None, "the application's callback has made it"
    return output


def console() -> Console:
    """Where people read: stdout. Elsewhere than on a terminal, lines are as long as they need to be."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, width=width)


def show_json(value: Any) -> None:
    """Print one JSON value for a script. ASCII only: foreign text can neither steer a terminal nor fail to encode."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True, default=str) + "\n")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, title: str = "") -> None:
    """Print a table; every cell may hold foreign text. Columns that end with `>` are numbers."""
    made = Table(title=escape(title) if title else None, header_style="bold", title_justify="left")
    for name in columns:
        made.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(safe(str(cell)) for cell in row))
    console().print(made)


def say(text: str) -> None:
    """Print a line, never broken, so that an id can be copied; foreign text in it must have gone through `safe`."""
    console().print(text, soft_wrap=True)


def safe(text: str) -> str:
    """Foreign text (a VM's name, a path) in one line, without control characters and without markup."""
    return escape(plain(text).replace("\n", "\\n"))


def plain(text: str) -> str:
    """Text whose control characters are shown and not obeyed; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run what speaks with Temporal."""
    return asyncio.run(work)
