"""The lab's second NAS filer: nfs-ganesha over directories (Debian's nfs-ganesha, nfs-ganesha-vfs, rpcbind), as root.

Unlike rclone it refuses as a real filer does (root squash, privileged ports, client lists, read-only), speaks v3 and
v4.1, shows real ids, owners and modes, and its file handles stand for inodes. Found by experiment with ganesha 4.3:

* NFSv3 does not start without a portmapper. Each instance gets its own, in a mount namespace of its own: rpcbind with
  a netconfig that names the local transport alone listens on a socket in the namespace's /run and on no port, so
  that any number of instances serve 127.0.0.1 beside each other. A network namespace, and a way into it for every
  client, is not needed. A process namespace makes ganesha the first process of its own small world: however it ends,
  the portmapper and the mounts end with it, and nothing has a name that could be left behind.
* With the attributes' expiration 0 and no cache of directory entries it shows at once what others do to the files.
* An NFSv3 client that holds a deleted file gets NFS3ERR_STALE once ganesha has closed its own descriptor of it (at the
  latest after a restart); until then it may read what was there.
* A mount of an export that does not exist, that is not for this client or not for this NFS version is refused by
  v3's mount service with MNT3ERR_ACCES, and by v4.1 with NFS4ERR_NOENT.
* A v3 call from an unprivileged port is rejected below NFS (AUTH_TOOWEAK) where the export demands a privileged one.

* After its restart a client of v3 goes on (nfs-rs after 5 seconds), one of v4.1 has lost its session and connects anew.

`served_bytes` is what ganesha has read from files: exact, but for some hundred bytes when it looks a user up.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import nfs_rs

from lab.coherence import check_coherence
from lab.processes import LabError, LabProcess, free_port

Version = Literal["3", "4.1"]
_START_WITHIN_S = 30.0
_PORT_TRIES = 5
_PROGRAMS = {"ganesha.nfsd": "nfs-ganesha, nfs-ganesha-vfs", "rpcbind": "rpcbind", "unshare": "util-linux"}
"""What runs here, and Debian's packages of it."""
_NETCONFIG_LOCAL = "local tpi_cots_ord - loopback - - -\n"
"""netconfig(5): the only transport of our portmapper is a socket file."""
_ANSWERS_WITHIN_S = 10.0
_OWN_WORLD = [
    *("setpriv", "--pdeathsig=KILL", "--"),
    *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--"),
]
"""unshare(1) waits for the last `exec` of the script, which is ganesha. It dies with whoever started it, even when that
is killed, and ganesha dies with it."""


@dataclass(frozen=True)
class GaneshaExport:
    """One export: what it shows, where, and to whom."""

    directory: Path
    path: str
    """What clients mount, in both versions."""
    versions: tuple[Version, ...] = ("3", "4.1")
    writable: bool = False
    root_access: bool = True
    """False squashes root: uid 0 becomes nobody."""
    privileged_port: bool = False
    """True refuses clients that call from port 1024 or above."""
    clients: str = "*"
    """Addresses that may use it."""
    security: str = "sys"


