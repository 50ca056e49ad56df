"""The lab's object stores, without root and on loopback: SeaweedFS, a real one, and one that only pretends.

`SeaweedServer` runs master, volume server, filer and S3 gateway in one process. Its bucket `vault` has identities as a
real bucket would: `WRITER` may read, list and write, `KEEPER` may delete too, `OWNER` may do all. What SeaweedFS 4.48
can express of that, found by experiment:

* A `DELETE` of the writer is refused (403 AccessDenied): `s3:DeleteObject` is apart from `s3:PutObject` in policies,
  while its older `Read`/`Write` actions are not enough, for `Write` deletes too.
* An unconditional PUT of the writer **overwrites**. Amazon's condition key `s3:if-none-match` is not known: a policy
  with it refuses every PUT, conditional or not.
* `If-None-Match: *` is honoured, in a race too (412), and so are ranges (206).
* Keys are listed folder by folder: `a/b` before `a-b`.

`PretendingStore` is `rclone serve s3`, which takes `If-None-Match` and overwrites.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from lab.processes import LabError, LabProcess, answers, free_port, tool

BUCKET = "vault"
REGION = "us-east-1"
_READY_WITHIN_S = 60.0
_SERVICES = ("master", "volume", "filer", "s3")
_PORTS = [
    f"{service}.port{kind}" for service in _SERVICES for kind in ("", ".grpc") if f"{service}{kind}" != "s3"
]


@dataclass(frozen=True)
class Identity:
    """Who asks the store."""

    access_key: str
    secret_key: str


WRITER = Identity("lab-writer", "lab-writer-secret")
KEEPER = Identity("lab-keeper", "lab-keeper-secret")
OWNER = Identity("lab-owner", "lab-owner-secret")
_WRITES = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]


class SeaweedServer:
    """One SeaweedFS process. A context manager that starts and stops it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._ports: dict[str, int] = {}
        self._process: LabProcess | None = None

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and return when its bucket takes objects. Raises LabError with the end of its log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        identities = self.directory / "identities.json"
        identities.touch(mode=0o600)
        identities.write_text(json.dumps(_identities()))
        command = [
            tool("weed"),
            f"-logdir={self.directory}",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
        ]
        self._ports = {name: free_port() for name in _PORTS}
        command += [f"-{name}={port}" for name, port in self._ports.items()]
        command += [
            f"-s3.port={self.port}",
            f"-s3.config={identities}",
            # A socket's path may have 107 bytes only (unix(7)): named from the working directory.
            "-filer.localSocket=filer.sock",
            "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            "-volume.max=64",
        ]
        self._process = LabProcess(
            "seaweedfs",
            command,
            self.directory / "weed.log",
            # It would make an administrator of these keys.
            environment={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            directory=self.directory,
        )
        try:
            self._process.wait_until(self._takes_objects, _READY_WITHIN_S)
        except LabError:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process by its id; a second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            # It takes more than 20 s to end by itself, and nobody needs its data any more.
            process.kill()
            process.stop()
        for service in _SERVICES:
            # These sockets have no option for their place, and stay when their process has ended.
            port = self._ports.get(f"{service}.port.grpc")
            Path(f"/tmp/seaweedfs-{service}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108

    def client(self, identity: Identity) -> S3Store:
        """The bucket as `identity` sees it, by obstore and without retries."""
        return client(self.endpoint, identity)

    def _takes_objects(self) -> bool:
        if not answers(self.port):
            return False
        owner = self.client(OWNER)
        try:
            # The bucket is made by its owner's first object, and its first volumes by the first one of some size.
            obstore.put(owner, "lab-is-ready", bytes(1 << 20), mode="overwrite", use_multipart=False)
            obstore.delete(owner, ["lab-is-ready"])
        except BaseError:
            time.sleep(0.2)
            return False
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class PretendingStore:
    """`rclone serve s3` over a directory: a context manager that starts and stops it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: LabProcess | None = None

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        (self.directory / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
        key = f"{WRITER.access_key},{WRITER.secret_key}"
        command = [
            tool("rclone"),
            "serve",
            "s3",
            str(self.directory / "data"),
            f"--addr=127.0.0.1:{self.port}",
        ]
        self._process = LabProcess(
            "rclone s3",
            [*command, f"--auth-key={key}", "--config=/dev/null"],
            self.directory / "rclone.log",
            directory=self.directory,
        )
        self._process.wait_until(lambda: answers(self.port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()


def client(endpoint: str, identity: Identity) -> S3Store:
    """A bucket as obstore sees it."""
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        region=REGION,
        access_key_id=identity.access_key,
        secret_access_key=identity.secret_key,
        client_options={"allow_http": True, "timeout": timedelta(seconds=10)},
        retry_config={"max_retries": 0},
    )


def _identities() -> dict[str, Any]:
    """SeaweedFS's static configuration: each identity and its policy."""
    named = {"writer": (WRITER, _WRITES), "keeper": (KEEPER, [*_WRITES, "s3:DeleteObject"])}
    return {
        "identities": [
            *({"name": name, **_credentials(who), "policyNames": [name]} for name, (who, _) in named.items()),
            {"name": "owner", **_credentials(OWNER), "actions": ["Admin"]},
        ],
        "policies": [
            {"name": name, "content": json.dumps(_policy(actions))} for name, (_, actions) in named.items()
        ],
    }


def _credentials(identity: Identity) -> dict[str, Any]:
    return {"credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}]}


def _policy(actions: list[str]) -> dict[str, Any]:
    """In Amazon's language; docs/object-stores.md shows the same."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{BUCKET}/*"]},
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{BUCKET}"]},
        ],
    }
