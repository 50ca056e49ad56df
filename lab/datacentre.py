"""A whole data centre on loopback: hosts, vCenter, filers, Temporal, and safehaul's own workers as processes.

    with DataCentre(Path("/tmp/dc"), demo_site(6)) as lab:
        lab.start_workers()
        lab.temporal.cli("workflow", "start", …)

Everything is below one directory and everything that was started is ended by pid. When `worker_uid` is given the
workers run as that user, who can read neither the datastores nor the hosts' state.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import filers
from lab.esx.client import HostClient
from lab.nfs_gate import NfsGate
from lab.object_store import BUCKET, KEEPER, WRITER, SeaweedServer
from lab.other_user import as_user
from lab.processes import LabError, LabProcess, free_port, processes_in, tool
from lab.site import BACKUP_USER, LAB_PASSWORD, DatastoreSpec, Site, build
from lab.temporal import TemporalServer

PASSWORD_VARIABLE = "LAB_VCENTER_PASSWORD"  # noqa: S105
KEY_VARIABLES = {
    "LAB_S3_ACCESS_KEY": WRITER.access_key,
    "LAB_S3_SECRET_KEY": WRITER.secret_key,
    "LAB_S3_PRUNE_ACCESS_KEY": KEEPER.access_key,
    "LAB_S3_PRUNE_SECRET_KEY": KEEPER.secret_key,
}
"""Of the bucket's two identities. Each is what the key of `[[media_agents]]` of that name refers to."""
VM_GROUP = "demo"
MEDIA_AGENT = "vault"
FILES_WITHIN_S = 15.0
# A process that was killed is seen for a moment more.
ENDED_WITHIN_S = 3.0


