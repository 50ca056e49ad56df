"""The lab's own processes: started with a log, waited for, and ended by pid, children of theirs included."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.other_user import as_user

STOP_WITHIN_S = 20.0


class LabError(Exception):
    """The lab could not do what was asked; the message says what and where to look."""


class LabProcess:
    """A program in a session of its own, so that a Ctrl-C at the terminal reaches only us."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        uid: int | None = None,
        directory: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command) if uid is None else as_user(uid, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ) | dict(environment or {}),
                cwd=directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while the program runs."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `ready()` is true. Raises LabError with the log's end when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise LabError(f"{self.name} ended with {self._process.returncode}:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} was not ready within {timeout_s:g} s:\n{self.log_end()}")
            time.sleep(0.05)

    def log_text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def says_ready(self) -> bool:
        """True when it has printed that it is ready."""
        return "is ready" in self.log_text()

    def log_end(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL to the program alone."""
        if self.running:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it does nothing until `thaw`, and its connections stay open, as on a machine that is cut off."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on as if no time had passed."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM to its session, without waiting."""
        if self.running:
            self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM to its session, then SIGKILL; returns when it has ended. A second call does nothing."""
        if self.running:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """True when something accepts connections on 127.0.0.1:port."""
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex(("127.0.0.1", port)) == 0


def processes_in(directory: Path) -> list[str]:
    """Other processes that work below `directory`, whoever started them: `PID COMMAND` for each.

    One is told by its command line or its working directory; those of other users whose directory cannot be read
    are told by the former alone.
    """
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:  # it has just ended
            continue
        try:
            works_in = str((entry / "cwd").readlink())
        except OSError:  # it has just ended, or is another user's
            works_in = ""
        if str(directory) in command or f"{works_in}/".startswith(f"{directory}/"):
            found.append(f"{entry.name} {command[:80]}")
    return found


def tool(name: str) -> str:
    """Path of a program that came with a Python package of the lab (`temporal`, `rclone`, `safehaul`)."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LabError(
            f"{name} is not beside {sys.executable}: install the package with its lab extra (make venv)"
        )
    return str(path)
