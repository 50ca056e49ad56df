"""A repository: its configuration, and the reading and writing of its objects by name and kind."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from blake3 import blake3
from pydantic import Field, ValidationError

from safehaul.errors import AlreadyExistsError, ConfigError, IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.chunk_index import ChunkIndex, ChunkLocation
from safehaul.media.collection import Condemnations, read_condemnations
from safehaul.media.envelope import OBJECT_LIMIT_BYTES, Kind, unwrap, wrap
from safehaul.media.locations import decode_locations
from safehaul.media.object_store import ObjectStore
from safehaul.media.pack import MAX_PACK_BYTES, SealedPack, pack_name
from safehaul.messages.base import Message

M = TypeVar("M", bound=Message)

FORMAT = "safehaul repository"
FORMAT_VERSION = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Feature flags that this code understands. Later ones: encryption, repacking, …"""

DEFAULT_CHUNK_SIZE_BYTES = 1 << 20
DEFAULT_PACK_SIZE_BYTES = 64 << 20
_CONFIG = "config"
_CONFIG_LIMIT_BYTES = 1 << 16
_MIN_CHUNK_SIZE_BYTES = 1 << 12
_MAX_CHUNK_SIZE_BYTES = 16 << 20


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
    suite: int = 0
    root_key: str
    """64 hexadecimal digits. Without encryption it only makes ids of this repository unlike any other's."""


class RepositoryInfo(NamedTuple):
    """What `repo info` shows; no keys."""

    url: str
    repository_id: str
    created: str
    version: int
    chunk_size_bytes: int
    pack_size_bytes: int
    encrypted: bool
    pack_count: int
    stored_bytes: int
    backup_count: int


def canonical_json(value: dict[str, Any]) -> bytes:
    """Return the one form of a JSON object: UTF-8, keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def parse_object(model: type[M], body: bytes, name: str) -> M:
    """Read a JSON body. Raises IntegrityError for what cannot be one, UnsupportedError for a newer version."""
    try:
        parsed = model.model_validate_json(body)
    except ValidationError as error:
        raise IntegrityError(f"object {name} is damaged: {error.error_count()} bad fields") from error
    version = getattr(parsed, "version", 1)
    if version != 1:
        raise UnsupportedError(f"object {name} has version {version}: use a newer safehaul")
    return parsed


def utc_now() -> str:
    """Return the time as ISO 8601 basic format in UTC, to the second: it sorts as text."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _encode_config(config: RepositoryConfig) -> bytes:
    value = config.model_dump()
    value["digest"] = blake3(canonical_json(value)).hexdigest()
    return canonical_json(value) + b"\n"


def _decode_config(data: bytes) -> RepositoryConfig:
    try:
        value = json.loads(data)
        digest = value.pop("digest", None) if isinstance(value, dict) else None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ConfigError("object config is not that of a safehaul repository")
        version = value.get("version")
        if version != FORMAT_VERSION:
            raise UnsupportedError(
                f"the repository has format version {version!r}; this safehaul knows {FORMAT_VERSION}: "
                "use a newer safehaul"
            )
        if digest != blake3(canonical_json(value)).hexdigest():
            raise IntegrityError(
                "object config is damaged: its digest does not agree; restore it from a copy"
            )
        config = RepositoryConfig.model_validate(value)
        key_length = len(bytes.fromhex(config.root_key))
    except (ValidationError, ValueError) as error:
        raise IntegrityError(
            f"object config is damaged: {type(error).__name__}; restore it from a copy"
        ) from error
    unknown = set(config.features_required) - KNOWN_FEATURES
    if unknown or config.suite != 0 or key_length != 32:
        names = ", ".join(sorted(unknown)) or f"cipher suite {config.suite}"
        raise UnsupportedError(f"the repository needs features that this safehaul does not know: {names}")
    return config


