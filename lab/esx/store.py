"""The hosts' durable memory: one SQLite file of JSON documents.

A killed process (kill -9) loses nothing that was committed: SQLite's log is in the kernel's hands by then.
That is the promise the lab needs; a power cut of the machine is not played.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Store:
    """Documents by (kind, id). Not thread-safe: the world's lock guards it."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS document (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id)) "
            "WITHOUT ROWID"
        )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All puts and deletes within happen together or not at all. May be nested: the outermost counts."""
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def put(self, kind: str, key: str, body: str) -> None:
        """Store a document."""
        self._database.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?)", (kind, key, body))

    def delete(self, kind: str, keys: Iterable[str]) -> None:
        """Forget documents; unknown ones are no error."""
        self._database.executemany(
            "DELETE FROM document WHERE kind = ? AND id = ?", ((kind, k) for k in keys)
        )

    def get(self, kind: str, key: str) -> str | None:
        """A document's body, or None."""
        row = self._database.execute(
            "SELECT body FROM document WHERE kind = ? AND id = ?", (kind, key)
        ).fetchone()
        return None if row is None else str(row[0])

    def all(self, kind: str) -> list[str]:
        """The bodies of all documents of a kind."""
        rows = self._database.execute("SELECT body FROM document WHERE kind = ?", (kind,))
        return [str(row[0]) for row in rows]
