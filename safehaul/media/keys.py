"""The keys of one repository, and what they seal.

Everything comes from one root key. Without encryption (suite 0) it stands in `config`, and only makes ids and digests
of this repository unlike any other's. With encryption (suite 1) it is in no object in the clear: see `key_slots`.

Suite 1 is AES-256 in GCM (NIST SP 800-38D) through `cryptography`. No key meets a nonce twice: a pack has a key of its
own, made from its random id, and a frame's nonce is its place in the pack, which is written once; a small object has a
key of its own, made from 32 random bytes that it carries.
"""

from __future__ import annotations

import secrets

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from safehaul.errors import IntegrityError

SUITE_NONE = 0
SUITE_AES_GCM = 1
SUITES = frozenset({SUITE_NONE, SUITE_AES_GCM})
TAG_LENGTH = 16
SALT_LENGTH = 32
KEY_LENGTH = 32
_NONCE_LENGTH = 12


class FrameCipher:
    """Seals and opens the payloads of one pack."""

    def __init__(self, key: bytes, pack_id: bytes) -> None:
        self._pack_id = pack_id
        self._aead = AESGCM(key)

    def seal_into(self, header: bytes, offset: int, payload: bytes | memoryview, out: memoryview) -> None:
        """Seal the payload of the frame whose 48-byte header stands at `offset` of the pack.

        `out` is TAG_LENGTH longer than the payload.
        """
        self._aead.encrypt_into(_nonce(offset), payload, header + self._pack_id, out)

    def open(self, header: bytes, offset: int, sealed: bytes | memoryview) -> bytes:
        """Undo `seal`. Raises IntegrityError when a bit of payload, header, place or pack is another one."""
        try:
            return self._aead.decrypt(_nonce(offset), sealed, header + self._pack_id)
        except InvalidTag as error:
            raise IntegrityError(f"the sealed frame at {offset} was changed, or belongs elsewhere") from error


class RepositoryKeys:
    """One key for each use, so that an id never says anything about a name, a digest or a secret."""

    def __init__(self, root_key: bytes, suite: int) -> None:
        self.suite = suite
        self.chunk = _derive(root_key, "chunk id")
        self.object = _derive(root_key, "object digest")
        self.name = _derive(root_key, "content name")
        self._packs = _derive(root_key, "pack encryption")
        self._objects = _derive(root_key, "object encryption")

    @property
    def overhead(self) -> int:
        """Bytes by which a sealed payload is longer than the payload."""
        return TAG_LENGTH if self.suite == SUITE_AES_GCM else 0

    def frames(self, pack_id: bytes) -> FrameCipher | None:
        """What seals the payloads of a pack; None without encryption."""
        if self.suite == SUITE_NONE:
            return None
        return FrameCipher(blake3(pack_id, key=self._packs).digest(), pack_id)

    def seal(self, bound_to: bytes, body: bytes) -> bytes:
        """Return a small object's sealed body: salt, ciphertext, tag. It opens only with the same `bound_to`."""
        salt = secrets.token_bytes(SALT_LENGTH)
        return salt + self._object_aead(salt).encrypt(_nonce(0), body, bound_to)

    def open(self, bound_to: bytes, sealed: bytes | memoryview, name: str) -> bytes:
        """Undo `seal`. Raises IntegrityError, naming the object."""
        try:
            aead = self._object_aead(bytes(sealed[:SALT_LENGTH]))
            return aead.decrypt(_nonce(0), sealed[SALT_LENGTH:], bound_to)
        except InvalidTag as error:
            raise IntegrityError(
                f"object {name} was changed or belongs to another name: it does not open"
            ) from error

    def _object_aead(self, salt: bytes) -> AESGCM:
        return AESGCM(blake3(salt, key=self._objects).digest())


def _derive(root_key: bytes, use: str) -> bytes:
    return blake3(root_key, derive_key_context=f"safehaul v1 {use}").digest()


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_LENGTH, "little")
