"""`safehaul catalog …`: rebuild the catalogue from what the repositories hold."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from activities.catalog_rows import rows_of_repository
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow
from safehaul.media.repository import Repository
from safehaul.media.store import open_store
from workers.cli.output import Json, of, safe, say, show_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def catalog() -> None:
    """The catalogue is a convenience: the repositories are the truth."""


@app.command()
def rebuild(context: typer.Context, *, as_json: Json = False) -> None:
    """Make the rows of all backups again, from the repositories. Example: `safehaul catalog rebuild`.

    Jobs' own rows stay as they are. Exit code 1 when a backup could not be read.
    """
    settings = of(context).settings()
    catalog = Catalog(settings.catalog_url())
    counts: dict[str, int] = {}
    unread: list[str] = []

    def rows(repository: Repository, agent: str) -> Iterator[BackupRow]:
        for item in rows_of_repository(repository, agent):
            if isinstance(item, BackupRow):
                yield item
            else:
                unread.append(f"{agent}: {item[0]}: {item[1]}")

    for agent in settings.media_agents:
        repository = Repository.open(open_store(agent.repository), for_writing=False)
        counts[agent.name] = catalog.replace_backups(agent.name, rows(repository, agent.name))
        repository.close()
    catalog.close()
    if as_json:
        show_json({"backups": counts, "unread": unread})
    else:
        for name, count in counts.items():
            say(f"{name}: {count} backups")
        for line in unread:
            say(f"could not be read: {safe(line)}")
    if unread:
        raise typer.Exit(1)
