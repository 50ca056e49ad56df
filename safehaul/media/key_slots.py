"""Key slots: the root key of an encrypted repository, wrapped for each secret that may open it.

A slot is one object `keys/ID`, readable without any key. A passphrase is stretched by Argon2id (RFC 9106) with a salt
of the slot's own, a key file is hashed with it; the result wraps the root key with AES-256-GCM, bound to everything
else in the slot and to the repository. Slots are added and removed without touching any data.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import Field, SecretBytes, ValidationError

from safehaul.errors import (
    ConfigError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    UnsupportedError,
)
from safehaul.media.canonical import canonical_json, utc_now
from safehaul.media.keys import KEY_LENGTH
from safehaul.media.object_store import DeletingStore, ObjectStore
from safehaul.messages.base import Message

Method = Literal["passphrase", "key-file"]
FOLDER = "keys/"
MIN_PASSPHRASE_CHARS = 12
MIN_KEY_FILE_BYTES = 32
_SLOT_LIMIT_BYTES = 1 << 14
_CONTEXT = "safehaul v1 key file"
# RFC 9106's choice for machines that share their memory: about 0.2 s of one core.
_ITERATIONS, _LANES, _MEMORY_KIB = 3, 4, 1 << 16
# A slot comes from the store, which need not be trusted: it must not make us work for ever.
_MAX_ITERATIONS, _MAX_LANES, _MAX_MEMORY_KIB = 64, 64, 1 << 21


class RepositorySecret(NamedTuple):
    """What opens a repository. `value` never shows itself."""

    method: Method
    value: SecretBytes


class KeySlot(Message):
    """The object `keys/ID`."""

    version: int = 1
    slot_id: str
    repository_id: str
    label: str = Field(default="", max_length=200)
    created: str
    method: Method
    salt: str
    """64 hexadecimal digits."""
    iterations: int = Field(default=0, ge=0, le=_MAX_ITERATIONS)
    lanes: int = Field(default=0, ge=0, le=_MAX_LANES)
    memory_kib: int = Field(default=0, ge=0, le=_MAX_MEMORY_KIB)
    wrapped: str = ""
    """Nonce (12 bytes), wrapped root key and tag, in hexadecimal."""

    @property
    def object_name(self) -> str:
        """Where the slot is kept."""
        return FOLDER + self.slot_id


def check_secret(secret: RepositorySecret) -> None:
    """Refuse what would be no secret. Raises InvalidInputError."""
    value = secret.value.get_secret_value()
    if secret.method == "passphrase" and len(value.decode("utf-8", "replace")) < MIN_PASSPHRASE_CHARS:
        raise InvalidInputError(
            f"the passphrase is shorter than {MIN_PASSPHRASE_CHARS} characters: several random words are easy to keep"
        )
    if secret.method == "key-file" and len(value) < MIN_KEY_FILE_BYTES:
        raise InvalidInputError(
            f"the key file has {len(value)} bytes, fewer than {MIN_KEY_FILE_BYTES}: make one with "
            "`openssl rand -out FILE 32`"
        )


def add_slot(
    store: ObjectStore, root_key: bytes, repository_id: str, secret: RepositorySecret, label: str
) -> KeySlot:
    """Wrap the root key for another secret, durably. Raises InvalidInputError for a secret that is none."""
    check_secret(secret)
    stretched = secret.method == "passphrase"
    slot = KeySlot(
        slot_id=secrets.token_hex(8),
        repository_id=repository_id,
        label=label,
        created=utc_now(),
        method=secret.method,
        salt=secrets.token_hex(32),
        iterations=_ITERATIONS if stretched else 0,
        lanes=_LANES if stretched else 0,
        memory_kib=_MEMORY_KIB if stretched else 0,
    )
    nonce = secrets.token_bytes(12)
    wrapped = AESGCM(_wrapping_key(slot, secret)).encrypt(nonce, root_key, _bound(slot))
    slot = slot.model_copy(update={"wrapped": (nonce + wrapped).hex()})
    store.put_if_absent(slot.object_name, _encode(slot))
    return slot


def slots(store: ObjectStore, repository_id: str) -> Iterator[KeySlot]:
    """The repository's slots. Raises IntegrityError for a damaged one, UnsupportedError for a newer one."""
    for info in store.list(FOLDER):
        slot = _decode(store.get(info.name, _SLOT_LIMIT_BYTES), info.name)
        # One of an `init` that was cut off before its `config` opens nothing here.
        if slot.repository_id == repository_id:
            yield slot


