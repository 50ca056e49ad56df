"""Object locks of an S3 bucket: until its lock ends, nobody can delete a version of an object, not even its owner.

obstore cannot ask for locks, so this is the one place that uses boto3, Amazon's own client (docs/adr/0011). It is an
extra of the installation, and loaded only where `s3_lock_days` is configured.

A lock is made by the bucket's default retention when an object is written, and made longer here. It is never made
shorter: in compliance mode the store refuses that to everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

from safehaul.errors import BusyError, ConfigError, ConnectionLostError, NotFoundError, PermissionRefusedError
from safehaul.media import repository_config
from safehaul.media.object_store import DeletingStore, store_time
from safehaul.media.repository import Repository
from safehaul.media.store_s3 import S3Options
from safehaul.read_ahead import read_ahead

_UNLOCKED = ("sessions/", "clock/", "gc/", "jobs/")
"""What no backup needs: it may end with the bucket's own retention."""

_PARTS = 3
"""Locks are renewed when a third of their time has passed: two thirds are always left."""

_REQUESTS = 16
_REGION = "us-east-1"
_MISSING = {"NoSuchKey", "404", "NoSuchVersion"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"}
_WITHOUT_LOCKS = {"ObjectLockConfigurationNotFoundError", "InvalidRequest", "NoSuchObjectLockConfiguration"}


class Locks(Protocol):
    """The locks of a repository's objects."""

    def check(self, days: int) -> None:
        """Raise ConfigError unless each new object is locked for at least `days`."""

    def locked_until(self, name: str) -> datetime | None:
        """When the lock of an object's newest version ends; None: it has none. Raises NotFoundError."""

    def extend(self, name: str, until: datetime) -> None:
        """Lock an object's newest version until a time, unless it is locked for longer. Raises NotFoundError."""


class S3Locks:
    """The locks in a bucket below a prefix. Safe for many threads."""

    def __init__(self, url: str, options: S3Options) -> None:
        parts = urlsplit(url)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._url = url
        self._client = _client(options)

    def check(self, days: int) -> None:
        """See Locks."""
        with self._translated("ask for the object lock of", self._url):
            found = self._client.get_object_lock_configuration(Bucket=self._bucket)
        rule = found.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention", {})
        locked_days = rule.get("Days", 0) + 365 * rule.get("Years", 0)
        if rule.get("Mode") != "COMPLIANCE" or locked_days < days:
            raise ConfigError(
                f"s3_lock_days is {days}, but the bucket of {self._url} locks new objects for {locked_days} days "
                f"in mode {rule.get('Mode', 'none')}: give it a default retention of at least {days} days in mode "
                "COMPLIANCE (docs/object-stores.md), or set s3_lock_days = 0"
            )

    def locked_until(self, name: str) -> datetime | None:
        """See Locks."""
        with self._translated("look up the lock of", f"{self._url}/{name}"):
            found = self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        until: datetime | None = found.get("ObjectLockRetainUntilDate")
        return until

    def extend(self, name: str, until: datetime) -> None:
        """See Locks. To shorten a lock is refused as if the identity had no right to it: hence the look."""
        locked_until = self.locked_until(name)
        if locked_until is None or locked_until < until:
            retention = {"Mode": "COMPLIANCE", "RetainUntilDate": until}
            with self._translated("lock", f"{self._url}/{name}"):
                self._client.put_object_retention(
                    Bucket=self._bucket, Key=self._key(name), Retention=retention
                )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextmanager
    def _translated(self, action: str, where: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra, see the module

        try:
            yield
        except ClientError as error:
            raise _refusal(error.response, action, where) from None
        except BotoCoreError as error:
            raise ConnectionLostError(f"cannot {action} {where}: {error}") from None


def _refusal(response: dict[str, Any], action: str, where: str) -> Exception:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = f"cannot {action} {where}: HTTP {status} {code}"
    if code in _MISSING:
        return NotFoundError(said)
    if code in _REFUSED:
        return PermissionRefusedError(
            f"{said}; the identity that prunes needs s3:GetObjectRetention, s3:PutObjectRetention and "
            "s3:GetBucketObjectLockConfiguration"
        )
    if code in _WITHOUT_LOCKS:
        return ConfigError(
            f"{said}; the bucket has no object lock, which it gets when it is made: see docs/object-stores.md, or set "
            "s3_lock_days = 0"
        )
    return BusyError(said)


def _client(options: S3Options) -> Any:
    try:
        import boto3  # noqa: PLC0415 - an extra, see the module
        from botocore.config import Config  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "s3_lock_days needs the Python package boto3, which is not installed: pip install 'safehaul[object-lock]'"
        ) from error
    keys = {}
    if options.access_key is not None and options.secret_key is not None:
        keys = {
            "aws_access_key_id": options.access_key.get_secret_value(),
            "aws_secret_access_key": options.secret_key.get_secret_value(),
        }
    return boto3.client(
        "s3",
        region_name=options.region or _REGION,
        endpoint_url=options.endpoint or None,
        verify=str(options.ca_file) if options.ca_file is not None else None,
        config=Config(
            connect_timeout=min(10.0, options.timeout_s),
            read_timeout=options.timeout_s,
            retries={"total_max_attempts": options.retries + 1, "mode": "standard"},
            max_pool_connections=_REQUESTS,
            s3={"addressing_style": "path" if options.endpoint else "auto"},
        ),
        **keys,
    )


def renew_locks(
    repository: Repository,
    store: DeletingStore,
    locks: Locks,
    days: int,
    heartbeat: Callable[[str], None] = lambda _: None,
) -> int:
    """Lock what backups need for `days` from now, if a third of that has passed since the last time.

    Returns how many objects were locked: all of `manifests/`, `packs/` and so on, but for what is condemned. A chunk
    that a new backup shares with old ones is locked for as long as the newest one needs it. `config` comes last: its
    lock tells when all were renewed, and nobody can forge that. A run that is stopped begins anew. Raises ConfigError
    when the bucket does not lock new objects for that long, PermissionRefusedError.
    """
    locks.check(days)
    now = datetime.fromtimestamp(store_time(store), UTC)
    until = now + timedelta(days=days)
    locked_until = locks.locked_until(repository_config.NAME)
    if locked_until is not None and until - locked_until < timedelta(days=days) / _PARTS:
        return 0
    repository.refresh_index()

    def extend(name: str) -> bool:
        try:
            locks.extend(name, until)
        except NotFoundError:
            # Deleted by a collection since it was listed.
            return False
        return True

    count = 1
    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="locks") as pool:
        for name, locked in read_ahead(pool, extend, _needed(repository), 4 * _REQUESTS):
            heartbeat(f"locking {name}")
            count += locked
    locks.extend(repository_config.NAME, until)
    return count


def _needed(repository: Repository) -> Iterator[str]:
    for found in repository.store.list(""):
        folder, _, last = found.name.rpartition("/")
        if found.name.startswith(_UNLOCKED) or found.name == repository_config.NAME:
            continue
        if folder.startswith("packs/") and repository.is_condemned(bytes.fromhex(last)):
            continue
        if folder.startswith("pages/") and repository.is_condemned_page(last):
            continue
        yield found.name
