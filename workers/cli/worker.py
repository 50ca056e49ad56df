"""`safehaul worker …`: the three kinds of worker process."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from workers import access_node as access_node_worker
from workers import commserve as commserve_worker
from workers import media_agent as media_agent_worker
from workers.cli import completion
from workers.cli.output import of, run

app = typer.Typer(no_args_is_help=True)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@app.command()
def commserve(context: typer.Context) -> None:
    """Run the CommServe: all workflows. Example: `safehaul worker commserve`."""
    _log()
    run(commserve_worker.serve(of(context).settings()))


@app.command("access-node")
def access_node(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Its name in [[access_nodes]].", autocompletion=completion.access_nodes)
    ],
) -> None:
    """Run an access node. Example: `safehaul worker access-node node-1`."""
    _log()
    run(access_node_worker.serve(of(context).settings(), name))


@app.command("media-agent")
def media_agent(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Its name in [[media_agents]].", autocompletion=completion.media_agents)
    ],
) -> None:
    """Run a MediaAgent. Example: `safehaul worker media-agent vault`."""
    _log()
    run(media_agent_worker.serve(of(context).settings(), name))


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
