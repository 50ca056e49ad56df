"""How every command shows things: tables for people, JSON for scripts, foreign text made harmless."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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
    "safe_lines",
    "say",
    "show_json",
    "size",
    "table",
    "warn",
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


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], *, title: str = "") -> None:
    """Print a table; every cell may hold foreign text. Columns that end with `>` are numbers.

    Where it is wider than the terminal its last column, mostly a reason or an id, stands below each row: cells that are
    folded into many lines can be neither read nor copied.
    """
    cells = [[safe(str(cell)) for cell in row] for row in rows]
    out = console()
    widths = [
        max(cell_len(_bare(text)) for text in (name.rstrip(">"), *(row[index] for row in cells)))
        for index, name in enumerate(columns)
    ]
    if sum(widths) + 3 * len(widths) + 1 > out.width:
        _narrow_table(out, columns, cells, widths, title)
        return
    made = Table(title=escape(title) if title else None, header_style="bold", title_justify="left")
    for name in columns:
        made.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in cells:
        made.add_row(*row)
    out.print(made)


def _narrow_table(
    out: Console, columns: Sequence[str], cells: list[list[str]], widths: list[int], title: str
) -> None:
    """A table without rules; no line of it is broken here."""

    def line(row: Sequence[str]) -> str:
        padded = []
        for name, text, width in zip(columns[:-1], row, widths, strict=False):
            gap = " " * (width - cell_len(_bare(text)))
            padded.append(gap + text if name.endswith(">") else text + gap)
        return "  ".join(padded).rstrip()

    if title:
        out.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True)
    names = [name.rstrip(">") for name in columns]
    out.print(f"[bold]{line(names)}  {names[-1]}[/bold]", soft_wrap=True)
    for row in cells:
        out.print(line(row), soft_wrap=True)
        if row[-1]:
            out.print(f"    {row[-1]}", soft_wrap=True)


def _bare(markup: str) -> str:
    """A cell as it is shown, without the escapes of `safe`."""
    return Text.from_markup(markup).plain


def say(text: str) -> None:
    """Print a line, never broken, so that an id can be copied; foreign text in it must have gone through `safe`."""
    console().print(text, soft_wrap=True)


def warn(problem: str) -> None:
    """Tell a problem that stops nothing, on stderr; nothing for an empty one."""
    if problem:
        sys.stderr.write(f"safehaul: {plain(problem)}\n")


def safe(text: str) -> str:
    """Foreign text (a VM's name, a path) in one line, without control characters and without markup."""
    return escape(plain(text).replace("\n", "\\n"))


def safe_lines(text: str) -> str:
    """Foreign text of several lines that a person may copy (TOML to add), the later ones indented; else as `safe`."""
    return "\n    ".join(safe(line) for line in text.splitlines())


def plain(text: str) -> str:
    """Text whose control characters are shown and not obeyed; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run what speaks with Temporal."""
    return asyncio.run(work)
