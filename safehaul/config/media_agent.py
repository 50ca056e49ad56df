"""The table `[[media_agents]]`: a keeper of backups, and where and how its repository is reached."""

from __future__ import annotations

import ipaddress
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from safehaul.config.fields import AbsolutePath, Name, Section, SizeBytes
from safehaul.config.secrets import SecretRef

_MIB = 2**20
_GIB = 2**30
_BUCKET_SCHEMES = ("s3", "gs", "az")
_SCHEMES = ("file", *_BUCKET_SCHEMES)
_S3_KEYS = (
    "s3_endpoint",
    "s3_region",
    "s3_access_key",
    "s3_secret_key",
    "s3_prune_access_key",
    "s3_prune_secret_key",
    "s3_ca_file",
    "s3_allow_http",
    "s3_lock_days",
)


class MediaAgent(Section):
    """A keeper of backups, and its repository."""

    name: Name
    """As in `safehaul worker media-agent NAME`."""
    repository: str = Field(max_length=2048)
    """URL of the repository: `file:///srv/safehaul/repository`, or a [bucket](object-stores.md):
    `s3://bucket/prefix`. All workers open it: a directory is on one machine, or on a mount that they share under the
    same path."""
    pack_size_bytes: SizeBytes = Field(default=64 * _MIB, ge=_MIB, le=_GIB)
    """Size of the files that hold the backups' bytes. Read by `safehaul repo init` alone: a repository keeps its
    own."""
    passphrase: SecretRef | None = None
    """Where the passphrase of the encrypted repository is: at least 12 characters. With it `safehaul repo init` makes
    an encrypted repository, and every worker that opens it needs it. Excludes `key_file`."""
    key_file: AbsolutePath | None = None
    """File of at least 32 random bytes that opens the encrypted repository, in place of a passphrase. Who loses all
    passphrases and key files of a repository has lost its backups."""
    copy_to: str = Field(default="", max_length=200)
    """Name of another `[[media_agents]]` that keeps a [second copy](keeping.md#a-second-copy) of the backups:
    `safehaul copy start` needs no more words. Its machine reads this repository, so it needs what opens it."""
    s3_endpoint: str = Field(default="", max_length=2048)
    """`https://host[:port]` of the S3 server that has the bucket. Not set: Amazon's, of `s3_region`."""
    s3_region: str = Field(default="", max_length=64)
    """The bucket's region. Not set: `us-east-1`, which is what most servers that are not Amazon's want."""
    s3_access_key: SecretRef | None = None
    """Where the access key's id is; goes together with `s3_secret_key`. Neither: what the environment or the machine's
    role gives, as with Amazon's own tools."""
    s3_secret_key: SecretRef | None = None
    """Where the secret key is. Its identity should be able to read, list and write, but
    [neither delete nor overwrite](object-stores.md#two-identities)."""
    s3_prune_access_key: SecretRef | None = None
    """The same for an identity that may delete too; goes together with `s3_prune_secret_key`. Only on the MediaAgent's
    machine, which prunes with it, and where `safehaul retention release`, `safehaul retention recover` and
    `safehaul repo key` are run. Not set: they use `s3_access_key`."""
    s3_prune_secret_key: SecretRef | None = None
    """Where its secret key is."""
    s3_ca_file: AbsolutePath | None = None
    """PEM file of CA certificates that are trusted for `s3_endpoint`, beside the system's."""
    s3_lock_days: int = Field(default=0, ge=0, le=3650)
    """Days for which [object locks](object-stores.md#object-locks) are renewed by each prune that finds a third of them
    passed. The bucket must lock new objects for at least as long. `0`: locks are left alone."""
    s3_allow_http: bool = False
    """`true`: `s3_endpoint` may be `http://` on another machine than this one. Names, sizes and, in a repository that
    is not encrypted, the backups themselves travel in clear."""
    prune_at: str = Field(default="11:00", pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")
    """When the repository is [pruned](retention.md) each day, `HH:MM` in UTC, by the Temporal Schedule that
    `safehaul setup` makes. `""`: never by itself."""
    verify_at: str = Field(
        default="sun 12:00", pattern=r"^((sun|mon|tue|wed|thu|fri|sat) ([01]\d|2[0-3]):[0-5]\d)?$"
    )
    """When the repository is [verified](keeping.md) each week, a part of it, in UTC, by the schedule of the same
    command. `""`: never by itself."""
    copy_at: str = Field(default="08:00", pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")
    """When its backups are copied to `copy_to` each day, `HH:MM` in UTC, by such a schedule. `""`: never by itself."""
    s3_part_size_bytes: SizeBytes = Field(default=8 * _MIB, ge=5 * _MIB, le=2 * _GIB)
    """What is larger is uploaded to a bucket in parts of this size, for about three times as much memory of each
    stream. Above the repository's pack size every object is one conditional request, as
    [a policy against overwriting](object-stores.md#two-identities) needs it, and a stream takes a pack's size."""

    @model_validator(mode="after")
    def _one_secret(self) -> MediaAgent:
        if self.passphrase is not None and self.key_file is not None:
            msg = "has both passphrase and key_file: this machine opens the repository with one of them"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _keys_of_a_bucket(self) -> MediaAgent:
        given = [key for key in _S3_KEYS if getattr(self, key)]
        if given and urlsplit(self.repository).scheme != "s3":
            msg = f"{given[0]} is for a repository in s3://…; this one is {self.repository.partition(':')[0]}://"
            raise ValueError(msg)
        for one, other in (
            (self.s3_access_key, self.s3_secret_key),
            (self.s3_prune_access_key, self.s3_prune_secret_key),
        ):
            if (one is None) != (other is None):
                msg = "an access key and its secret key go together"
                raise ValueError(msg)
        parts = urlsplit(self.s3_endpoint)
        if parts.scheme == "http" and not (self.s3_allow_http or _is_loopback(parts.hostname or "")):
            msg = "s3_endpoint is http:// on another machine: use https://, or say s3_allow_http = true"
            raise ValueError(msg)
        return self

    @field_validator("s3_endpoint")
    @classmethod
    def _plain_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (
            parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment
        ):
            msg = "must look like https://s3.example.net"
            raise ValueError(msg)
        if parts.username is not None:
            msg = "must not hold a user or password; they have keys of their own"
            raise ValueError(msg)
        _ = parts.port  # raises ValueError when it is not a port number
        return value.rstrip("/")

    @field_validator("repository")
    @classmethod
    def _known_store(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in _SCHEMES:
            msg = f"must start with one of {', '.join(f'{name}://' for name in _SCHEMES)}"
            raise ValueError(msg)
        if parts.scheme in _BUCKET_SCHEMES:
            # The rest is checked where it is opened.
            if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
                msg = f"a bucket is named by {parts.scheme}://bucket or {parts.scheme}://bucket/prefix"
                raise ValueError(msg)
            return value
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/") or ".." in PurePosixPath(path).parts or "\x00" in path:
            msg = "a local repository is named by an absolute path: file:///srv/safehaul/repository"
            raise ValueError(msg)
        return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
