"""`safehaul catalog …`: upgrade the catalogue's schema, rebuild its rows from what the repositories hold."""

from __future__ import annotations

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from activities.catalog_rebuild import Rebuilt
from activities.catalog_rebuild import rebuild as rebuild_from
from activities.repositories import open_repository
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.schema import NEWEST
from workers.cli.output import Json, console, of, safe, say, show_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def catalog() -> None:
    """The catalogue is a convenience: the repositories are the truth."""


@app.command()
def upgrade(context: typer.Context, *, as_json: Json = False) -> None:
    """Bring the catalogue's tables to this version's schema. Example: `safehaul catalog upgrade`.

    The CommServe does the same when it starts. No row is lost; a second time changes nothing.
    """
    made = Catalog(of(context).settings().catalog_url(), upgrade=True)
    before = made.found_schema
    made.close()
    if as_json:
        show_json({"before": before or None, "now": NEWEST})
    elif before == NEWEST:
        say(f"the catalogue has schema {NEWEST} already")
    else:
        say(
            f"the catalogue was upgraded from schema {before} to {NEWEST}"
            if before
            else f"made schema {NEWEST}"
        )


@app.command()
def rebuild(context: typer.Context, *, as_json: Json = False) -> None:
    """Make the rows of all backups and jobs again, from the repositories. Example: `safehaul catalog rebuild`.

    Workers may go on meanwhile. A backup that is no longer in its repository loses its row; a job that no repository
    knows (it failed before it reached one) keeps its own. Exit code 1 when something could not be read.
    """
    settings = of(context).settings()
    made = Catalog(settings.catalog_url())
    done: dict[str, Rebuilt] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console(), transient=True, disable=as_json) as bar:
            task = bar.add_task("", total=None)
            for agent in settings.media_agents:
                repository = open_repository(agent, for_writing=False)
                try:
                    done[agent.name] = rebuild_from(
                        made, repository, agent.name, lambda told: bar.update(task, description=safe(told))
                    )
                finally:
                    repository.close()
    finally:
        made.close()
    unread = [line for item in done.values() for line in item.unread]
    if as_json:
        show_json(
            {
                **{
                    key: {name: getattr(item, key) for name, item in done.items()}
                    for key in ("backups", "removed", "jobs")
                },
                "unread": unread,
            }
        )
    else:
        for name, item in done.items():
            gone = f", {item.removed} rows of backups that are gone were removed" if item.removed else ""
            say(f"{name}: {item.backups} backups, {item.jobs} jobs{gone}")
        for line in unread:
            say(f"could not be read: {safe(line)}")
    if unread:
        raise typer.Exit(1)
