"""What the shell offers when Tab is pressed: names from the configuration, backups and jobs from the catalogue.

Whatever is wrong (no configuration, no server, a locked catalogue) offers nothing and prints nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

import typer

from safehaul.catalog.catalog import Catalog
from safehaul.config.settings import Settings
from workers.bootstrap import connect
from workers.cli.job_calls import JOB_TYPE
from workers.cli.output import Output

Offered = list[tuple[str, str]]
"""Values with what the shell shows beside each, where it can."""
Completer = Callable[[typer.Context, str], Offered]

MAX_OFFERED = 50
TEMPORAL_WITHIN_S = 1.5
"""Nobody waits longer after a Tab."""


def vm_groups(context: typer.Context, incomplete: str) -> Offered:
    """VM groups of the configuration."""
    return _offered(
        incomplete, lambda: ((group.name, group.vcenter) for group in _settings(context).vm_groups)
    )


def access_nodes(context: typer.Context, incomplete: str) -> Offered:
    """Access nodes of the configuration."""
    return _offered(incomplete, lambda: ((node.name, "") for node in _settings(context).access_nodes))


def media_agents(context: typer.Context, incomplete: str) -> Offered:
    """MediaAgents of the configuration."""
    return _offered(incomplete, lambda: ((agent.name, "") for agent in _settings(context).media_agents))


def backups(context: typer.Context, incomplete: str) -> Offered:
    """The newest backups, with their VM."""

    def find() -> Iterable[tuple[str, str]]:
        with _catalog(context) as catalog:
            rows = catalog.list_backups(limit=1000)
        return [(f"{row.vc_guid}/{row.backup_id}", f"{row.vm_name} {row.committed}") for row in rows]

    return _offered(incomplete, find)


def vms(context: typer.Context, incomplete: str) -> Offered:
    """VMs that have a backup."""

    def find() -> Iterable[tuple[str, str]]:
        with _catalog(context) as catalog:
            rows = catalog.find_vms(limit=100_000)
        return {
            # A shell would take a name with spaces or quotes for several words: such a VM is offered by its GUID.
            (row.vm_name, row.vc_guid) if quote(row.vm_name) == row.vm_name else (row.vc_guid, row.vm_name)
            for row in rows
        }

    return _offered(incomplete, find)


def jobs(context: typer.Context, incomplete: str) -> Offered:
    """Jobs that run, then the newest that have ended."""

    def find() -> Iterable[tuple[str, str]]:
        found: dict[str, str] = {}
        with suppress(Exception):
            found.update(asyncio.run(_running(_settings(context))))
        with _catalog(context) as catalog:
            for row in catalog.list_jobs(limit=MAX_OFFERED):
                found.setdefault(row.workflow_id, f"{row.status} {row.started[:19]}")
        return found.items()

    return _offered(incomplete, find)


async def _running(settings: Settings) -> dict[str, str]:
    async def ask() -> dict[str, str]:
        client = await connect(settings)
        query = f'WorkflowType = "{JOB_TYPE}" AND ExecutionStatus = "Running"'
        return {item.id: "Running" async for item in client.list_workflows(query, limit=MAX_OFFERED)}

    return await asyncio.wait_for(ask(), TEMPORAL_WITHIN_S)


def _offered(incomplete: str, find: Callable[[], Iterable[tuple[str, str]]]) -> Offered:
    """Those found that begin with what was typed; nothing when they cannot be found."""
    # A traceback in the middle of a command line that somebody is typing helps nobody.
    with suppress(Exception):
        names = ((name, told) for name, told in find() if name.startswith(incomplete) and name.isprintable())
        return [item for _, item in zip(range(MAX_OFFERED), names, strict=False)]
    return []


def _settings(context: typer.Context) -> Settings:
    """The configuration that the command line so far names: its callback does not run for a completion."""
    config = context.find_root().params.get("config")
    return Output(config=Path(config) if config else None).settings()


@contextmanager
def _catalog(context: typer.Context) -> Iterator[Catalog]:
    catalog = Catalog(_settings(context).catalog_url())
    try:
        yield catalog
    finally:
        catalog.close()
