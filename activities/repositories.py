"""Opens the repository of a MediaAgent as the configuration tells: where it is, and what opens it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretBytes

from safehaul.config.media_agent import MediaAgent
from safehaul.config.secrets import SecretRef
from safehaul.errors import ConfigError, PermissionRefusedError
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.object_lock import S3Locks
from safehaul.media.repository import Repository
from safehaul.media.store import DeletingStore, ObjectStore, S3Options, open_deleting_store, open_store

_KEY_FILE_LIMIT_BYTES = 1 << 16


def open_repository(
    agent: MediaAgent, *, for_writing: bool = True, cache_dir: str | None = None
) -> Repository:
    """The repository of a MediaAgent; its chunk index is kept in `cache_dir`, or else for this process alone.

    Raises as `Repository.open`, and ConfigError when a secret cannot be read.
    """
    folder = Path(cache_dir) if cache_dir is not None else None
    return Repository.open(
        store_of(agent), index_folder=folder, for_writing=for_writing, secret=secret_of(agent)
    )


def store_of(agent: MediaAgent) -> ObjectStore:
    """Where the MediaAgent's repository is, as every worker opens it. Raises ConfigError."""
    return open_store(agent.repository, _options(agent, agent.s3_access_key, agent.s3_secret_key))


def deleting_store_of(agent: MediaAgent) -> DeletingStore:
    """The same with the keys that may delete, or the workers' where none are configured. Raises ConfigError."""
    return open_deleting_store(agent.repository, _options(agent, *_prune_keys(agent)))


def _prune_keys(agent: MediaAgent) -> tuple[SecretRef | None, SecretRef | None]:
    if agent.s3_prune_access_key is None or agent.s3_prune_secret_key is None:
        return agent.s3_access_key, agent.s3_secret_key
    return agent.s3_prune_access_key, agent.s3_prune_secret_key


def locks_of(agent: MediaAgent) -> S3Locks | None:
    """The object locks of the MediaAgent's bucket, by the keys that may delete; None where they are left alone.

    Raises ConfigError.
    """
    if not agent.s3_lock_days:
        return None
    return S3Locks(agent.repository, _options(agent, *_prune_keys(agent)))


@contextmanager
def deleting(agent: MediaAgent) -> Iterator[DeletingStore]:
    """The store with the keys that may delete, after a look whether they do: before anything is begun.

    Raises PermissionRefusedError, also from within the block, that says which keys to configure, and ConfigError.
    """
    store = deleting_store_of(agent)
    try:
        # Nobody has an object of this name: whoever may delete is told that it is gone.
        store.delete(NOBODYS)
        yield store
    except PermissionRefusedError as error:
        raise PermissionRefusedError(f"{error}; {_who_may_delete(agent)}") from error


NOBODYS = "may-i-delete"


def _who_may_delete(agent: MediaAgent) -> str:
    where = f"of [[media_agents]] {agent.name!r} on {socket.gethostname()}"
    if agent.repository.startswith("file:"):
        return f"deleting needs a user who may write the directory {where}"
    keys = "s3_prune_access_key and s3_prune_secret_key"
    if agent.s3_prune_access_key is None:
        return f"deleting needs an identity of its own: configure {keys} {where} (docs/object-stores.md)"
    return f"the identity in {keys} {where} must be allowed to delete (docs/object-stores.md)"


def _options(agent: MediaAgent, access_key: SecretRef | None, secret_key: SecretRef | None) -> S3Options:
    return S3Options(
        endpoint=agent.s3_endpoint,
        region=agent.s3_region,
        access_key=access_key.resolve() if access_key is not None else None,
        secret_key=secret_key.resolve() if secret_key is not None else None,
        ca_file=Path(agent.s3_ca_file) if agent.s3_ca_file else None,
        # The configuration has been checked: of http:// only what is this machine's, or allowed.
        allow_http=agent.s3_allow_http or agent.s3_endpoint.startswith("http://"),
        part_size_bytes=agent.s3_part_size_bytes,
    )


def secret_of(agent: MediaAgent) -> RepositorySecret | None:
    """What opens the MediaAgent's repository; None when it is not encrypted. Raises ConfigError."""
    if agent.passphrase is not None:
        return passphrase(agent.passphrase.resolve().get_secret_value())
    if agent.key_file is not None:
        return key_file(agent.key_file)
    return None


def passphrase(text: str) -> RepositorySecret:
    """A passphrase as a secret: its UTF-8 bytes."""
    return RepositorySecret("passphrase", SecretBytes(text.encode("utf-8", "surrogatepass")))


def key_file(name: str) -> RepositorySecret:
    """The bytes of a key file. Raises ConfigError."""
    try:
        with Path(name).open("rb") as file:
            data = file.read(_KEY_FILE_LIMIT_BYTES + 1)
    except OSError as error:
        msg = f"the key file {name} cannot be read by uid {os.geteuid()}: {error.strerror}"
        raise ConfigError(msg) from error
    if len(data) > _KEY_FILE_LIMIT_BYTES:
        raise ConfigError(
            f"the key file {name} is larger than {_KEY_FILE_LIMIT_BYTES} bytes: is it the right one?"
        )
    return RepositorySecret("key-file", SecretBytes(data))
