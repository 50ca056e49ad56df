"""The file in which a machine keeps its copy of `idx/`: whose it is, and how it is thrown away.

SQLite in WAL mode: a process that dies leaves it whole, and several may have it open. Local disks only.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION = 2
"""Of the tables; another one is thrown away. 0 is a file that is new, or older than this number."""
_OWNER = "CREATE TABLE owner (repository TEXT NOT NULL)"
_WAIT_S = 120.0
"""For another process that puts many entries in."""
_WAL_LIMIT_BYTES = 64 << 20
"""SQLite uses a log again from its beginning, and never makes it smaller by itself."""


def open_kept(path: Path, repository_id: str, schema: str) -> sqlite3.Connection:
    """Open the file, made anew when it is damaged, another repository's or of another version.

    Raises OSError when it cannot be made there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(path, "lock"):
        try:
            database = _connect(path)
            if _is_ours(database, repository_id):
                return database
            database.close()
        except sqlite3.OperationalError as error:
            raise OSError(f"the chunk index {path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError:
            # Not a database any more. What it held can be read again.
            pass
        _remove(path)
        database = _connect(path)
        database.executescript(f"BEGIN; {schema}; {_OWNER}; PRAGMA user_version = {_VERSION}; COMMIT")
        database.execute("INSERT INTO owner VALUES (?)", (repository_id,))
        return database


def discard(path: Path) -> None:
    """Throw the file away; who has it open goes on with what is no longer there."""
    with alone(path, "lock"):
        _remove(path)


def trim_log(database: sqlite3.Connection, path: Path) -> None:
    """Put what a large load has left in the log into the file; a small rest stays where it is."""
    if path.with_name(f"{path.name}-wal").stat().st_size > _WAL_LIMIT_BYTES:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # Losing the last entries costs a reload, a half-written page would be wrong: hence WAL, and few syncs.
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _is_ours(database: sqlite3.Connection, repository_id: str) -> bool:
    if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
        return False
    return bool(database.execute("SELECT repository FROM owner").fetchall() == [(repository_id,)])


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """One process at a time, and one thread: to make or remove the file (`lock`), to put many entries in (`load`)."""
    with path.with_name(f"{path.name}.{what}").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
