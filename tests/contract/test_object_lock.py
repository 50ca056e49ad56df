"""Goal: what backups need stays locked, renewed before its lock ends; what nobody needs is not renewed, and goes.

On a real S3 server with a bucket that has object lock: nobody can delete what is locked, whatever keys he has.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from pydantic import SecretStr

from lab.object_store import BUCKET, OWNER, REGION, SeaweedServer
from safehaul.errors import ConfigError, NotFoundError, PermissionRefusedError
from safehaul.media.forgotten import forget, purge
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.object_lock import S3Locks, renew_locks
from safehaul.media.repository import Repository
from safehaul.media.store import S3Options
from tests.contract.object_stores import s3_store
from tests.unit.media_backup import CHUNK, KEY_FILE, PACK, back_up, restore

LOCKED = "locked"
DAYS = 10


def _client(seaweed: SeaweedServer) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=seaweed.endpoint,
        region_name=REGION,
        aws_access_key_id=OWNER.access_key,
        aws_secret_access_key=OWNER.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as started:
        client = _client(started)
        client.create_bucket(Bucket=LOCKED, ObjectLockEnabledForBucket=True)
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": DAYS}}
        client.put_object_lock_configuration(
            Bucket=LOCKED, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )
        yield started


class Site:
    """A repository in the locked bucket."""

    def __init__(self, seaweed: SeaweedServer, prefix: str) -> None:
        self.client = _client(seaweed)
        self.prefix = prefix
        self.store = s3_store(seaweed.endpoint, prefix, OWNER, bucket=LOCKED)
        self.locks = S3Locks(f"s3://{LOCKED}/{prefix}", options(seaweed))
        self.repository = Repository.init(
            self.store, chunk_size_bytes=CHUNK, pack_size_bytes=PACK, secret=KEY_FILE
        )

    def names(self, prefix: str = "") -> set[str]:
        return {found.name for found in self.store.list(prefix)}

    def days_left(self, name: str) -> float:
        found = self.client.get_object_retention(Bucket=LOCKED, Key=f"{self.prefix}/{name}")["Retention"]
        assert found["Mode"] == "COMPLIANCE"
        left: timedelta = found["RetainUntilDate"] - datetime.now(UTC)
        return left / timedelta(days=1)

    def lock_for(self, days: int) -> int:
        return renew_locks(Repository.open(self.store, secret=KEY_FILE), self.store, self.locks, days)


def options(seaweed: SeaweedServer, secret: str = OWNER.secret_key) -> S3Options:
    return S3Options(
        endpoint=seaweed.endpoint,
        region=REGION,
        access_key=SecretStr(OWNER.access_key),
        secret_key=SecretStr(secret),
        allow_http=True,
        retries=0,
    )


@pytest.fixture
def site(seaweed: SeaweedServer, request: pytest.FixtureRequest) -> Site:
    return Site(seaweed, f"r{abs(hash(request.node.name))}")


class _Later:
    """The locks as they look some days later."""

    def __init__(self, locks: S3Locks, days: float) -> None:
        self._locks = locks
        self._passed = timedelta(days=days)

    def check(self, days: int) -> None:
        self._locks.check(days)

    def locked_until(self, name: str) -> datetime | None:
        until = self._locks.locked_until(name)
        return until - self._passed if until is not None else None

    def extend(self, name: str, until: datetime) -> None:
        self._locks.extend(name, until + self._passed)


def image(seed: int) -> bytes:
    return random.Random(seed).randbytes(9 * CHUNK)


def test_what_backups_need_is_locked_again_when_a_third_has_passed_and_nobody_can_delete_it(
    site: Site,
) -> None:
    ref = back_up(site.repository, "run-1", image(1))
    needed = site.names() - site.names("sessions/")
    assert all(DAYS - 0.1 < site.days_left(name) <= DAYS for name in needed), "by the bucket's own rule"
    assert site.lock_for(DAYS) == 0, "it is not due"
    locks = _Later(site.locks, 3.5)
    assert renew_locks(site.repository, site.store, locks, DAYS) == len(needed)
    assert all(DAYS + 3.4 < site.days_left(name) <= DAYS + 3.5 for name in needed)
    assert renew_locks(site.repository, site.store, locks, DAYS) == 0
    # A lock that is longer stays, whatever is asked for.
    site.locks.extend("config", datetime.now(UTC) + timedelta(days=11))
    assert site.days_left("config") > DAYS + 3.4
    pack = min(site.names("packs/"))
    key = f"{site.prefix}/{pack}"
    version = site.client.head_object(Bucket=LOCKED, Key=key)["VersionId"]
    with pytest.raises(ClientError, match="AccessDenied"):
        site.client.delete_object(Bucket=LOCKED, Key=key, VersionId=version)
    assert restore(site.repository, ref) == image(1)


def test_what_nobody_needs_is_not_locked_again_and_the_collection_gives_it_up(site: Site) -> None:
    first = back_up(site.repository, "run-1", image(1))
    packs = site.names("packs/")
    second = back_up(site.repository, "run-2", image(2), "20260102T000000Z")
    forget(site.repository, site.store, first, "the test wants it")
    assert purge(site.repository, site.store, older_than_s=0) == [first]
    quick = CollectOptions(grace_s=0)
    # The server counts whole seconds: what is as old as the question is too young.
    collected = [_collect_later(site, quick) for _ in range(3)]
    assert sum(report.packs_deleted for report in collected) == len(packs)
    assert not packs & site.names("packs/")
    assert renew_locks(site.repository, site.store, _Later(site.locks, 5), DAYS) > len(site.names("packs/"))
    assert restore(Repository.open(site.store, secret=KEY_FILE), second) == image(2)
    versions = site.client.list_object_versions(Bucket=LOCKED, Prefix=f"{site.prefix}/packs/")["Versions"]
    assert {item["Key"].removeprefix(f"{site.prefix}/") for item in versions} > packs, (
        "kept until the locks end"
    )


def _collect_later(site: Site, how: CollectOptions) -> Any:
    time.sleep(1.1)
    return collect(Repository.open(site.store, secret=KEY_FILE), site.store, how)


def test_a_bucket_that_does_not_lock_for_that_long_is_refused(site: Site, seaweed: SeaweedServer) -> None:
    with pytest.raises(ConfigError, match=r"s3_lock_days is 13, but .* for 10 days in mode COMPLIANCE"):
        renew_locks(site.repository, site.store, site.locks, 13)
    with pytest.raises(ConfigError, match="has no object lock, which it gets when it is made"):
        S3Locks(f"s3://{BUCKET}/x", options(seaweed)).check(1)
    with pytest.raises(PermissionRefusedError, match="s3:PutObjectRetention"):
        S3Locks(f"s3://{LOCKED}/x", options(seaweed, "another secret")).check(1)
    with pytest.raises(NotFoundError, match=f"s3://{LOCKED}/x/packs/none"):
        S3Locks(f"s3://{LOCKED}/x", options(seaweed)).extend("packs/none", datetime.now(UTC))
