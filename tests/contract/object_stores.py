"""The stores that the contract of `safehaul.media.object_store` is tested on."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from lab.object_store import BUCKET, REGION, WRITER, Identity
from safehaul.media.object_store import DeletingStore
from safehaul.media.store import S3Options, open_deleting_store

PART = 5 << 20
"""The smallest that S3 allows, but for the last."""


def s3_store(
    endpoint: str,
    prefix: str,
    who: Identity = WRITER,
    *,
    part_size_bytes: int = PART,
    timeout_s: float = 30.0,
    retries: int = 2,
    bucket: str = BUCKET,
    ca_file: Path | None = None,
) -> DeletingStore:
    """The bucket below `prefix` as `who` sees it; whether he may delete is the server's to say."""
    options = S3Options(
        endpoint=endpoint,
        region=REGION,
        access_key=SecretStr(who.access_key),
        secret_key=SecretStr(who.secret_key),
        ca_file=ca_file,
        allow_http=endpoint.startswith("http://"),
        part_size_bytes=part_size_bytes,
        timeout_s=timeout_s,
        retries=retries,
    )
    return open_deleting_store(f"s3://{bucket}/{prefix}", options)