class Repository:
    """An open repository. Safe for many threads; many processes may have the same one open."""

    def __init__(self, store: ObjectStore, config: RepositoryConfig, index_path: Path | None = None) -> None:
        self.store = store
        self.config = config
        root_key = bytes.fromhex(config.root_key)
        # One key for each use, so that an id never says anything about a name or a digest.
        self.chunk_key = blake3(root_key, derive_key_context="safehaul v1 chunk id").digest()
        self.object_key = blake3(root_key, derive_key_context="safehaul v1 object digest").digest()
        self.name_key = blake3(root_key, derive_key_context="safehaul v1 content name").digest()
        self.index = ChunkIndex(index_path)
        self._lock = threading.Lock()
        self._present: dict[bytes, bool] = {}
        self._condemnations = Condemnations(0, frozenset())

    @classmethod
    def init(
        cls,
        store: ObjectStore,
        *,
        chunk_size_bytes: int = DEFAULT_CHUNK_SIZE_BYTES,
        pack_size_bytes: int = DEFAULT_PACK_SIZE_BYTES,
    ) -> Repository:
        """Make a new repository in an empty store, after trying that the store can hold one.

        Raises AlreadyExistsError when there is one, ConfigError for impossible sizes or a store that
        overwrites objects or cannot read ranges.
        """
        if not _MIN_CHUNK_SIZE_BYTES <= chunk_size_bytes <= _MAX_CHUNK_SIZE_BYTES or chunk_size_bytes % 512:
            raise ConfigError("chunk size must be a multiple of 512 from 4 KiB to 16 MiB")
        if not chunk_size_bytes <= pack_size_bytes <= MAX_PACK_BYTES // 2:
            raise ConfigError(f"pack size must be from one chunk to {MAX_PACK_BYTES // 2} bytes")
        config = RepositoryConfig(
            repository_id=secrets.token_hex(16),
            created=utc_now(),
            chunk_size_bytes=chunk_size_bytes,
            pack_size_bytes=pack_size_bytes,
            root_key=secrets.token_hex(32),
        )
        data = _encode_config(config)
        try:
            store.put_if_absent(_CONFIG, data)
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"there is a repository at {store.url} already") from error
        _try_store(store, data)
        return cls(store, config)

    @classmethod
    def open(
        cls, store: ObjectStore, *, index_path: Path | None = None, for_writing: bool = True
    ) -> Repository:
        """Open a repository. `index_path` keeps the chunk index in that file between processes.

        Raises NotFoundError when there is none, UnsupportedError for a newer format or unknown features,
        IntegrityError for a damaged configuration.
        """
        try:
            data = store.get(_CONFIG, _CONFIG_LIMIT_BYTES)
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no repository at {store.url}: make one with `safehaul repo init`"
            ) from error
        config = _decode_config(data)
        unknown = set(config.features_for_writing) - KNOWN_FEATURES
        if for_writing and unknown:
            raise UnsupportedError(
                f"writing needs features that this safehaul does not know: {', '.join(sorted(unknown))}"
            )
        return cls(store, config, index_path)

    def close(self) -> None:
        """Release the local index."""
        self.index.close()

    def info(self) -> RepositoryInfo:
        """Count what is there. Lists the packs and the manifests."""
        sizes = [found.size_bytes for found in self.store.list("packs/")]
        config = self.config
        return RepositoryInfo(
            url=self.store.url,
            repository_id=config.repository_id,
            created=config.created,
            version=config.version,
            chunk_size_bytes=config.chunk_size_bytes,
            pack_size_bytes=config.pack_size_bytes,
            encrypted=config.suite != 0,
            pack_count=len(sizes),
            stored_bytes=sum(sizes),
            backup_count=sum(1 for _ in self.store.list("manifests/")),
        )

    def wrap(self, kind: Kind, name: str, body: bytes) -> bytes:
        """Make the stored form of a small object."""
        return wrap(self.object_key, kind, name, body)

    def unwrap(self, kind: Kind, name: str, data: bytes) -> bytes:
        """Check the stored form of a small object and return its body."""
        return unwrap(self.object_key, kind, name, data)

    def get(self, kind: Kind, name: str) -> bytes:
        """Read a small object. Raises NotFoundError, IntegrityError, UnsupportedError."""
        return self.unwrap(kind, name, self.store.get(name, OBJECT_LIMIT_BYTES))

    def put(self, kind: Kind, name: str, body: bytes) -> None:
        """Write a small object. Raises AlreadyExistsError when the name is taken."""
        self.store.put_if_absent(name, self.wrap(kind, name, body))

    def put_same(self, kind: Kind, name: str, body: bytes) -> None:
        """Write a small object; one that is there with the same body is fine.

        Raises AlreadyExistsError when the name holds another body.
        """
        try:
            self.put(kind, name, body)
        except AlreadyExistsError:
            if self.get(kind, name) != body:
                raise

    def content_name(self, body: bytes) -> str:
        """Return the 64 hexadecimal digits that name an object after its body."""
        return blake3(body, key=self.name_key).hexdigest()

    def load_index(self, names: Iterable[str]) -> None:
        """Load some `idx/` objects into the local index. Raises NotFoundError, IntegrityError."""
        loaded = self.index.loaded()
        for name in names:
            if name not in loaded:
                self._load_locations(name)

    def _load_locations(self, name: str) -> None:
        self.index.add(name, decode_locations(self.get(Kind.LOCATIONS, name), name))

    def refresh_index(self) -> None:
        """Load every `idx/` object that is new, and what is condemned."""
        loaded = self.index.loaded()
        for info in self.store.list("idx/"):
            if info.name in loaded:
                continue
            # One damaged list must not stop every backup: its chunks count as unknown, which costs a duplicate.
            # A verification reports it, and `repair_index` makes its content again from the packs.
            with contextlib.suppress(IntegrityError):
                self._load_locations(info.name)
        with self._lock:
            self._condemnations = read_condemnations(self)
            self._present.clear()

    def usable(self, chunk_id: bytes) -> ChunkLocation | None:
        """Return a place of a chunk in a pack that is there and not condemned, or None.

        The presence of a pack is asked once between two calls of `refresh_index`.
        """
        for location in self.index.lookup(chunk_id):
            if self.is_usable(location.pack):
                return location
        return None

    def is_usable(self, pack: SealedPack) -> bool:
        """Tell whether a pack is there, of the right size, and not condemned."""
        with self._lock:
            if pack.pack_id in self._condemnations.packs:
                return False
            known = self._present.get(pack.pack_id)
        if known is None:
            try:
                known = self.store.size(pack_name(pack.pack_id)) == pack.size_bytes
            except NotFoundError:
                known = False
            with self._lock:
                self._present[pack.pack_id] = known
        return known


def _try_store(store: ObjectStore, config: bytes) -> None:
    """Refuse a store that only pretends: one that overwrites, or that answers a range with something else."""
    try:
        store.put_if_absent(_CONFIG, b"must be refused")
    except AlreadyExistsError:
        pass
    else:
        raise ConfigError(f"the store at {store.url} overwrites objects: it cannot hold a repository")
    if store.get_range(_CONFIG, 2, 8) != config[2:10] or store.get(_CONFIG, len(config)) != config:
        raise ConfigError(f"the store at {store.url} does not read ranges: it cannot hold a repository")
