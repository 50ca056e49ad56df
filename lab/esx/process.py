"""The hosts as a process of their own: started, stopped, killed and started again by the demo and by tests.

with HostsProcess(state_dir) as hosts:
    hosts.client.state()
    hosts.kill()        # kill -9, as a crash
    hosts.start()       # goes on where it was
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from lab.esx.client import HostClient

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0


class HostsStartError(Exception):
    """The hosts' process did not begin to serve; the message holds the end of its log."""


class HostsProcess:
    """See the module. `log` in `state_dir` takes what the process says."""

    def __init__(self, state_dir: Path, port: int = 0) -> None:
        self._state_dir = state_dir
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id. Errors: HostsStartError when it was not started."""
        if self._process is None:
            raise HostsStartError("the hosts were not started")
        return self._process.pid

    @property
    def client(self) -> HostClient:
        """A client of the running process."""
        return HostClient(self.url)

    def start(self) -> None:
        """Start and wait until it serves. Errors: HostsStartError."""
        self._state_dir.mkdir(parents=True, exist_ok=True)
        log = self._state_dir / "hosts.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "lab.esx", "--state", str(self._state_dir), "--port", str(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._process = process
        # A process that hangs is killed, which ends the read below.
        watchdog = threading.Timer(_START_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline() if process.stdout else b""
        finally:
            watchdog.cancel()
        if not line:
            self.kill()
            message = f"the hosts did not start: {log.read_text(errors='replace')[-2000:]}"
            raise HostsStartError(message)
        self.url = str(json.loads(line)["url"])
        self._port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 20 s. Idempotent."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL, as a crash. Idempotent."""
        if self._process is None:
            return
        self._process.kill()
        self._reap()

    def wait_dead(self, timeout_s: float) -> None:
        """Wait until the process is gone by itself (a planned crash). Errors: subprocess.TimeoutExpired."""
        if self._process is not None:
            self._process.wait(timeout_s)
            self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
