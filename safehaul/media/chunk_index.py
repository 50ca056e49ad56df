"""Where each chunk is: a local SQLite copy of what `idx/` says.

It is a cache and a hint. It can be thrown away at any time, and each answer is checked: a pack that is gone
or condemned is no answer. By default it lives in a temporary file that SQLite removes by itself; with
`path` it is kept and shared by the processes of one machine, so that the next one need only read the `idx/` objects
that are new. Ids stand in it whole: nothing else of the chunk is compared before it counts as stored.

Entries come in the order of their packs, and their ids are as good as random: put into a large table one by one, each
would touch a page of its own. They are staged first and put in sorted, many objects at once; a few go into a small one.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from safehaul.errors import BusyError, SafehaulError
from safehaul.media import index_file
from safehaul.media.locations import PackListing
from safehaul.media.pack import ChunkEntry, SealedPack

_SCHEMA = """
CREATE TABLE IF NOT EXISTS loaded (n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS pack (n INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL, chunks INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS listed (pack INTEGER NOT NULL, list INTEGER NOT NULL, PRIMARY KEY (pack, list))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS listed_by_list ON listed (list, pack);
CREATE TABLE IF NOT EXISTS chunk (id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
    stored INTEGER NOT NULL, raw INTEGER NOT NULL, flags INTEGER NOT NULL,
    PRIMARY KEY (id, pack)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fresh (id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
    stored INTEGER NOT NULL, raw INTEGER NOT NULL, flags INTEGER NOT NULL,
    PRIMARY KEY (id, pack)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (chunks INTEGER NOT NULL);
"""
"""Numbers are never used again: entries of a pack that was forgotten stay, and must not become another pack's."""
_STAGE = """
CREATE TABLE staging.entry (id BLOB, offset INTEGER, stored INTEGER, raw INTEGER, flags INTEGER, pack INTEGER);
CREATE TABLE staging.pack (staged INTEGER PRIMARY KEY, n INTEGER NOT NULL);
"""
_MERGE = """
INSERT OR IGNORE INTO main.{table} (id, pack, offset, stored, raw, flags)
SELECT entry.id, pack.n, entry.offset, entry.stored, entry.raw, entry.flags
FROM staging.entry JOIN staging.pack ON pack.staged = entry.pack ORDER BY entry.id, pack.n
"""
_FOLD = """
BEGIN IMMEDIATE;
INSERT OR IGNORE INTO chunk SELECT * FROM fresh ORDER BY id, pack;
DELETE FROM fresh;
COMMIT;
"""
_LOOKUP = """
SELECT pack.id, pack.size, place.offset, place.stored, place.raw, place.flags,
    (SELECT name FROM listed JOIN loaded ON loaded.n = listed.list WHERE listed.pack = pack.n
     ORDER BY listed.list DESC LIMIT 1)
FROM (SELECT * FROM chunk WHERE id = :id UNION ALL SELECT * FROM fresh WHERE id = :id) AS place
    JOIN pack ON pack.n = place.pack ORDER BY place.pack
"""
_ALONE = """
n IN (SELECT pack FROM listed WHERE list = :list)
AND NOT EXISTS (SELECT 1 FROM listed WHERE listed.pack = pack.n AND listed.list <> :list)
"""
_FORGET = (
    f"INSERT INTO forgotten SELECT COALESCE(SUM(chunks), 0) FROM pack WHERE {_ALONE}",  # noqa: S608 - our own text
    f"DELETE FROM pack WHERE {_ALONE}",  # noqa: S608 - our own text
    "DELETE FROM listed WHERE list = :list",
    "DELETE FROM loaded WHERE n = :list",
)
CACHE_KIB = 16 << 10
"""SQLite's page cache: what an index costs in memory, however large it is."""
BULK_CHUNKS = 1 << 22
"""So many entries are sorted at once, or as many as there are already: each time, most pages are written again."""
FRESH_SHARE = 16
"""Fewer new entries than this part of all go into a table of their own, which is small enough to stay in memory; at a
start they are put to the others when they have become more."""
MOST_FORGOTTEN = 0.3
"""A kept file of which more than this is of no use is made again."""


class ChunkLocation(NamedTuple):
    """One place where a chunk is stored."""

    pack: SealedPack
    entry: ChunkEntry
    listed_in: str
    """Name of the `idx/` object that says so."""


class ChunkIndex:
    """Chunk id → places. Safe for many threads, and with `path` for many processes of one machine.

    Every method raises BusyError when another process holds the file for too long, when it cannot be written, and when
    it was found damaged: then it has been thrown away, and the next load makes it again.
    """

    def __init__(self, path: Path | None = None, repository_id: str = "") -> None:
        """Open the index; `path` keeps it in that file, made again when it is another repository's or of little use.

        Raises OSError when the file cannot be made there.
        """
        self._path = path
        self._repository_id = repository_id
        # Who adds lists may ask meanwhile which of them are there.
        self._writing = threading.RLock()
        self._reading = self._writing if path is None else threading.RLock()
        self._open()
        if path is not None and self._forgotten_share() > MOST_FORGOTTEN:
            self._start_anew(path)
        elif path is not None:
            self._fold_fresh(path)

    def _open(self) -> None:
        if self._path is None:
            # "" makes a private database in a temporary file; ":memory:" would grow without bound.
            self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.executescript(_SCHEMA)
            # Nobody else can open a private database.
            self._reader = self._database
        else:
            self._database = index_file.open_kept(self._path, self._repository_id, _SCHEMA)
            # A second way in: lookups go on while a load takes minutes.
            self._reader = index_file.open_kept(self._path, self._repository_id, _SCHEMA)
        for database in (self._database, self._reader):
            database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            # Whoever forgets to close the index must not keep the file open.
            weakref.finalize(self, database.close)

    def _fold_fresh(self, path: Path) -> None:
        with index_file.alone(path, "load"), self._write() as database:
            fresh: int = database.execute("SELECT COUNT(*) FROM fresh").fetchone()[0]
            if fresh * FRESH_SHARE > self._chunk_count(database):
                database.executescript(_FOLD)
                index_file.trim_log(database, path)

    def _start_anew(self, path: Path) -> None:
        """Make an empty file; other processes go on with the old one until they end."""
        self._database.close()
        self._reader.close()
        index_file.discard(path)
        self._open()

    def close(self) -> None:
        """Close the database; a temporary one vanishes."""
        with self._writing:
            self._database.close()
        with self._reading:
            self._reader.close()

    def loaded(self) -> set[str]:
        """Return the names of the `idx/` objects whose content is here."""
        with self._read() as reader:
            return {name for (name,) in reader.execute("SELECT name FROM loaded")}

    def has(self, name: str) -> bool:
        """Tell whether the content of an `idx/` object is here."""
        with self._read() as reader:
            return reader.execute("SELECT 1 FROM loaded WHERE name = ?", (name,)).fetchone() is not None

    def add(self, name: str, listings: Iterable[PackListing]) -> None:
        """Add the content of one `idx/` object; a second time changes nothing."""
        self.add_all([(name, listings)])

    def add_all(self, lists: Iterable[tuple[str, Iterable[PackListing]]]) -> None:
        """Add the content of many `idx/` objects; what was there already stays.

        One process of a machine does so at a time: the others wait, and find them there. What came before an error of
        `lists` itself is added, then that error is raised.
        """
        remaining = iter(lists)
        alone = nullcontext() if self._path is None else index_file.alone(self._path, "load")
        with alone:
            while self._add_some(remaining):
                pass

    def _add_some(self, lists: Iterator[tuple[str, Iterable[PackListing]]]) -> bool:
        """Add as many as are sorted at once. Returns whether there may be more."""
        with self._write() as database:
            count = self._chunk_count(database)
            database.execute("ATTACH DATABASE '' AS staging")
            try:
                database.execute("PRAGMA staging.journal_mode = OFF")
                database.executescript(_STAGE)
                staged = _stage(database, lists, max(BULK_CHUNKS, count))
                _merge(database, staged.lists, "chunk" if staged.entries * FRESH_SHARE >= count else "fresh")
                if self._path is not None:
                    index_file.trim_log(database, self._path)
            finally:
                # When the connection itself is broken, there is nothing to detach any more.
                with suppress(sqlite3.Error):
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    database.execute("DETACH DATABASE staging")
        if staged.failure is not None:
            raise staged.failure
        return staged.more

    def forget(self, names: Collection[str]) -> None:
        """Take `idx/` objects out that are gone from the store, with the packs that no other object lists."""
        if not names:
            return
        with self._write() as database:
            database.execute("BEGIN IMMEDIATE")
            for name in names:
                row = database.execute("SELECT n FROM loaded WHERE name = ?", (name,)).fetchone()
                if row is not None:
                    # Their entries stay: to find them would mean to look at all. Without their pack they say nothing.
                    for statement in _FORGET:
                        database.execute(statement, {"list": row[0]})
            database.execute("COMMIT")

    def lookup(self, chunk_id: bytes) -> list[ChunkLocation]:
        """Return every known place of a chunk, the longest known first; empty when there is none."""
        with self._read() as reader:
            rows = reader.execute(_LOOKUP, {"id": chunk_id}).fetchall()
        return [
            ChunkLocation(SealedPack(pack, size), ChunkEntry(chunk_id, offset, stored, raw, flags), name)
            for pack, size, offset, stored, raw, flags, name in rows
        ]

    def packs(self) -> list[SealedPack]:
        """Return every pack that is known."""
        with self._read() as reader:
            return [SealedPack(*row) for row in reader.execute("SELECT id, size FROM pack ORDER BY id")]

    def chunk_count(self) -> int:
        """Return how many places of chunks are known."""
        with self._read() as reader:
            return self._chunk_count(reader)

    @staticmethod
    def _chunk_count(database: sqlite3.Connection) -> int:
        count: int = database.execute("SELECT COALESCE(SUM(chunks), 0) FROM pack").fetchone()[0]
        return count

    def _forgotten_share(self) -> float:
        with self._read() as reader:
            gone: int = reader.execute("SELECT COALESCE(SUM(chunks), 0) FROM forgotten").fetchone()[0]
            return gone / max(1, gone + self._chunk_count(reader))

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._translated(), self._reading:
            yield self._reader

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._translated(), self._writing:
            try:
                yield self._database
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a closed index: a defect
        except sqlite3.OperationalError as error:
            raise BusyError(
                f"the chunk index {self._path or 'in a temporary file'} cannot be used now: {error}; is there room, "
                "and is its directory on a local disk?"
            ) from error
        except sqlite3.DatabaseError as error:
            if self._path is None:
                raise
            with self._writing, self._reading:
                self._start_anew(self._path)
            raise BusyError(
                f"the chunk index {self._path} was damaged ({error}) and has been thrown away: the next try makes it "
                "again"
            ) from error


class _StagedList(NamedTuple):
    """One `idx/` object whose entries are staged, but for those of packs that were known."""

    name: str
    packs: list[tuple[SealedPack, int, int | None]]
    """Pack, count of its chunks, and its number in the stage, None when it was known."""


class _Staged(NamedTuple):
    """What was staged at once."""

    lists: list[_StagedList]
    entries: int
    more: bool = False
    """Whether there may be more."""
    failure: SafehaulError | None = None
    """Why the next one could not be read."""


def _stage(
    database: sqlite3.Connection, lists: Iterator[tuple[str, Iterable[PackListing]]], limit: int
) -> _Staged:
    """Stage objects until there are `limit` entries, or one cannot be read."""
    staged: list[_StagedList] = []
    entries = numbers = 0
    while entries < limit:
        try:
            name, listings = next(lists, ("", ()))
        except SafehaulError as error:
            return _Staged(staged, entries, failure=error)
        if not name:
            return _Staged(staged, entries)
        item = _StagedList(name, [])
        database.execute("BEGIN")
        for pack, chunks in listings:
            number = None
            if not database.execute("SELECT 1 FROM main.pack WHERE id = ?", (pack.pack_id,)).fetchone():
                number = numbers
                numbers += 1
                database.executemany(
                    f"INSERT INTO staging.entry VALUES (?, ?, ?, ?, ?, {number})",  # noqa: S608 - a number of ours
                    chunks,
                )
                entries += len(chunks)
            item.packs.append((pack, len(chunks), number))
        database.execute("COMMIT")
        staged.append(item)
    return _Staged(staged, entries, more=True)


def _merge(database: sqlite3.Connection, staged: Sequence[_StagedList], table: str) -> None:
    """Make staged objects known, their entries in `chunk` or `fresh`, in one transaction."""
    database.execute("BEGIN IMMEDIATE")
    for name, packs in staged:
        if database.execute("SELECT 1 FROM loaded WHERE name = ?", (name,)).fetchone():
            continue
        known = [
            database.execute("SELECT n FROM main.pack WHERE id = ?", (pack.pack_id,)).fetchone()
            for pack, _, _ in packs
        ]
        if any(row is None and number is None for row, (_, _, number) in zip(known, packs, strict=True)):
            # Forgotten by another process since it was looked for: the next load reads this object whole.
            continue
        listing = database.execute("INSERT INTO loaded (name) VALUES (?)", (name,)).lastrowid
        for row, (pack, chunks, number) in zip(known, packs, strict=True):
            n = row[0] if row is not None else _add_pack(database, pack, chunks, number)
            database.execute("INSERT OR IGNORE INTO listed VALUES (?, ?)", (n, listing))
    database.execute(_MERGE.format(table=table))
    database.execute("COMMIT")


def _add_pack(database: sqlite3.Connection, pack: SealedPack, chunks: int, number: int | None) -> int | None:
    values = (*pack, chunks)
    n = database.execute("INSERT INTO main.pack (id, size, chunks) VALUES (?, ?, ?)", values).lastrowid
    database.execute("INSERT INTO staging.pack VALUES (?, ?)", (number, n))
    return n
