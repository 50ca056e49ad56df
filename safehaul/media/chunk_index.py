"""Where each chunk is: a local SQLite copy of what `idx/` says.

It is a cache and a hint. It can be thrown away at any time, and each answer is checked: a pack that is gone
or condemned is no answer. By default it lives in a temporary file that SQLite removes by itself; with
`path` it is kept, so that the next process need only read the `idx/` objects that are new.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safehaul.media.locations import PackListing
from safehaul.media.pack import ChunkEntry, SealedPack

_SCHEMA = """
CREATE TABLE IF NOT EXISTS loaded (n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS pack (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
    loaded INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS chunk (id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
    stored INTEGER NOT NULL, raw INTEGER NOT NULL, flags INTEGER NOT NULL,
    PRIMARY KEY (id, pack)) WITHOUT ROWID;
"""
_LOOKUP = """
SELECT pack.id, pack.size, chunk.offset, chunk.stored, chunk.raw, chunk.flags, loaded.name
FROM chunk JOIN pack ON pack.n = chunk.pack JOIN loaded ON loaded.n = pack.loaded
WHERE chunk.id = ? ORDER BY chunk.pack
"""
CACHE_KIB = 16 << 10
"""SQLite's page cache: what an index costs in memory, however large it is."""


class ChunkLocation(NamedTuple):
    """One place where a chunk is stored."""

    pack: SealedPack
    entry: ChunkEntry
    listed_in: str
    """Name of the `idx/` object that says so."""


class ChunkIndex:
    """Chunk id → places. Safe for many threads."""

    def __init__(self, path: Path | None = None) -> None:
        # "" makes a private database in a temporary file; ":memory:" would grow without bound.
        self._database = sqlite3.connect(
            str(path) if path else "", check_same_thread=False, isolation_level=None
        )
        # Whoever forgets to close the index must not keep the file open.
        weakref.finalize(self, self._database.close)
        self._lock = threading.Lock()
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        # Losing the cache costs a reload, but a half-written one would be wrong: hence WAL for a kept file.
        self._database.execute("PRAGMA journal_mode = WAL" if path else "PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = NORMAL" if path else "PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database; a temporary one vanishes."""
        with self._lock:
            self._database.close()

    def loaded(self) -> set[str]:
        """Return the names of the `idx/` objects whose content is here."""
        with self._lock:
            return {name for (name,) in self._database.execute("SELECT name FROM loaded")}

    def add(self, name: str, listings: Iterable[PackListing]) -> None:
        """Add the content of one `idx/` object; a second time changes nothing."""
        with self._lock, self._database as database:
            database.execute("BEGIN IMMEDIATE")
            if database.execute("SELECT 1 FROM loaded WHERE name = ?", (name,)).fetchone():
                return
            number = database.execute("INSERT INTO loaded (name) VALUES (?)", (name,)).lastrowid
            for pack, entries in listings:
                database.execute(
                    "INSERT OR IGNORE INTO pack (id, size, loaded) VALUES (?, ?, ?)", (*pack, number)
                )
                row = database.execute("SELECT n FROM pack WHERE id = ?", (pack.pack_id,)).fetchone()
                database.executemany(
                    "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, ?)",
                    ((e.chunk_id, row[0], e.offset, e.stored_length, e.raw_length, e.flags) for e in entries),
                )

    def lookup(self, chunk_id: bytes) -> list[ChunkLocation]:
        """Return every known place of a chunk, the longest known first; empty when there is none."""
        with self._lock:
            rows = self._database.execute(_LOOKUP, (chunk_id,)).fetchall()
        return [
            ChunkLocation(SealedPack(pack, size), ChunkEntry(chunk_id, offset, stored, raw, flags), name)
            for pack, size, offset, stored, raw, flags, name in rows
        ]

    def packs(self) -> list[SealedPack]:
        """Return every pack that is known."""
        with self._lock:
            return [
                SealedPack(*row) for row in self._database.execute("SELECT id, size FROM pack ORDER BY id")
            ]

    def chunk_count(self) -> int:
        """Return how many places of chunks are known."""
        with self._lock:
            count: int = self._database.execute("SELECT COUNT(*) FROM chunk").fetchone()[0]
            return count
