"""Opens the repository of a MediaAgent as the configuration tells: where it is, and what opens it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretBytes

from safehaul.config.models import MediaAgent
from safehaul.errors import ConfigError
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.repository import Repository
from safehaul.media.store import open_store

_KEY_FILE_LIMIT_BYTES = 1 << 16


def open_repository(agent: MediaAgent, *, for_writing: bool = True) -> Repository:
    """The repository of a MediaAgent. Raises as `Repository.open`, and ConfigError when the secret cannot be read."""
    return Repository.open(open_store(agent.repository), for_writing=for_writing, secret=secret_of(agent))


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
