"""An object store in a bucket: S3 and what speaks its protocol, through obstore.

**Put-if-absent** is a PUT with `If-None-Match: *`, in one request, so it takes what fits into memory. When its answer
is lost nobody knows whether it was carried out, and the next try would find the name taken by our own bytes. Every
object therefore carries a token of the call that wrote it in its metadata: who finds the name taken looks whether the
token is his own.

**Packs** are too large for that. `create` gathers up to `part_size_bytes`; what ends before goes as above. More is a
multipart upload with parts of that size, and S3 shows its object when it is completed, whole or not at all. S3 can
complete it conditionally too, obstore (0.12) cannot: `commit` looks whether the name is free and then completes, so
two writers of one name could both succeed, and the later one's object would stay. No two writers have the name of a
pack: it is 256 fresh random bits. But whoever has stolen an access node's keys can overwrite a pack, and a bucket's
policy that demands `If-None-Match` refuses the completion. Both are met by a `part_size_bytes` above the repository's
pack size: then every object is one conditional PUT, and a stream takes a pack's size of memory (measured: 65 MiB for
packs of 64 MiB, where parts of 8 MiB take 25).

**Durable** is what the store has answered with success; that it keeps it is the store's promise.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.store import AzureStore, GCSStore, ObjectStore
from obstore.store import S3Store as S3Bucket
from pydantic import SecretStr

from safehaul.errors import AlreadyExistsError, ConfigError, IntegrityError, NotFoundError, TransientError
from safehaul.media.names import check_name, check_prefix
from safehaul.media.object_store import ObjectInfo
from safehaul.media.s3_errors import OBSTORE_ERRORS, translated

if TYPE_CHECKING:  # obstore has them for type checkers alone
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

DEFAULT_PART_SIZE_BYTES = 8 << 20
SCHEMES = ("s3", "gs", "az")
"""Amazon S3 and its kin; Google Cloud Storage and Azure Blob Storage go the same way and have not been tried."""
_TOKEN = "safehaulput"  # noqa: S105 (the name of a metadata field: letters alone, which every store takes)
_PARTS_IN_FLIGHT = 2
_READ_SLICE_BYTES = 16 << 20
_PUT_TRIES = 2
_PUT_PAUSE_S = 0.5
_RETRY_FOR_S = 60.0
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class S3Options:
    """How a bucket is reached. What is not given is found as the cloud's own tools do: environment, instance's role."""

    endpoint: str = ""
    region: str = ""
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    ca_file: Path | None = None
    allow_http: bool = False
    part_size_bytes: int = DEFAULT_PART_SIZE_BYTES
    timeout_s: float = 120.0
    """For one request, its body included."""
    retries: int = 4
    """Of one request, by obstore, within a minute: 5xx answers, and cut connections of what is safe to repeat."""


def open_bucket(scheme: str, bucket: str, prefix: str, options: S3Options) -> ObjectStore:
    """The bucket as obstore sees it. Raises ConfigError."""
    client: ClientConfig = {
        "allow_http": options.allow_http,
        "connect_timeout": timedelta(seconds=min(10.0, options.timeout_s)),
        "timeout": timedelta(seconds=options.timeout_s),
    }
    if options.ca_file is not None:
        try:
            client["root_certificate"] = options.ca_file.read_bytes()
        except OSError as error:
            raise ConfigError(f"s3_ca_file {options.ca_file} cannot be read: {error.strerror}") from error
    retry: RetryConfig = {
        "max_retries": options.retries,
        "retry_timeout": timedelta(seconds=_RETRY_FOR_S),
        "backoff": {
            "init_backoff": timedelta(milliseconds=200),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
    }
    try:
        if scheme == "gs":
            return GCSStore(bucket, prefix=prefix or None, client_options=client, retry_config=retry)
        if scheme == "az":
            return AzureStore(bucket, prefix=prefix or None, client_options=client, retry_config=retry)
        return S3Bucket(
            bucket,
            prefix=prefix or None,
            config=_s3_config(options),
            client_options=client,
            retry_config=retry,
            credential_provider=_credentials(options),
        )
    except OBSTORE_ERRORS as error:
        raise ConfigError(
            f"the bucket {scheme}://{bucket} cannot be used: {str(error).partition(chr(10))[0]}"
        ) from None


def _s3_config(options: S3Options) -> S3Config:
    config: S3Config = {}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    if options.region:
        config["region"] = options.region
    return config


def _credentials(options: S3Options) -> Callable[[], S3Credential] | None:
    """Keys of our own leave nothing to the environment, whose session token would not fit them."""
    access_key, secret_key = options.access_key, options.secret_key
    if access_key is None or secret_key is None:
        return None

    def given() -> S3Credential:
        return {
            "access_key_id": access_key.get_secret_value(),
            "secret_access_key": secret_key.get_secret_value(),
            "token": None,
            "expires_at": None,
        }

    return given


class _S3Upload:
    """One object on its way; see ObjectUpload."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store = store
        self._name = name
        self._put_token = secrets.token_hex(16)
        self._gathered: bytearray | None = bytearray()
        self._writer: obstore.WritableFile | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self._gathered is not None, "write after commit or abort"
        # Copied here: obstore keeps what it is given until it is sent, and the caller uses his buffer again.
        if self._gathered and len(self._gathered) + len(data) > self._store.part_size_bytes:
            self._send()
        self._gathered += data

    def _send(self) -> None:
        """Give what is gathered to obstore; never touched again here."""
        gathered, self._gathered = self._gathered, bytearray()
        if self._writer is None:
            self._writer = self._store.open_writer(self._name, self._put_token)
        writer = self._writer
        self._store.call("write", self._name, lambda: writer.write(gathered or b""))

    def commit(self) -> None:
        assert self._gathered is not None, "commit after commit or abort"
        if self._writer is None:
            gathered, self._gathered = self._gathered, None
            self._store.put_marked(self._name, gathered, self._put_token)
            return
        self._send()
        if self._store.exists(self._name):
            self.abort()
            raise AlreadyExistsError(f"object exists already: {self._store.where(self._name)}")
        writer, self._writer, self._gathered = self._writer, None, None
        try:
            self._store.call("commit", self._name, writer.close)
        except TransientError:
            # The answer may have been lost after the store had done it.
            if not self._store.may_see_mark(self._name, self._put_token):
                raise

    def abort(self) -> None:
        self._gathered = None
        writer, self._writer = self._writer, None
        if writer is not None:
            # Parts that stay are invisible; the bucket's lifecycle rule for unfinished uploads takes them away.
            with contextlib.suppress(*OBSTORE_ERRORS):
                writer.__exit__(GeneratorExit, GeneratorExit(), None)


