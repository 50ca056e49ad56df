"""A PostgreSQL server of the tests' own: Debian's, on 127.0.0.1, in a directory of its own, never run by root.

It sorts texts by the rules of a language, as most servers do: what the catalogue sorts by bytes must not follow it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from lab.other_user import as_user
from lab.processes import LabProcess, free_port

USER = "safehaul"
PASSWORD = "s3cret/with:marks@all"
NEEDS = pytest.mark.requires_debian("pg_ctlcluster", package="postgresql")
_numbers = count(1)


class PostgreSql:
    """A running server; stop and start it, or make databases in it."""

    def __init__(self, home: Path) -> None:
        self._data = home / "data"
        self._log = home / "log"
        self.port = free_port()
        # Root may not run the server; Debian's package has made a user for that.
        self._uid = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
        if self._uid is not None:
            os.chown(home, self._uid, -1)
        (home / "password").write_text(PASSWORD)
        command = [
            *(_program("initdb"), f"--pgdata={self._data}", f"--username={USER}", "--no-sync"),
            *("--auth=scram-sha-256", f"--pwfile={home / 'password'}", "--encoding=UTF8"),
            *("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"),
        ]
        made = subprocess.run(
            command if self._uid is None else as_user(self._uid, command),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
        )
        assert made.returncode == 0, made.stdout + made.stderr
        self.start()

    def start(self) -> None:
        """Start the server and wait for its answer."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = [_program("postgres"), "-D", str(self._data)]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._process = LabProcess("postgres", command, self._log, uid=self._uid, directory=Path("/"))
        self._process.wait_until(self._answers)

    def stop(self) -> None:
        """Stop it; who is connected is cut off."""
        # SIGTERM would wait for every client to leave.
        os.kill(self._process.pid, signal.SIGINT)
        deadline = time.monotonic() + 30
        while self._process.running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._process.stop()

    def database(self) -> str:
        """A new, empty database: its URL, with the password."""
        name = f"catalog_{next(_numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        """A database's URL as the configuration makes it."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running() -> Iterator[PostgreSql]:
    """A server until the end, then nothing is left of it."""
    # Not pytest's directory: only its owner may enter that, and the server is another user.
    home = Path(tempfile.mkdtemp(prefix="safehaul-postgresql-"))
    try:
        server = PostgreSql(home)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home)


def _program(name: str) -> str:
    versions = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    return str(max(versions, key=lambda path: int(path.parts[4])))