class DataCentre:
    """Starts what a site needs, writes the configuration that fits, and ends it all."""

    def __init__(
        self,
        directory: Path,
        site: Site,
        *,
        nodes: tuple[str, ...] = ("node-1", "node-2"),
        streams: int = 2,
        distribution: str = "dynamic",
        worker_uid: int | None = None,
        ui: bool = True,
        pack_size: str = "1 MiB",
        min_free: str = "1 MiB",
        gate: bool = False,
        filer: filers.Kind = "rclone",
        export_rules: Mapping[str, Mapping[str, Any]] | None = None,
        encrypted: bool = False,
        bucket: bool = False,
    ) -> None:
        """`gate` puts an NfsGate before the filer that is read, which refuses or holds v3's reads when told to;
        `filer` is the kind of NFS server; `export_rules` are ganesha's, by datastore (see lab.filers);
        `encrypted` makes a key file for the repository; `bucket` puts it on an S3 server in place of a directory.
        """
        self.directory = directory
        self.site = site
        self.nodes = nodes
        self.streams = streams
        self.distribution = distribution
        self.worker_uid = worker_uid
        self._pack_size = pack_size
        self._min_free = min_free
        self._encrypted = encrypted
        self.bucket = SeaweedServer(directory / "bucket") if bucket else None
        self.state = directory / "hosts"
        self.home = directory / "safehaul"
        self.config = self.home / "safehaul.toml"
        self.temporal = TemporalServer(directory / "temporal", ui=ui)
        self.filers = filers.make(
            filer, site.datastores, self.state / "datastores", directory, export_rules or {}
        )
        self._gated = gate
        self._gate: NfsGate | None = None
        self.extra_environment: dict[str, str] = {}
        """What a test gives the workers that it starts from now on."""
        self.processes: dict[str, LabProcess] = {}
        self.workers: dict[str, LabProcess] = {}
        self.vcenter: dict[str, Any] = {}
        self._hosts: HostClient | None = None
        self._hosts_port = free_port()
        self._vcenter_port = free_port()

    @property
    def hosts(self) -> HostClient:
        """The simulated hosts: the truth about every VM."""
        assert self._hosts is not None, "start() comes first"
        return self._hosts

    @property
    def gate(self) -> NfsGate:
        """What stands before the read-only filer when the data centre was made with `gate`."""
        assert self._gate is not None, "made with gate=True, and start() comes first"
        return self._gate

    @property
    def repository(self) -> Path:
        """Directory of the MediaAgent's repository."""
        return self.home / "repository"

    @property
    def key_file(self) -> Path:
        """What opens the repository when the data centre was made with `encrypted`."""
        return self.home / "repository.key"

    def start(self) -> None:
        """Start hosts, vCenter, filers and Temporal; write the configuration; make the repository."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        # The writable filer stores what was written a moment later: the hosts wait for it, as nobody else does.
        settings = self.site.settings.model_copy(update={"files_within_s": FILES_WITHIN_S})
        build(self.site.model_copy(update={"settings": settings}), self.state)
        self.state.chmod(0o700)
        self.start_hosts()
        self.start_vcenter()
        self.filers.start()
        if self._gated:
            self._gate = NfsGate(self.filers.read_port)
            self._gate.start()
        self.temporal.start()
        if self.bucket is not None:
            self.bucket.start()
        self._write_configuration()
        self.safehaul("repo", "init", "--media-agent", MEDIA_AGENT)

    def start_hosts(self) -> None:
        """Start (or start again) the hosts' process."""
        answer = self._start_lab(
            "hosts", "lab.esx", "--state", str(self.state), "--port", str(self._hosts_port)
        )
        self._hosts = HostClient(str(answer["url"]))

    def start_vcenter(self) -> None:
        """Start (or start again) the vCenter process; sessions do not survive, as with a real one."""
        self.vcenter = self._start_lab(
            "vcenter",
            "lab.vcenter",
            *("--esx", f"http://127.0.0.1:{self._hosts_port}"),
            *("--port", str(self._vcenter_port)),
            *("--state", str(self.directory / "vcenter")),
            *("--log", str(self.directory / "vcenter-calls.jsonl")),
        )

    def start_workers(self) -> None:
        """Start the three kinds of worker, each as a process, and wait until each is ready."""
        roles = [
            ("commserve",),
            ("media-agent", MEDIA_AGENT),
            *(("access-node", node) for node in self.nodes),
        ]
        for role in roles:
            self.start_worker(*role, wait=False)
        for worker in self.workers.values():
            worker.wait_until(worker.says_ready)

    def start_worker(self, *role: str, wait: bool = True, label: str = "") -> LabProcess:
        """Start one worker with `safehaul worker ROLE [NAME]`; `label` tells a second one of the same name apart."""
        name = label or ".".join(role)
        log = self.directory / "logs" / f"{name}.log"
        log.unlink(missing_ok=True)
        worker = LabProcess(
            name,
            [tool("safehaul"), "worker", *role],
            log,
            environment=self.environment,
            uid=self.worker_uid,
            directory=self.home,
        )
        self.workers[name] = worker
        if wait:
            worker.wait_until(worker.says_ready)
        return worker

    @property
    def environment(self) -> dict[str, str]:
        """What safehaul's processes are given: where the configuration is, and the secret it refers to."""
        secrets = {PASSWORD_VARIABLE: LAB_PASSWORD} | (KEY_VARIABLES if self.bucket is not None else {})
        return {"SAFEHAUL_CONFIG": str(self.config)} | secrets | self.extra_environment

    def shell_environment(self) -> str:
        """Lines for a person's shell: the programs, what they need to know, and where the hosts' files are."""
        variables = self.environment | {
            "TEMPORAL_ADDRESS": self.temporal.address,
            "DEMO_WEB_UI": self.temporal.ui_url,
            "DEMO_DATASTORES": str(self.state / "datastores"),
        }
        programs = shlex.quote(str(Path(tool("safehaul")).parent))
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        return "\n".join([*lines, f'export PATH={programs}:"$PATH"']) + "\n"

    def safehaul(self, *arguments: str, timeout_s: float = 300.0, check: bool = True) -> str:
        """Run the `safehaul` command and return what it printed. Raises LabError when it fails."""
        command = [tool("safehaul"), *arguments]
        done = subprocess.run(
            command if self.worker_uid is None else as_user(self.worker_uid, command),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=self.home,
            env=dict(os.environ) | self.environment,
        )
        if check and done.returncode:
            raise LabError(
                f"`safehaul {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def served_bytes(self) -> int:
        """File bytes that the filer has served to backups since it started."""
        return self.filers.served_bytes()

    def left_behind(self) -> list[str]:
        """The lab's processes that still run, and any other that works in its directory; empty after `stop`."""
        deadline = time.monotonic() + ENDED_WITHIN_S
        while True:
            known = [name for name, item in [*self.processes.items(), *self.workers.items()] if item.running]
            found = [*known, *processes_in(self.directory)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def stop(self) -> None:
        """End everything, workers first; a second call does nothing."""
        for worker in self.workers.values():
            worker.terminate()
        for worker in self.workers.values():
            worker.stop()
        self.temporal.stop()
        for name in ("vcenter", "hosts"):
            if name in self.processes:
                self.processes[name].stop()
        if self._gate is not None:
            self._gate.stop()
        self.filers.stop()
        if self.bucket is not None:
            self.bucket.stop()

    def remove(self) -> None:
        """Delete everything that the data centre wrote."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_lab(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        log = self.directory / "logs" / f"{name}.log"
        log.unlink(missing_ok=True)
        process = LabProcess(name, [sys.executable, "-m", module, *arguments], log)
        self.processes[name] = process
        process.wait_until(lambda: '"url"' in process.log_text())
        line = next(line for line in process.log_text().splitlines() if '"url"' in line)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _write_configuration(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config.write_text(self._configuration())
        ours = [self.home, self.config]
        if self._encrypted:
            self.key_file.write_bytes(os.urandom(32))
            ours.append(self.key_file)
        if self.worker_uid is not None:
            for path in ours:
                os.chown(path, self.worker_uid, self.worker_uid)

    def _configuration(self) -> str:
        exports = "".join(
            self._export(store, writable=writable)
            for store in self.site.datastores
            if store.type in filers.VERSION_OF_TYPE
            for writable in (False, True)
        )
        nodes = "".join(
            f'[[access_nodes]]\nname = "{node}"\nstreams = {self.streams}\nspool_dir = "{self.home / "spool"}"\n\n'
            for node in self.nodes
        )
        return f"""\
# Written by the lab: a data centre on loopback.
installation_id = "{uuid.uuid4()}"
cache_dir = "{self.home / "cache"}"

[temporal]
address = "{self.temporal.address}"

[catalog]
url = "sqlite:///{self.home / "catalog.db"}"

[[vcenters]]
name = "lab"
url = "{self.vcenter["url"]}"
user = "{BACKUP_USER}"
password = {{ env = "{PASSWORD_VARIABLE}" }}
thumbprint_sha256 = "{self.vcenter["thumbprint"]}"

{exports}{nodes}[[media_agents]]
name = "{MEDIA_AGENT}"
{self._store()}
pack_size_bytes = "{self._pack_size}"
{f'key_file = "{self.key_file}"' if self._encrypted else ""}

[[vm_groups]]
name = "{VM_GROUP}"
vcenter = "lab"
media_agent = "{MEDIA_AGENT}"
rules = [{{ name = "*" }}]
distribution = "{self.distribution}"
min_free_bytes = "{self._min_free}"
"""

    def _store(self) -> str:
        if self.bucket is None:
            return f'repository = "file://{self.repository}"'
        keys = (f'{name.removeprefix("LAB_").lower()} = {{ env = "{name}" }}' for name in KEY_VARIABLES)
        lines = [f'repository = "s3://{BUCKET}/site-a"', f's3_endpoint = "{self.bucket.endpoint}"', *keys]
        return "\n".join([*lines, 's3_part_size_bytes = "5 MiB"'])

    def _export(self, store: DatastoreSpec, *, writable: bool) -> str:
        nfs_port = self.gate.port if self._gated else self.filers.read_port
        place = self.filers.place(store, writable=writable, nfs_port=nfs_port)
        lines = [
            "[[restore_exports]]" if writable else "[[exports]]",
            f'name = "{store.name}"',
            f'remote_hosts = ["{store.remote_host}"]',
            f'remote_path = "{store.remote_path}"',
            *([f'datacenter = "{store.datacenter}"'] if store.datacenter else []),
            # JSON's texts, numbers and truth values are TOML's too.
            *(f"{key} = {json.dumps(value)}" for key, value in place.items()),
        ]
        return "\n".join(lines) + "\n\n"
