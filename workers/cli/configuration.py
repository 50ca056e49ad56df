"""`safehaul config …`: check the configuration, print an example, print the reference."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from safehaul.config.example import example_toml, short_toml, with_own_id
from safehaul.config.loader import check as check_file
from safehaul.config.loader import find_config
from safehaul.config.reference import reference_markdown
from workers.cli.output import Json, of, plain, safe, say, show_json

app = typer.Typer(no_args_is_help=True)


@app.command()
def check(context: typer.Context, *, as_json: Json = False) -> None:
    """Say everything that is wrong with the configuration at once. Example: `safehaul config check`."""
    path = find_config(of(context).config)
    problems = check_file(path)
    if as_json:
        show_json([{"file": str(item.file), "key": item.key, "reason": item.reason} for item in problems])
    elif problems:
        sys.stderr.write("".join(f"{plain(str(item))}\n" for item in problems))
    else:
        say(f"{safe(str(path))}: no problem found")
    if problems:
        raise typer.Exit(2)


@app.command()
def example(
    *,
    short: Annotated[bool, typer.Option("--short", help="Little more than what must be there.")] = False,
    as_json: Json = False,
) -> None:
    """Print a complete configuration with comments, or a short one to begin with; each with a new installation_id.

    Example: `safehaul config example --short > safehaul.toml`.
    """
    text = with_own_id(short_toml() if short else example_toml())
    if as_json:
        show_json({"toml": text})
    else:
        sys.stdout.write(text)


@app.command()
def reference(*, as_json: Json = False) -> None:
    """Print what every key of the configuration means, as Markdown. Example: `safehaul config reference`."""
    if as_json:
        show_json({"markdown": reference_markdown()})
    else:
        sys.stdout.write(reference_markdown())