class S3Store:
    """Objects of a bucket below a prefix; see ObjectStore. Safe for many threads and processes."""

    def __init__(
        self, bucket: ObjectStore, url: str, *, part_size_bytes: int = DEFAULT_PART_SIZE_BYTES
    ) -> None:
        self._bucket = bucket
        self._url = url
        self.part_size_bytes = part_size_bytes

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._url

    def where(self, name: str) -> str:
        """URL of an object, for messages."""
        return f"{self._url}/{name}"

    def call(self, action: str, name: str, request: Callable[[], ValueT]) -> ValueT:
        """Do `request` and translate its errors."""
        try:
            return request()
        except OBSTORE_ERRORS as error:
            # Without its cause: obstore's dump of the request is long, and said all that it can say.
            raise translated(error, action, self.where(name)) from None

    def put_if_absent(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object durably; see ObjectStore."""
        self.put_marked(check_name(name), data, secrets.token_hex(16))

    def put_marked(self, name: str, data: bytes | bytearray | memoryview, token: str) -> None:
        """Store an object that carries its writer's token. Raises AlreadyExistsError when another's is there."""

        def put() -> None:
            obstore.put(
                self._bucket, name, data, mode="create", attributes={_TOKEN: token}, use_multipart=False
            )

        for left in reversed(range(_PUT_TRIES)):
            try:
                return self.call("write", name, put)
            except AlreadyExistsError:
                if self.is_marked(name, token):
                    return None
                raise
            except TransientError:
                if not left:
                    if self.may_see_mark(name, token):
                        return None
                    raise
            time.sleep(_PUT_PAUSE_S)
        return None

    def is_marked(self, name: str, token: str) -> bool:
        """Tell whether the object is there and carries this token."""
        try:
            found = self.call(
                "look up", name, lambda: obstore.get(self._bucket, name, options={"head": True})
            )
        except NotFoundError:
            return False
        return found.attributes.get(_TOKEN) == token

    def may_see_mark(self, name: str, token: str) -> bool:
        """As `is_marked`; False too when the store does not answer: the error that led here says more."""
        try:
            return self.is_marked(name, token)
        except TransientError:
            return False

    def create(self, name: str) -> _S3Upload:
        """Begin an object that is written piece by piece; see ObjectStore, and above about large ones."""
        return _S3Upload(self, check_name(name))

    def open_writer(self, name: str, token: str) -> obstore.WritableFile:
        """A multipart upload. Holds one part, and `_PARTS_IN_FLIGHT` more on their way."""
        return self.call(
            "write",
            name,
            lambda: obstore.open_writer(
                self._bucket,
                name,
                attributes={_TOKEN: token},
                buffer_size=self.part_size_bytes,
                max_concurrency=_PARTS_IN_FLIGHT,
            ),
        )

    def get(self, name: str, limit_bytes: int) -> bytes:
        """Read a whole object; see ObjectStore."""
        check_name(name)
        found = self.call("read", name, lambda: obstore.get(self._bucket, name))
        if found.meta["size"] > limit_bytes:
            raise IntegrityError(
                f"object {self.where(name)} is larger than the {limit_bytes} bytes that it may have"
            )
        return self.call("read", name, lambda: found.bytes().to_bytes())

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Read a part of an object; see ObjectStore."""
        check_name(name)
        if not length:
            self.size(name)
            return b""
        found = self.call(
            "read", name, lambda: obstore.get_range(self._bucket, name, start=offset, length=length)
        )
        if len(found) != length:
            raise IntegrityError(
                f"object {self.where(name)} is truncated: {length} bytes wanted at offset {offset}, "
                f"{len(found)} are there"
            )
        return found.to_bytes()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from an object; see ObjectStore."""
        for start in range(0, max(len(buffer), 1), _READ_SLICE_BYTES):
            part = buffer[start : start + _READ_SLICE_BYTES]
            part[:] = self.get_range(name, offset + start, len(part))

    def size(self, name: str) -> int:
        """Length in bytes; see ObjectStore."""
        check_name(name)
        return self.call("look up", name, lambda: obstore.head(self._bucket, name))["size"]

    def exists(self, name: str) -> bool:
        """Tell whether the object is there; see ObjectStore."""
        try:
            self.size(name)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder; see ObjectStore.

        Amazon lists in the order of the keys, others (SeaweedFS) in that of their folders: so all are gathered and
        sorted, about 250 bytes of memory each.
        """
        folder = check_prefix(prefix).removesuffix("/")
        yield from self.call("list", prefix, lambda: _sorted(self._bucket, folder))

    def delete(self, name: str) -> None:
        """Take an object away, durably; see DeletingStore."""
        check_name(name)
        with contextlib.suppress(NotFoundError):
            self.call("delete", name, lambda: obstore.delete(self._bucket, [name]))

    def remove_abandoned(self, older_than_s: float) -> int:  # noqa: ARG002 - see DeletingStore
        """Nothing: a rule of the bucket's lifecycle removes unfinished uploads (docs/object-stores.md)."""
        return 0


def _sorted(bucket: ObjectStore, folder: str) -> list[ObjectInfo]:
    found = [
        ObjectInfo(item["path"], item["size"], item["last_modified"].timestamp())
        for page in obstore.list(bucket, folder or None, chunk_size=1000)
        for item in page
        # Others' objects, such as the empty ones that stand for folders in some tools, have no place here.
        if _is_name(item["path"])
    ]
    found.sort()
    return found


def _is_name(name: str) -> bool:
    return bool(name) and not any(segment.startswith(".") or not segment for segment in name.split("/"))
