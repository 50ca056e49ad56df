"""`safehaul worker …`: the three kinds of worker process."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from workers.cli import completion
from workers.cli.output import of, run

app = typer.Typer(no_args_is_help=True)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@app.command()
def commserve(context: typer.Context) -> None:
    """Run the CommServe: all workflows. Example: `safehaul worker commserve`."""
    from workers.commserve import serve  # noqa: PLC0415 - what it brings along is slow to load

    _log()
    run(serve(of(context).settings()))


@app.command("access-node")
def access_node(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Its name in [[access_nodes]].", autocompletion=completion.access_nodes)
    ],
) -> None:
    """Run an access node. Example: `safehaul worker access-node node-1`."""
    from workers.access_node import serve  # noqa: PLC0415 - what it brings along is slow to load

    _log()
    run(serve(of(context).settings(), name))


@app.command("media-agent")
def media_agent(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Its name in [[media_agents]].", autocompletion=completion.media_agents)
    ],
) -> None:
    """Run a MediaAgent. Example: `safehaul worker media-agent vault`."""
    from workers.media_agent import serve  # noqa: PLC0415 - what it brings along is slow to load

    _log()
    run(serve(of(context).settings(), name))


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
