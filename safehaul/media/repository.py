"""A repository: its configuration, and the reading and writing of its objects by name and kind."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from safehaul.errors import (
    AlreadyExistsError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    SafehaulError,
    UnsupportedError,
)
from safehaul.media import repository_config
from safehaul.media.canonical import utc_now
from safehaul.media.chunk_index import ChunkIndex, ChunkLocation
from safehaul.media.collection import NOTHING_CONDEMNED, read_condemnations
from safehaul.media.envelope import OBJECT_LIMIT_BYTES, Kind, unwrap, wrap
from safehaul.media.key_slots import RepositorySecret, add_slot, check_secret, unlock
from safehaul.media.keys import SUITE_AES_GCM, SUITE_NONE, RepositoryKeys
from safehaul.media.locations import PackListing, decode_locations
from safehaul.media.object_store import ObjectStore
from safehaul.media.pack import MAX_PACK_BYTES, SealedPack, pack_name
from safehaul.media.repository_config import ENCRYPTION, KNOWN_FEATURES, RepositoryConfig
from safehaul.read_ahead import read_ahead

DEFAULT_CHUNK_SIZE_BYTES = 1 << 20
DEFAULT_PACK_SIZE_BYTES = 64 << 20
_MIN_CHUNK_SIZE_BYTES = 1 << 12
_MAX_CHUNK_SIZE_BYTES = 16 << 20
_RACERS = 4
_LISTINGS = 5
_LIST_READERS = 8
LISTING_PAUSE = 20.0
"""Between two looks for new lists that need not be, in times of how long such a look takes."""

_log = logging.getLogger(__name__)


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


class Repository:
    """An open repository. Safe for many threads; many processes may have the same one open."""

    def __init__(
        self,
        store: ObjectStore,
        config: RepositoryConfig,
        root_key: bytes,
        index_path: Path | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.keys = RepositoryKeys(root_key, config.suite)
        self.index = ChunkIndex(index_path, config.repository_id)
        self._listed_at = self._listing_took_s = 0.0
        self._lock = threading.Lock()
        self._present: dict[bytes, bool] = {}
        self._refreshing = threading.Lock()
        self._condemnations = NOTHING_CONDEMNED

    @classmethod
    def init(
        cls,
        store: ObjectStore,
        *,
        chunk_size_bytes: int = DEFAULT_CHUNK_SIZE_BYTES,
        pack_size_bytes: int = DEFAULT_PACK_SIZE_BYTES,
        secret: RepositorySecret | None = None,
    ) -> Repository:
        """Make a new repository in an empty store, after trying that the store can hold one.

        With a `secret` it is encrypted, and the secret is its first key slot. Raises AlreadyExistsError when there is
        one, ConfigError for impossible sizes or a store that overwrites objects or cannot read ranges,
        InvalidInputError for a secret that is too short.
        """
        if not _MIN_CHUNK_SIZE_BYTES <= chunk_size_bytes <= _MAX_CHUNK_SIZE_BYTES or chunk_size_bytes % 512:
            raise ConfigError("chunk size must be a multiple of 512 from 4 KiB to 16 MiB")
        if not chunk_size_bytes <= pack_size_bytes <= MAX_PACK_BYTES // 2:
            raise ConfigError(f"pack size must be from one chunk to {MAX_PACK_BYTES // 2} bytes")
        root_key = secrets.token_bytes(32)
        config = RepositoryConfig(
            repository_id=secrets.token_hex(16),
            created=utc_now(),
            chunk_size_bytes=chunk_size_bytes,
            pack_size_bytes=pack_size_bytes,
            suite=SUITE_NONE if secret is None else SUITE_AES_GCM,
            features_required=[] if secret is None else [ENCRYPTION],
            root_key="" if secret is not None else root_key.hex(),
        )
        if secret is not None:
            check_secret(secret)
            config = repository_config.seal_config(config, root_key)
            if not store.exists(repository_config.NAME):
                # Before `config`: a repository without a slot could never be opened.
                add_slot(store, root_key, config.repository_id, secret, "made with the repository")
        data = repository_config.encode_config(config)
        _put_config(store, data)
        _try_store(store, data)
        return cls(store, config, root_key)

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        *,
        index_path: Path | None = None,
        index_folder: Path | None = None,
        for_writing: bool = True,
        secret: RepositorySecret | None = None,
    ) -> Repository:
        """Open a repository.

        `index_path` keeps the chunk index in that file between processes, `index_folder` in one of the repository's own
        there: where that is not possible, it is warned of, and a temporary file does.

        Raises NotFoundError when there is none, UnsupportedError for a newer format or unknown features,
        IntegrityError for a damaged or changed configuration, ConfigError for a secret that is missing, wrong, or given
        for a repository that is not encrypted.
        """
        try:
            data = store.get(repository_config.NAME, repository_config.LIMIT_BYTES)
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no repository at {store.url}: make one with `safehaul repo init`"
            ) from error
        config = repository_config.decode_config(data)
        unknown = set(config.features_for_writing) - KNOWN_FEATURES
        if for_writing and unknown:
            raise UnsupportedError(
                f"writing needs features that this safehaul does not know: {', '.join(sorted(unknown))}"
            )
        root_key = _root_key(store, config, secret)
        if index_folder is None:
            return cls(store, config, root_key, index_path)
        path = index_folder / f"{config.repository_id}.index"
        try:
            return cls(store, config, root_key, path)
        except OSError as error:
            _log.warning("no chunk index is kept, each start reads it anew: %s; see cache_dir", error)
            return cls(store, config, root_key)

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
            encrypted=config.encrypted,
            pack_count=len(sizes),
            stored_bytes=sum(sizes),
            backup_count=sum(1 for _ in self.store.list("manifests/")),
        )

    def wrap(self, kind: Kind, name: str, body: bytes) -> bytes:
        """Make the stored form of a small object."""
        return wrap(self.keys, kind, name, body)

    def unwrap(self, kind: Kind, name: str, data: bytes) -> bytes:
        """Check the stored form of a small object and return its body."""
        return unwrap(self.keys, kind, name, data)

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
        return blake3(body, key=self.keys.name).hexdigest()

    def load_index(self, names: Iterable[str]) -> None:
        """Load some `idx/` objects into the local index. Raises NotFoundError, IntegrityError."""
        loaded = self.index.loaded()
        self._load_lists([name for name in names if name not in loaded], pass_over=False)

    def _load_lists(self, names: list[str], *, pass_over: bool) -> bool:
        """Load lists, which are read by several threads: there may be thousands.

        With `pass_over` a damaged one and one that is gone are left out; returns whether one was gone.
        """
        gone = False

        def read(name: str) -> bytes | SafehaulError:
            try:
                return self.get(Kind.LOCATIONS, name)
            except (IntegrityError, UnsupportedError, NotFoundError) as error:
                return error

        def lists() -> Iterator[tuple[str, list[PackListing]]]:
            nonlocal gone
            # Another thread or process may have loaded them since.
            missing = (name for name in names if not self.index.has(name))
            with ThreadPoolExecutor(_LIST_READERS, thread_name_prefix="idx") as pool:
                for name, body in read_ahead(pool, read, missing, _LIST_READERS):
                    try:
                        if isinstance(body, SafehaulError):
                            raise body
                        yield name, decode_locations(body, name)
                    except (IntegrityError, UnsupportedError, NotFoundError) as error:
                        if not pass_over:
                            raise
                        gone = gone or isinstance(error, NotFoundError)

        if names:
            self.index.add_all(lists())
        return gone

    def refresh_index(self, *, lately: bool = False) -> None:
        """Load every `idx/` object that is new, forget those that are gone, and learn what is condemned.

        With `lately` the names of the last time may do, when to list them takes long: a chunk that is not found costs a
        duplicate. One after the other: what was read later must never be replaced by what was read before.
        """
        with self._refreshing:
            if not lately or time.monotonic() - self._listed_at > LISTING_PAUSE * self._listing_took_s:
                # A list that vanished was merged into one that may be newer than the listing.
                for _ in range(_LISTINGS):
                    if not self._refresh_lists():
                        break
            condemnations = read_condemnations(self)
            with self._lock:
                self._condemnations = condemnations
                self._present.clear()

    def _refresh_lists(self) -> bool:
        """Make the index what `idx/` holds; True when a list vanished meanwhile."""
        # Asked first: what another process adds to a kept index while we list is not gone.
        loaded = self.index.loaded()
        begun = time.monotonic()
        listed = [info.name for info in self.store.list("idx/")]
        self._listed_at = time.monotonic()
        self._listing_took_s = self._listed_at - begun
        # One damaged list must not stop every backup: its chunks count as unknown, which costs a duplicate.
        # A verification reports it, and `repair_index` makes its content again from the packs.
        vanished = self._load_lists([name for name in listed if name not in loaded], pass_over=True)
        self.index.forget(loaded.difference(listed))
        return vanished

    def usable(self, chunk_id: bytes) -> ChunkLocation | None:
        """Return a place of a chunk in a pack that is there and not condemned, or None.

        The presence of a pack is asked once between two calls of `refresh_index`.
        """
        for location in self.index.lookup(chunk_id):
            if self.is_usable(location.pack):
                return location
        return None

    def is_condemned(self, pack_id: bytes) -> bool:
        """Tell whether a pack is condemned or damaged: no new backup may rely on it."""
        with self._lock:
            return pack_id in self._condemnations.packs

    def is_condemned_page(self, root: str) -> bool:
        """Tell whether a map page is condemned: no new backup may rely on it."""
        with self._lock:
            return root in self._condemnations.pages

    def usable_at_once(self, chunk_id: bytes) -> bool | None:
        """Tell whether there is such a place, without asking the store; None: that depends on what it would say."""
        known = [self._is_usable_at_once(location.pack) for location in self.index.lookup(chunk_id)]
        return True if True in known else None if None in known else False

    def _is_usable_at_once(self, pack: SealedPack) -> bool | None:
        with self._lock:
            if pack.pack_id in self._condemnations.packs:
                return False
            return self._present.get(pack.pack_id)

    def is_usable(self, pack: SealedPack) -> bool:
        """Tell whether a pack is there, of the right size, and not condemned."""
        known = self._is_usable_at_once(pack)
        if known is None:
            try:
                known = self.store.size(pack_name(pack.pack_id)) == pack.size_bytes
            except NotFoundError:
                known = False
            with self._lock:
                self._present[pack.pack_id] = known
        return known


def _root_key(store: ObjectStore, config: RepositoryConfig, secret: RepositorySecret | None) -> bytes:
    if not config.encrypted:
        if secret is not None:
            # Whoever can write to the store could put a plain repository in the place of an encrypted one.
            raise ConfigError(
                f"the repository at {store.url} is not encrypted, and the configuration has a passphrase or key file "
                "for it: is it the right repository? Encryption is decided by `safehaul repo init`"
            )
        return bytes.fromhex(config.root_key)
    if secret is None:
        raise ConfigError(secret_missing(store.url))
    root_key, _ = unlock(store, config.repository_id, secret)
    repository_config.check_sealed(config, root_key)
    return root_key


def secret_missing(url: str) -> str:
    """What to do about an encrypted repository for which no secret is configured."""
    return (
        f"the repository at {url} is encrypted: give its passphrase or key_file in the configuration's "
        "[[media_agents]]"
    )


def _put_config(store: ObjectStore, data: bytes) -> None:
    """Commit a new repository's configuration, by several writers at once: a store must let exactly one win.

    There are stores that honour put-if-absent, but for writers that come together. The bytes are the same, so it does
    not matter which one it is. Raises AlreadyExistsError when none has won, ConfigError when more than one has.
    """

    def put(_: int) -> Exception | None:
        try:
            store.put_if_absent(repository_config.NAME, data)
        except SafehaulError as error:
            return error
        return None

    with ThreadPoolExecutor(_RACERS) as pool:
        failures = [error for error in pool.map(put, range(_RACERS)) if error is not None]
    if len(failures) < _RACERS - 1:
        raise ConfigError(f"the store at {store.url} overwrites objects: it cannot hold a repository")
    if len(failures) == _RACERS:
        worst = next((error for error in failures if not isinstance(error, AlreadyExistsError)), None)
        raise worst or AlreadyExistsError(f"there is a repository at {store.url} already")


def _try_store(store: ObjectStore, config: bytes) -> None:
    """Refuse a store that only pretends: one that overwrites, or that answers a range with something else."""
    try:
        store.put_if_absent(repository_config.NAME, b"must be refused")
    except AlreadyExistsError:
        pass
    else:
        raise ConfigError(f"the store at {store.url} overwrites objects: it cannot hold a repository")
    if (
        store.get_range(repository_config.NAME, 2, 8) != config[2:10]
        or store.get(repository_config.NAME, len(config)) != config
    ):
        raise ConfigError(f"the store at {store.url} does not read ranges: it cannot hold a repository")
