"""`safehaul repo key …`: which secrets open an encrypted repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from activities import repositories
from safehaul.config.media_agent import MediaAgent
from safehaul.config.secrets import SecretRef
from safehaul.errors import ConfigError, InvalidInputError
from safehaul.media import audit, key_slots, repository_config
from safehaul.media.audit import Action
from safehaul.media.key_slots import KeySlot, RepositorySecret
from safehaul.media.object_store import ObjectStore
from safehaul.media.repository import Repository, secret_missing
from workers.cli.output import Json, of, safe, say, show_json, table
from workers.cli.repo import Agent, choose

app = typer.Typer(no_args_is_help=True)
PassphraseEnv = Annotated[
    str, typer.Option("--passphrase-env", help="Environment variable that holds the new passphrase.")
]
PassphraseFile = Annotated[
    str, typer.Option("--passphrase-file", help="Absolute path of a file that holds the new passphrase.")
]
KeyFile = Annotated[str, typer.Option("--key-file", help="New key file: at least 32 random bytes.")]
Label = Annotated[str, typer.Option("--label", help="Whose secret it is, for `repo key list`.")]


@app.command("list")
def list_(context: typer.Context, media_agent: Agent = None, *, as_json: Json = False) -> None:
    """List the key slots of a repository; needs no secret. Example: `safehaul repo key list`."""
    agent = choose(of(context).settings(), media_agent)
    store = repositories.store_of(agent)
    found = list(key_slots.slots(store, _config(store).repository_id))
    if as_json:
        show_json([_as_json(slot) for slot in found])
        return
    table(
        ["slot", "opened by", "made", "label"],
        [(slot.slot_id, slot.method, slot.created, slot.label) for slot in found],
    )


@app.command()
def add(
    context: typer.Context,
    media_agent: Agent = None,
    *,
    passphrase_env: PassphraseEnv = "",
    passphrase_file: PassphraseFile = "",
    key_file: KeyFile = "",
    label: Label = "",
    as_json: Json = False,
) -> None:
    """Let another passphrase or key file open a repository; the configured one must open it.

    Data is not touched. Example: `safehaul repo key add --key-file /etc/safehaul/vault.key --label "access nodes"`.
    """
    opened = _open(choose(of(context).settings(), media_agent))
    slot = _add(opened, _new(passphrase_env, passphrase_file, key_file), label)
    _record(opened, Action.KEY_ADD, slot)
    _tell(slot, f"slot {slot.slot_id} opens the repository with the new {slot.method}", as_json=as_json)


@app.command()
def remove(
    context: typer.Context,
    slot: Annotated[str, typer.Argument(help="As `safehaul repo key list` shows it.")],
    media_agent: Agent = None,
    *,
    as_json: Json = False,
) -> None:
    """Take a secret's right away: its slot is deleted, data is not touched.

    The configured secret must open the repository: the removal is recorded in its audit log. Who has kept the slot's
    object and knows its secret can still read what he copies from the store. Example: `safehaul repo key remove 3f2a…`.
    """
    agent = choose(of(context).settings(), media_agent)
    opened = _open(agent)
    with repositories.deleting(agent) as store:
        gone = key_slots.removable_slot(store, opened.config.repository_id, slot)
        _record(opened, Action.KEY_REMOVE, gone)
        key_slots.remove_slot(store, opened.config.repository_id, slot)
    _tell(gone, f"slot {slot} is gone: its {gone.method} opens the repository no more", as_json=as_json)


@app.command()
def rotate(
    context: typer.Context,
    media_agent: Agent = None,
    *,
    passphrase_env: PassphraseEnv = "",
    passphrase_file: PassphraseFile = "",
    key_file: KeyFile = "",
    label: Label = "",
    as_json: Json = False,
) -> None:
    """Replace the configured secret by another one: adds its slot, then removes the old one.

    Then change the configuration of every worker. Data is not touched.
    Example: `safehaul repo key rotate --passphrase-env NEW_PASSPHRASE`.
    """
    agent = choose(of(context).settings(), media_agent)
    opened, secret = _open(agent), _new(passphrase_env, passphrase_file, key_file)
    with repositories.deleting(agent) as store:
        slot = _add(opened, secret, label)
        _record(opened, Action.KEY_ROTATE, slot, replaces=opened.slot.slot_id)
        key_slots.remove_slot(store, slot.repository_id, opened.slot.slot_id)
    _tell(
        slot,
        f"slot {slot.slot_id} replaces {opened.slot.slot_id}: give every worker the new {slot.method}",
        as_json=as_json,
    )


@dataclass(frozen=True)
class _Opened:
    """A repository that the configured secret has opened."""

    store: ObjectStore
    config: repository_config.RepositoryConfig
    root_key: bytes
    slot: KeySlot


def _config(store: ObjectStore) -> repository_config.RepositoryConfig:
    config = repository_config.decode_config(store.get(repository_config.NAME, repository_config.LIMIT_BYTES))
    if not config.encrypted:
        raise ConfigError(
            f"the repository at {store.url} is not encrypted, so it has no keys: `safehaul repo init` decides that"
        )
    return config


def _open(agent: MediaAgent) -> _Opened:
    store, secret = repositories.store_of(agent), repositories.secret_of(agent)
    config = _config(store)
    if secret is None:
        raise ConfigError(secret_missing(store.url))
    root_key, slot = key_slots.unlock(store, config.repository_id, secret)
    repository_config.check_sealed(config, root_key)
    return _Opened(store, config, root_key, slot)


def _new(passphrase_env: str, passphrase_file: str, key_file: str) -> RepositorySecret:
    if sum(map(bool, (passphrase_env, passphrase_file, key_file))) != 1:
        raise InvalidInputError(
            "give exactly one of --passphrase-env, --passphrase-file and --key-file: a secret is never an argument"
        )
    if key_file:
        return repositories.key_file(key_file)
    where = {"env": passphrase_env} if passphrase_env else {"file": passphrase_file}
    try:
        reference = SecretRef.model_validate(where)
    except ValidationError as error:
        raise InvalidInputError(
            "; ".join(item["msg"] for item in error.errors(include_input=False))
        ) from None
    return repositories.passphrase(reference.resolve().get_secret_value())


def _add(opened: _Opened, secret: RepositorySecret, label: str) -> KeySlot:
    return key_slots.add_slot(opened.store, opened.root_key, opened.config.repository_id, secret, label)


def _record(opened: _Opened, action: Action, slot: KeySlot, **more: str) -> None:
    repository = Repository(opened.store, opened.config, opened.root_key)
    audit.append(repository, action, slot.object_name, {"method": slot.method, "label": slot.label, **more})
    repository.close()


def _as_json(slot: KeySlot) -> dict[str, Any]:
    return slot.model_dump(include={"slot_id", "method", "created", "label"})


def _tell(slot: KeySlot, text: str, *, as_json: bool) -> None:
    if as_json:
        show_json(_as_json(slot))
    else:
        say(safe(text))
