"""References to secrets: the configuration says where a secret is found, and never holds one."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from safehaul.errors import ConfigError

_LOG = logging.getLogger(__name__)
_SECRET_LIMIT_BYTES = 64 * 1024
_FORMS = '{ env = "NAME" }, { file = "/path" } or { keyring = "service/user" }'


class SecretRef(BaseModel):
    """Where a secret is found: exactly one of an environment variable, a file, or a keyring entry.

    Resolved only where it is used, so that only a process that logs in to a vCenter holds its password.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    env: str = Field(default="", max_length=256)
    """Name of an environment variable of the process that uses the secret."""
    file: str = Field(default="", max_length=4096)
    """Absolute path of a UTF-8 file; one trailing line break is not part of the secret."""
    keyring: str = Field(default="", max_length=512)
    """`service/user`: an entry of the system's keyring; the last slash divides."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_plain_text(cls, value: object) -> object:
        if isinstance(value, str):
            msg = f"must not hold the secret itself; say where it is: {_FORMS}"
            raise ValueError(msg)  # noqa: TRY004 (pydantic collects ValueError, a TypeError would escape)
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> SecretRef:
        if sum(map(bool, (self.env, self.file, self.keyring))) != 1:
            msg = f"must be exactly one of {_FORMS}"
            raise ValueError(msg)
        if self.file and not self.file.startswith("/"):
            msg = "the file of a secret must be an absolute path"
            raise ValueError(msg)
        service, _, user = self.keyring.rpartition("/")
        if self.keyring and not (service and user):
            msg = 'a keyring entry is written "service/user"'
            raise ValueError(msg)
        return self

    def __str__(self) -> str:
        """The reference in words, for messages; never the secret."""
        if self.env:
            return f"environment variable {self.env}"
        return f"file {self.file}" if self.file else f"keyring entry {self.keyring}"

    def resolve(self) -> SecretStr:
        """Read the secret from where it is kept.

        Raises:
            ConfigError: it is not there, empty, unreadable, too large (64 KiB) or not UTF-8; says what to do.
        """
        if self.env:
            text = os.environ.get(self.env, "")
        elif self.file:
            text = _read_file(self.file)
        else:
            text = _read_keyring(self.keyring)
        if not text:
            msg = f"{self} is missing or empty: set it for the worker that uses it"
            raise ConfigError(msg)
        return SecretStr(text)


def _read_file(name: str) -> str:
    """The file's text without one trailing line break."""
    try:
        with Path(name).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_SECRET_LIMIT_BYTES + 1)
        text = data.decode()
    except OSError as error:
        msg = f"the secret's file {name} cannot be read by uid {os.geteuid()}: {error.strerror}"
        raise ConfigError(msg) from error
    except UnicodeDecodeError:
        # The decode error carries the bytes: they must not be chained into a log.
        msg = f"the secret's file {name} is not UTF-8 text"
        raise ConfigError(msg) from None
    if len(data) > _SECRET_LIMIT_BYTES:
        msg = f"the secret's file {name} is larger than {_SECRET_LIMIT_BYTES} bytes: is it the right one?"
        raise ConfigError(msg)
    if mode & stat.S_IROTH:
        # Not an error: orchestrators mount secrets world-readable inside a container of their own.
        _LOG.warning("every user of this machine can read the secret's file %s: chmod o-rwx it", name)
    return text.removesuffix("\n").removesuffix("\r")


def _read_keyring(entry: str) -> str:
    """The password of `service/user`, or nothing when the keyring has no such entry."""
    # Imported here because looking for a keyring's backends takes a while, and most installations have none.
    import keyring  # noqa: PLC0415
    from keyring.errors import KeyringError  # noqa: PLC0415

    service, _, user = entry.rpartition("/")
    try:
        return keyring.get_password(service, user) or ""
    except (KeyringError, RuntimeError) as error:
        msg = f"the keyring entry {entry} cannot be read on this machine: {error}"
        raise ConfigError(msg) from error
