"""`safehaul catalog …`: rebuild the catalogue from what the repositories hold."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from activities.catalog_rows import JobRows, jobs_of_repository, rows_of_repository
from activities.repositories import open_repository
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow
from safehaul.media.repository import Repository
from workers.cli.output import Json, of, safe, say, show_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def catalog() -> None:
    """The catalogue is a convenience: the repositories are the truth."""


@app.command()
def rebuild(context: typer.Context, *, as_json: Json = False) -> None:
    """Make the rows of all backups and jobs again, from the repositories. Example: `safehaul catalog rebuild`.

    A job that no repository knows (it failed before it reached one) keeps its row. Exit code 1 when something could
    not be read.
    """
    settings = of(context).settings()
    catalog = Catalog(settings.catalog_url())
    counts: dict[str, int] = {}
    jobs: dict[str, int] = {}
    unread: list[str] = []

    for agent in settings.media_agents:
        repository = open_repository(agent, for_writing=False)
        counts[agent.name] = catalog.replace_backups(agent.name, _backups(repository, agent.name, unread))
        jobs[agent.name] = _record_jobs(catalog, repository, agent.name, unread)
        repository.close()
    catalog.close()
    if as_json:
        show_json({"backups": counts, "jobs": jobs, "unread": unread})
    else:
        for name, count in counts.items():
            say(f"{name}: {count} backups, {jobs[name]} jobs")
        for line in unread:
            say(f"could not be read: {safe(line)}")
    if unread:
        raise typer.Exit(1)


def _backups(repository: Repository, agent: str, unread: list[str]) -> Iterator[BackupRow]:
    for item in rows_of_repository(repository, agent):
        if isinstance(item, BackupRow):
            yield item
        else:
            unread.append(f"{agent}: {item[0]}: {item[1]}")


def _record_jobs(catalog: Catalog, repository: Repository, agent: str, unread: list[str]) -> int:
    count = 0
    for item in jobs_of_repository(repository):
        if isinstance(item, JobRows):
            catalog.record_job(item.job, item.vms)
            count += 1
        else:
            unread.append(f"{agent}: job {item[0]}: {item[1]}")
    return count
