"""The object `config`: what a repository is, before any key is known."""

from __future__ import annotations

import hmac
import json
from typing import Any

from blake3 import blake3
from pydantic import Field, ValidationError

from safehaul.errors import ConfigError, IntegrityError, UnsupportedError
from safehaul.media.canonical import canonical_json
from safehaul.media.keys import KEY_LENGTH, SUITE_NONE, SUITES, RepositoryKeys
from safehaul.messages.base import Message

FORMAT = "safehaul repository"
FORMAT_VERSION = 1
ENCRYPTION = "encryption"
KNOWN_FEATURES = frozenset({ENCRYPTION})
"""Feature flags that this code understands."""

NAME = "config"
LIMIT_BYTES = 1 << 16


class RepositoryConfig(Message):
    """The object `config`."""

    format: str = FORMAT
    version: int = FORMAT_VERSION
    features_required: list[str] = Field(default_factory=list)
    """Who does not know one of these must neither read nor write."""
    features_for_writing: list[str] = Field(default_factory=list)
    """Who does not know one of these may read, but must not write."""
    repository_id: str
    created: str
    chunk_size_bytes: int
    pack_size_bytes: int
    suite: int = SUITE_NONE
    root_key: str = ""
    """64 hexadecimal digits without encryption; empty with it: the key slots hold the root key."""
    sealed: str = ""
    """With encryption: keyed BLAKE3 (object key) of all the rest, so that nobody without a secret can change it."""

    @property
    def encrypted(self) -> bool:
        """Whether a secret is needed."""
        return self.suite != SUITE_NONE


def seal_config(config: RepositoryConfig, root_key: bytes) -> RepositoryConfig:
    """Bind an encrypted repository's configuration to its root key."""
    return config.model_copy(update={"sealed": _seal(config, root_key)})


def check_sealed(config: RepositoryConfig, root_key: bytes) -> None:
    """Raises IntegrityError when somebody without the root key has changed the configuration."""
    if not hmac.compare_digest(config.sealed, _seal(config, root_key)):
        raise IntegrityError("object config was changed by somebody without the key; restore it from a copy")


def _seal(config: RepositoryConfig, root_key: bytes) -> str:
    key = RepositoryKeys(root_key, config.suite).object
    return blake3(canonical_json(_written(config.model_copy(update={"sealed": ""}))), key=key).hexdigest()


def encode_config(config: RepositoryConfig) -> bytes:
    """Return the object's bytes."""
    value = _written(config)
    value["digest"] = blake3(canonical_json(value)).hexdigest()
    return canonical_json(value) + b"\n"


def _written(config: RepositoryConfig) -> dict[str, Any]:
    """The fields that are written: a suite has no key in the clear, or no seal."""
    unused = {name for name in ("root_key", "sealed") if not getattr(config, name)}
    return config.model_dump(exclude=unused)


def decode_config(data: bytes) -> RepositoryConfig:
    """Read the object.

    Raises ConfigError when it is another program's, IntegrityError for damage, UnsupportedError for a newer format.
    """
    try:
        value = json.loads(data)
        digest = value.pop("digest", None) if isinstance(value, dict) else None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ConfigError("object config is not that of a safehaul repository")
        version = value.get("version")
        if version != FORMAT_VERSION:
            raise UnsupportedError(
                f"the repository's object config has format version {version!r}; this safehaul knows "
                f"{FORMAT_VERSION}: use a newer safehaul, or the object is damaged"
            )
        if digest != blake3(canonical_json(value)).hexdigest():
            raise IntegrityError(
                "object config is damaged: its digest does not agree; restore it from a copy"
            )
        if not data.endswith(b"}\n"):
            raise IntegrityError("object config is damaged: its end is cut off; restore it from a copy")
        config = RepositoryConfig.model_validate(value)
        key_length = len(bytes.fromhex(config.root_key))
    except (ValidationError, ValueError) as error:
        raise IntegrityError(
            f"object config is damaged: {type(error).__name__}; restore it from a copy"
        ) from error
    unknown = set(config.features_required) - KNOWN_FEATURES
    if unknown or config.suite not in SUITES:
        names = ", ".join(sorted(unknown)) or f"cipher suite {config.suite}"
        raise UnsupportedError(f"the repository needs features that this safehaul does not know: {names}")
    if key_length != (0 if config.encrypted else KEY_LENGTH):
        raise IntegrityError(
            "object config is damaged: its key has an impossible length; restore it from a copy"
        )
    return config
