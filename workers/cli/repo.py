"""`safehaul repo …`: make, describe and verify a MediaAgent's repository."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from activities import repositories
from safehaul.config.media_agent import MediaAgent
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from safehaul.media.repository import Repository
from safehaul.media.verify import verify as verify_repository
from workers.cli import completion
from workers.cli.output import Json, of, safe, say, show_json, size, table
from workers.cli.verify_view import show_verification

app = typer.Typer(no_args_is_help=True)
Agent = Annotated[
    str | None,
    typer.Option(
        "--media-agent",
        help="Its name; default: the only one that is no second copy.",
        autocompletion=completion.media_agents,
    ),
]


@app.command()
def init(context: typer.Context, media_agent: Agent = None, *, as_json: Json = False) -> None:
    """Make the repository of a MediaAgent, encrypted when a passphrase or key_file is configured for it.

    Example: `safehaul repo init --media-agent vault`.
    """
    agent = choose(of(context).settings(), media_agent)
    locks = repositories.locks_of(agent)
    if locks is not None:
        locks.check(agent.s3_lock_days)
    repository = Repository.init(
        repositories.store_of(agent),
        pack_size_bytes=agent.pack_size_bytes,
        secret=repositories.secret_of(agent),
    )
    repository.close()
    encrypted = repository.config.encrypted
    if as_json:
        made = {"repository_id": repository.config.repository_id, "url": repository.store.url}
        show_json({"media_agent": agent.name, **made, "encrypted": encrypted})
        return
    kind = "encrypted" if encrypted else "unencrypted"
    say(f"made the {kind} repository of MediaAgent {safe(agent.name)} at {safe(repository.store.url)}")
    if encrypted:
        say(
            "keep a copy of its passphrase or key file apart from this site: without it no backup can be read"
        )
    else:
        say(
            "who can read its files can read the backups: passphrase or key_file in [[media_agents]] encrypts the next"
        )


@app.command()
def info(context: typer.Context, media_agent: Agent = None, *, as_json: Json = False) -> None:
    """Describe a repository. Example: `safehaul repo info`."""
    repository = open_repository(of(context).settings(), media_agent)
    found: dict[str, Any] = repository.info()._asdict()
    repository.close()
    if as_json:
        show_json(found)
        return
    rows = [(key, size(value) if key.endswith("_bytes") else value) for key, value in found.items()]
    table(["what", "value"], rows)


@app.command()
def verify(
    context: typer.Context,
    media_agent: Agent = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Read every byte, not only the packs' lists.")] = False,
    sample: Annotated[
        float | None,
        typer.Option(help="Read this percentage of the bytes: those that were verified longest ago."),
    ] = None,
    note_damage: Annotated[
        bool,
        typer.Option(
            "--note-damage",
            help="Record what is damaged: later backups store those chunks again; and what was read.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Look for damage, and name the backups and VMs that it touches. Example: `safehaul repo verify --full`.

    Changes nothing, but for the record that `--note-damage` writes. Exit code 1 when something is damaged.
    """
    if sample is not None and (full or not 0 < sample <= 100):
        raise InvalidInputError(
            "--sample takes a percentage from above 0 to 100, and does not go with --full"
        )
    repository = open_repository(of(context).settings(), media_agent, for_writing=note_damage)
    report = verify_repository(repository, full=full, sample_percent=sample, note_damage=note_damage)
    repository.close()
    if as_json:
        show_json(report.model_dump(mode="json"))
    else:
        show_verification(report)
    if not report.sound:
        raise typer.Exit(1)


def choose(settings: Settings, name: str | None) -> MediaAgent:
    """The MediaAgent of that name, or the only one that is no second copy. Raises InvalidInputError that lists them."""
    return settings.media_agent(name) if name is not None else settings.default_media_agent()


def open_repository(settings: Settings, name: str | None, *, for_writing: bool = False) -> Repository:
    """The repository of a MediaAgent; for reading only, nothing of it has to be understood for writing."""
    return repositories.open_repository(choose(settings, name), for_writing=for_writing)