def removable_slot(store: ObjectStore, repository_id: str, slot_id: str) -> KeySlot:
    """The slot of that id. Raises NotFoundError for an unknown one, PolicyError for the last one."""
    known = {slot.slot_id: slot for slot in slots(store, repository_id)}
    if slot_id not in known:
        raise NotFoundError(f"there is no key slot {slot_id!r}; there are: {', '.join(known)}")
    if len(known) == 1:
        raise PolicyError(
            f"key slot {slot_id} is the last one: without it no backup could ever be read again; add another first"
        )
    return known[slot_id]


def remove_slot(store: DeletingStore, repository_id: str, slot_id: str) -> KeySlot:
    """Take a secret's right away; the slot that is gone. Data stays as it is, and readable by all other slots.

    Raises as `removable_slot`.
    """
    slot = removable_slot(store, repository_id, slot_id)
    store.delete(slot.object_name)
    return slot


def unlock(store: ObjectStore, repository_id: str, secret: RepositorySecret) -> tuple[bytes, KeySlot]:
    """Return the root key, and the slot that the secret opens.

    Raises ConfigError when it opens none, IntegrityError when slots are damaged and no other one opens.
    """
    damaged: IntegrityError | None = None
    tried = 0
    for info in store.list(FOLDER):
        try:
            slot = _decode(store.get(info.name, _SLOT_LIMIT_BYTES), info.name)
        except IntegrityError as error:
            damaged = error
            continue
        if slot.repository_id != repository_id or slot.method != secret.method:
            continue
        tried += 1
        root_key = _open(slot, secret)
        if root_key is not None:
            return root_key, slot
    if damaged is not None:
        raise damaged
    what = "passphrase" if secret.method == "passphrase" else "key file"
    raise ConfigError(
        f"the {what} opens none of the {tried} key slots for a {what} of the repository at {store.url}: it is another "
        "one, or its slot was removed; see `safehaul repo key list`"
    )


def _open(slot: KeySlot, secret: RepositorySecret) -> bytes | None:
    data = bytes.fromhex(slot.wrapped)
    try:
        root_key = AESGCM(_wrapping_key(slot, secret)).decrypt(data[:12], data[12:], _bound(slot))
    except InvalidTag:
        # The wrong secret and a changed slot look alike: nobody who lacks the secret can tell them apart.
        return None
    return root_key if len(root_key) == KEY_LENGTH else None


def _wrapping_key(slot: KeySlot, secret: RepositorySecret) -> bytes:
    value, salt = secret.value.get_secret_value(), bytes.fromhex(slot.salt)
    if slot.method == "key-file":
        return blake3(salt + value, derive_key_context=_CONTEXT).digest()
    stretch = Argon2id(
        salt=salt,
        length=KEY_LENGTH,
        iterations=slot.iterations,
        lanes=slot.lanes,
        memory_cost=slot.memory_kib,
    )
    return stretch.derive(value)


def _bound(slot: KeySlot) -> bytes:
    """All of the slot but the wrapped key: what the wrapping is bound to."""
    return canonical_json(slot.model_dump(exclude={"wrapped"}))


def _encode(slot: KeySlot) -> bytes:
    value: dict[str, Any] = slot.model_dump()
    value["digest"] = blake3(canonical_json(value)).hexdigest()
    return canonical_json(value) + b"\n"


def _decode(data: bytes, name: str) -> KeySlot:
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise IntegrityError(f"object {name} is damaged: it is no key slot")
        if value.get("version") != 1:
            raise UnsupportedError(
                f"object {name} has version {value.get('version')!r}: use a newer safehaul"
            )
        digest = value.pop("digest", None)
        if digest != blake3(canonical_json(value)).hexdigest():
            raise IntegrityError(f"object {name} is damaged: its digest does not agree")
        if not data.endswith(b"}\n"):
            raise IntegrityError(f"object {name} is damaged: its end is cut off")
        slot = KeySlot.model_validate(value)
        lengths = (len(bytes.fromhex(slot.salt)), len(bytes.fromhex(slot.wrapped)))
    except (ValidationError, ValueError) as error:
        raise IntegrityError(f"object {name} is damaged: {type(error).__name__}") from error
    stretched = bool(slot.iterations and slot.lanes and slot.memory_kib >= 8 * slot.lanes)
    if lengths != (32, 12 + KEY_LENGTH + 16) or stretched != (slot.method == "passphrase"):
        raise IntegrityError(f"object {name} is damaged: its sizes cannot be those of a key slot")
    return slot