class Ganesha:
    """One ganesha with its portmapper. A context manager that starts and stops both."""

    def __init__(
        self,
        exports: Sequence[GaneshaExport],
        *,
        state: Path,
        versions: tuple[Version, ...] = ("3", "4.1"),
        port: int = 0,
    ) -> None:
        """`state` (made if missing, 0700) holds configuration, log, recovery; port 0 takes free ones."""
        self.exports = tuple(exports)
        self.state = state
        self.versions = versions
        self.port = port
        self.mount_port = 0
        """Of NFSv3's mount service; 0 when v3 is not served."""
        self._fixed_port = port != 0
        self._process: LabProcess | None = None

    @property
    def pid(self) -> int:
        """Process id of the running ganesha. Raises LabError when it is not running."""
        if self._process is not None and self._process.running:
            unshare = self._process.pid
            if children := Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split():
                return int(children[0])
        raise LabError("ganesha is not running")

    def start(self) -> None:
        """Start and return when it answers. Raises LabError with the end of its log."""
        for name, packages in _PROGRAMS.items():
            if _program(name) is None:
                raise LabError(f"{name} is not installed (Debian: {packages})")
        if os.geteuid() != 0:
            raise LabError("ganesha opens files by handle, which only root may: run this as root")
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        for remaining in reversed(range(_PORT_TRIES)):
            self._take_ports()
            self._spawn()
            try:
                self._wait_until_it_answers()
            except LabError:
                self.stop()
                # Another process may have taken a free port in the meantime.
                if not remaining or "Address already in use" not in self.log_text():
                    raise
            else:
                return

    def stop(self) -> None:
        """End ganesha and its portmapper; a second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def change_exports(self, exports: Sequence[GaneshaExport]) -> None:
        """Serve other exports from now on, as after a restart; clients' handles of kept directories stay good."""
        self.stop()
        self.exports = tuple(exports)
        ports, fixed = (self.port, self.mount_port), self._fixed_port
        self._fixed_port = True
        try:
            self.start()
        finally:
            self._fixed_port = fixed
        assert ports == (self.port, self.mount_port)

    def mount(self, export: GaneshaExport, version: Version) -> nfs_rs.Client:
        """A plain client of the export, from an unprivileged port; the caller closes it. Raises NfsError, OSError."""
        return nfs_rs.Client.connect(
            f"nfs://127.0.0.1{export.path}",
            versions=[version],
            nfs_port=self.port,
            mount_port=self.mount_port or None,
            noresvport=True,
            connect_timeout=_ANSWERS_WITHIN_S,
            operation_timeout=_ANSWERS_WITHIN_S,
        )

    def assert_coherent(self) -> None:
        """Check that clients of each open export see at once what is written into its directory, in each version.

        Raises LabError.
        """
        for export in self.exports:
            if not _everybody_may_mount(export) or not export.root_access:
                continue
            for version in export.versions:
                # Looked at below a directory: over v4.1 nfs-rs cannot list the root of a mount.
                with (
                    tempfile.TemporaryDirectory(prefix=".coherence-", dir=export.directory) as place,
                    self.mount(export, version) as client,
                ):
                    check_coherence(client, Path(place).name, Path(place), 0.0)

    def served_bytes(self) -> int:
        """Bytes that ganesha has read from files since it started (its `rchar`; what it sends is not in there)."""
        for line in Path(f"/proc/{self.pid}/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            if name == "rchar":
                return int(value)
        raise LabError(f"the kernel does not count what process {self.pid} reads")

    def log_text(self) -> str:
        """What ganesha and its portmapper have said."""
        texts = [self.state / name for name in ("ganesha.log", "start.log")]
        return "\n".join(path.read_text("utf-8", "replace") for path in texts if path.exists())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_ports(self) -> None:
        if not self._fixed_port:
            self.port = free_port()
        if "3" in self.versions and not (self._fixed_port and self.mount_port):
            self.mount_port = free_port()

    def _spawn(self) -> None:
        for name in ("ganesha.log", "start.log"):
            (self.state / name).unlink(missing_ok=True)
        (self.state / "recovery").mkdir(exist_ok=True)
        (self.state / "netconfig").write_text(_NETCONFIG_LOCAL)
        (self.state / "ganesha.conf").write_text(self._configuration())
        self._process = LabProcess(
            "ganesha",
            [*_OWN_WORLD, "sh", "-c", self._script()],
            self.state / "start.log",
            # No variable of the environment may change what is started here.
            environment={"LC_ALL": "C"},
            directory=self.state,
        )

    def _script(self) -> str:
        state = shlex.quote(str(self.state.resolve()))
        lines = ["set -eu", "mount -t tmpfs -o mode=755 tmpfs /run"]
        if "3" in self.versions:
            lines += [
                f"mount --bind {state}/netconfig /etc/netconfig",
                f"{_program('rpcbind')} -f &",
                "for _ in $(seq 200); do [ -S /run/rpcbind.sock ] && break; sleep 0.05; done",
                # Ganesha needs the system's own: it looks up what "tcp" is.
                "umount /etc/netconfig",
            ]
        files = f"-f {state}/ganesha.conf -L {state}/ganesha.log -p {state}/ganesha.pid"
        lines.append(f"exec {_program('ganesha.nfsd')} -F {files}")
        return "\n".join(lines)

    def _configuration(self) -> str:
        """ganesha-core-config(8), ganesha-export-config(8), ganesha-cache-config(8)."""
        protocols = _protocols(self.versions)
        mount_port = f"MNT_Port = {self.mount_port}; " if self.mount_port else ""
        blocks = [
            f"NFS_CORE_PARAM {{ NFS_Port = {self.port}; {mount_port}Bind_addr = 127.0.0.1; Protocols = {protocols};",
            "  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;",
            "  mount_path_pseudo = true; Clustered = false; }",
            f'NFSv4 {{ Graceless = true; Minor_Versions = 1; RecoveryRoot = "{self.state.resolve() / "recovery"}";',
            "  Only_Numeric_Owners = true; }",
            "NFS_KRB5 { Active_krb5 = false; }",
            # What the lab's hosts do to the files behind ganesha's back is to be seen at once.
            "MDCACHE { Dir_Chunk = 0; }",
            "EXPORT_DEFAULTS { Attr_Expiration_Time = 0; Transports = TCP; Access_Type = None; }",
            *(_export_block(number, export) for number, export in enumerate(self.exports, 1)),
        ]
        return "\n".join(blocks) + "\n"

    def _wait_until_it_answers(self) -> None:
        process = self._process
        assert process is not None
        try:
            process.wait_until(self._answers, _START_WITHIN_S)
        except LabError as error:
            end = "\n".join(self.log_text().splitlines()[-20:])
            raise LabError(f"{error}\n{end}") from error

    def _answers(self) -> bool:
        """True when this ganesha has taken its ports and an export of it can be mounted."""
        if "NFS SERVER INITIALIZED" not in self.log_text():
            return False
        return all(self._mounts(export) for export in self.exports if _everybody_may_mount(export))

    def _mounts(self, export: GaneshaExport) -> bool:
        version = next(version for version in export.versions if version in self.versions)
        with contextlib.suppress(nfs_rs.NfsError, OSError), self.mount(export, version):
            return True
        return False


def _everybody_may_mount(export: GaneshaExport) -> bool:
    return export.clients == "*" and export.security == "sys" and not export.privileged_port


def _export_block(number: int, export: GaneshaExport) -> str:
    access = "RW" if export.writable else "RO"
    squash = "no_root_squash" if export.root_access else "root_squash"
    rules = f"Squash = {squash}; SecType = {export.security}; PrivilegedPort = {str(export.privileged_port).lower()};"
    # Whom no CLIENT block names gets what EXPORT_DEFAULTS gives: nothing.
    client = f"CLIENT {{ Clients = {export.clients}; Access_Type = {access}; {rules} }}"
    place = f'Path = "{export.directory.resolve()}"; Pseudo = "{export.path}";'
    return (
        f"EXPORT {{ Export_Id = {number}; {place} Protocols = {_protocols(export.versions)};\n"
        f"  {client}\n  FSAL {{ Name = VFS; }} }}"
    )


def _protocols(versions: tuple[Version, ...]) -> str:
    return ",".join(version[0] for version in versions)


def _program(name: str) -> str | None:
    # Debian keeps daemons where a plain PATH may not look.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/bin")
