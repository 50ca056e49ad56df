"""What a collection knows of all packs and chunks: which chunk lies where, which are needed, which pack serves each.

It is made anew by each run, from the packs and lists that are there, in a temporary SQLite file that vanishes with it:
about 150 bytes for each place of a chunk, and memory of its page cache only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from safehaul.media.chunk_index import ChunkLocation
from safehaul.media.codec import HOLE, ID_LENGTH
from safehaul.media.locations import PackListing
from safehaul.media.pack import ChunkEntry, SealedPack

_SCHEMA = """
CREATE TABLE pack (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, modified REAL NOT NULL,
    state INTEGER NOT NULL, listed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE place (chunk BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
    raw INTEGER NOT NULL, flags INTEGER NOT NULL);
CREATE TABLE live (chunk BLOB PRIMARY KEY) WITHOUT ROWID;
"""
# Of several packs that hold a chunk the newest serves it: copies of a collection are newer than what they replace.
_SERVE = """
CREATE INDEX place_by_chunk ON place (chunk);
CREATE INDEX place_by_pack ON place (pack);
CREATE TABLE served AS
SELECT chunk, pack, modified, MAX(modified) AS newest FROM place JOIN pack ON pack.n = place.pack
WHERE pack.state = 0 AND EXISTS (SELECT 1 FROM live WHERE live.chunk = place.chunk) GROUP BY chunk;
CREATE UNIQUE INDEX served_by_chunk ON served (chunk);
CREATE TABLE serving AS
SELECT served.pack AS pack, SUM((SELECT MAX(stored) FROM place
    WHERE place.chunk = served.chunk AND place.pack = served.pack)) AS bytes FROM served GROUP BY served.pack;
CREATE UNIQUE INDEX serving_by_pack ON serving (pack);
"""
_PLACES = "SELECT chunk, offset, stored, raw, flags FROM place WHERE pack = ? ORDER BY offset"
_CACHE_KIB = 64 << 10


class PackState(IntEnum):
    """May a pack be relied on?"""

    GOOD = 0
    CONDEMNED = 1
    DAMAGED = 2
    UNLISTED = 3
    """No `idx/` object names it: nobody would find a chunk in it."""


class CountedPack(NamedTuple):
    """A pack that is there."""

    pack: SealedPack
    modified: float
    """By the store's clock."""
    serving_bytes: int
    """Stored bytes of needed chunks that no better pack serves."""


class Census:
    """Fill it by `add_pack`, `add_listing` and `add_live`, then call `serve`, then ask. For one thread."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.executescript(_SCHEMA)
        # One transaction for all that is added: each row in one of its own costs ten times as much.
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Let the temporary file vanish."""
        self._database.close()

    def add_pack(self, pack: SealedPack, modified: float, state: PackState) -> None:
        """Add a pack that is there."""
        self._database.execute(
            "INSERT OR IGNORE INTO pack (id, size, modified, state) VALUES (?, ?, ?, ?)",
            (*pack, modified, state),
        )

    def add_listing(self, listing: PackListing) -> bool:
        """Add what lies in a pack; False when the pack is not there with that size. Once for each pack."""
        found = self._database.execute(
            "SELECT n, listed FROM pack WHERE id = ? AND size = ?", tuple(listing.pack)
        ).fetchone()
        if found is None:
            return False
        number, listed = found
        if not listed:
            self._database.execute("UPDATE pack SET listed = 1 WHERE n = ?", (number,))
            self._database.executemany(
                "INSERT INTO place VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (e.chunk_id, number, e.offset, e.stored_length, e.raw_length, e.flags)
                    for e in listing.entries
                ),
            )
        return True

    def unlisted(self) -> list[SealedPack]:
        """Return the packs of which nothing is known yet."""
        rows = self._database.execute("SELECT id, size FROM pack WHERE listed = 0 ORDER BY n")
        return [SealedPack(*row) for row in rows]

    def set_state(self, pack_id: bytes, state: PackState) -> None:
        """Judge a pack anew; before `serve` only."""
        self._database.execute("UPDATE pack SET state = ? WHERE id = ?", (state, pack_id))

    def add_live(self, ids: bytes | Iterable[bytes]) -> None:
        """Add chunks that are needed: ids, or many of them in one piece. Holes are passed over."""
        if isinstance(ids, bytes):
            ids = {ids[at : at + ID_LENGTH] for at in range(0, len(ids), ID_LENGTH)}
        rows = sorted((identity,) for identity in ids if identity != HOLE)
        self._database.executemany("INSERT OR IGNORE INTO live VALUES (?)", rows)

    def serve(self) -> None:
        """Decide for each needed chunk which good pack serves it."""
        self._database.execute("COMMIT")
        self._database.executescript(_SERVE)

    def packs(self, state: PackState) -> Iterator[CountedPack]:
        """Yield the packs of a state, with what they serve."""
        rows = self._database.execute(
            "SELECT id, size, modified, COALESCE(serving.bytes, 0) FROM pack "
            "LEFT JOIN serving ON serving.pack = pack.n WHERE state = ? ORDER BY n",
            (state,),
        ).fetchall()
        for pack_id, size, modified, serving in rows:
            yield CountedPack(SealedPack(pack_id, size), modified, serving)

    def count(self) -> tuple[int, int]:
        """Return how many packs are there, and their bytes."""
        count, total = self._database.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM pack").fetchone()
        return count, total

    def unserved(self, pack_id: bytes) -> int:
        """Count the needed chunks of a pack that no good pack serves."""
        found = self._database.execute(
            "SELECT COUNT(DISTINCT chunk) FROM place JOIN pack ON pack.n = place.pack WHERE pack.id = ? "
            "AND EXISTS (SELECT 1 FROM live WHERE live.chunk = place.chunk) "
            "AND NOT EXISTS (SELECT 1 FROM served WHERE served.chunk = place.chunk)",
            (pack_id,),
        ).fetchone()
        return int(found[0])

    def lost(self) -> int:
        """Count the needed chunks that are in no pack at all."""
        found = self._database.execute(
            "SELECT COUNT(*) FROM live WHERE NOT EXISTS (SELECT 1 FROM place WHERE place.chunk = live.chunk)"
        ).fetchone()
        return int(found[0])

    def served_by(self, pack_id: bytes) -> Iterator[ChunkLocation]:
        """Yield the needed chunks that a good pack serves, in the order of their places in it."""
        for location in self._places(pack_id):
            serving = self._database.execute(
                "SELECT id FROM served JOIN pack ON pack.n = served.pack WHERE served.chunk = ?",
                (location.entry.chunk_id,),
            ).fetchone()
            if serving is not None and serving[0] == pack_id:
                yield location

    def others_of(self, pack_id: bytes) -> Iterator[ChunkLocation]:
        """Yield, for each needed chunk of a pack that is not good, the place in the good pack that serves it."""
        for location in self._places(pack_id):
            row = self._database.execute(
                "SELECT pack.id, pack.size, place.offset, place.stored, place.raw, place.flags FROM served "
                "JOIN place ON place.chunk = served.chunk AND place.pack = served.pack "
                "JOIN pack ON pack.n = served.pack WHERE served.chunk = ?",
                (location.entry.chunk_id,),
            ).fetchone()
            if row is not None:
                entry = ChunkEntry(location.entry.chunk_id, *row[2:])
                yield ChunkLocation(SealedPack(row[0], row[1]), entry, "")

    def _places(self, pack_id: bytes) -> list[ChunkLocation]:
        number, size = self._database.execute("SELECT n, size FROM pack WHERE id = ?", (pack_id,)).fetchone()
        rows = self._database.execute(_PLACES, (number,)).fetchall()
        return [ChunkLocation(SealedPack(pack_id, size), ChunkEntry(*row), "") for row in rows]
