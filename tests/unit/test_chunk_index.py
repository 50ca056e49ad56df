"""Goal: the chunk index answers what the lists say, and no more, whoever shares, damages or outlives its file."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from safehaul.errors import BusyError, ConnectionLostError
from safehaul.media import chunk_index
from safehaul.media.chunk_index import ChunkIndex
from safehaul.media.locations import PackListing
from safehaul.media.pack import ChunkEntry, SealedPack

REPOSITORY = "r1"


def chunk_id(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def pack(number: int, chunks: range) -> PackListing:
    entries = [ChunkEntry(chunk_id(chunk), 64 + 100 * at, 52, 4096, 1) for at, chunk in enumerate(chunks)]
    return PackListing(SealedPack(bytes([number]) * 32, 10_000 + number), entries)


@pytest.fixture(params=["temporary", "kept"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChunkIndex]:
    made = ChunkIndex(tmp_path / "cache" / "x.index" if request.param == "kept" else None, REPOSITORY)
    yield made
    made.close()


def places(index: ChunkIndex, number: int) -> list[tuple[int, int, str]]:
    """Pack, offset and list of each place of a chunk."""
    return [
        (found.pack.pack_id[0], found.entry.offset, found.listed_in)
        for found in index.lookup(chunk_id(number))
        if found.pack.size_bytes == 10_000 + found.pack.pack_id[0]
        and found.entry.chunk_id == chunk_id(number)
    ]


def test_a_lookup_gives_every_place(index: ChunkIndex) -> None:
    index.add_all(
        [("idx/a", [pack(1, range(10)), pack(2, range(5, 15))]), ("idx/b", [pack(3, range(14, 16))])]
    )
    assert places(index, 3) == [(1, 364, "idx/a")]
    assert places(index, 5) == [(1, 564, "idx/a"), (2, 64, "idx/a")]
    assert places(index, 14) == [(2, 964, "idx/a"), (3, 64, "idx/b")]
    assert places(index, 16) == []
    assert index.chunk_count() == 22
    assert [found.pack_id[0] for found in index.packs()] == [1, 2, 3]
    index.add("idx/a", [pack(9, range(100, 200))])
    assert places(index, 100) == []
    assert index.loaded() == {"idx/a", "idx/b"}
    assert index.has("idx/a")
    assert not index.has("idx/c")


def test_what_is_merged_into_another_list_outlives_the_old_ones(index: ChunkIndex) -> None:
    index.add_all([("idx/a", [pack(1, range(5))]), ("idx/b", [pack(2, range(5, 10))])])
    index.add("idx/merged", [pack(1, range(5)), pack(2, range(5, 10))])
    index.forget(["idx/a", "idx/b", "idx/never-there"])
    assert places(index, 3) == [(1, 364, "idx/merged")]
    assert places(index, 7) == [(2, 264, "idx/merged")]
    index.forget(["idx/merged"])
    assert index.packs() == []
    assert all(places(index, number) == [] for number in range(10))
    index.add("idx/c", [pack(2, range(5, 10))])
    assert places(index, 7) == [(2, 264, "idx/c")]
    assert places(index, 3) == []


def test_a_pack_that_two_lists_name_goes_with_the_last_of_them(index: ChunkIndex) -> None:
    """Lists are loaded in the order of their names: the merged one may come before those that it takes the place of."""
    index.add_all([("idx/a-merged", [pack(1, range(5))]), ("idx/b", [pack(1, range(5))])])
    index.forget(["idx/b"])
    assert places(index, 3) == [(1, 364, "idx/a-merged")]


def test_what_came_before_a_list_that_cannot_be_read_is_kept(index: ChunkIndex) -> None:
    def lists() -> Iterator[tuple[str, list[PackListing]]]:
        yield "idx/a", [pack(1, range(5))]
        raise ConnectionLostError("the store does not answer")

    with pytest.raises(ConnectionLostError):
        index.add_all(lists())
    assert index.loaded() == {"idx/a"}
    index.add("idx/b", [pack(2, range(5, 10))])
    assert places(index, 7) == [(2, 264, "idx/b")]


def test_many_lists_are_sorted_piece_by_piece(index: ChunkIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_index, "BULK_CHUNKS", 7)
    index.add_all(
        (f"idx/{number}", [pack(number, range(number * 5, number * 5 + 5))]) for number in range(30)
    )
    assert [places(index, number) for number in range(150)] == [
        [(number // 5, 64 + number % 5 * 100, f"idx/{number // 5}")] for number in range(150)
    ]


class Lists(RuleBasedStateMachine):
    """Lists come, are merged and go; two processes keep one file. The model is a dictionary."""

    @initialize(kept=st.booleans())
    def open(self, kept: bool) -> None:
        # So that even of a handful of entries some are few.
        self.patch = mock.patch.object(chunk_index, "FRESH_SHARE", 1)
        self.patch.start()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "x.index" if kept else None
        self.indexes = [ChunkIndex(path, REPOSITORY) for _ in range(2 if kept else 1)]
        self.path = path
        self.lists: dict[str, set[int]] = {}
        self.names = 0

    @rule(packs=st.sets(st.integers(0, 7), min_size=1, max_size=4), who=st.integers(0, 1))
    def add(self, packs: set[int], who: int) -> None:
        self.names += 1
        name = f"idx/{self.names}"
        self.indexes[who % len(self.indexes)].add(
            name, [pack(number, self.chunks(number)) for number in sorted(packs)]
        )
        self.lists[name] = packs

    @rule(data=st.data(), who=st.integers(0, 1))
    def forget(self, data: st.DataObject, who: int) -> None:
        if self.lists:
            names = data.draw(st.sets(st.sampled_from(sorted(self.lists)), max_size=3))
            self.indexes[who % len(self.indexes)].forget(names)
            for name in names:
                del self.lists[name]

    @rule(who=st.integers(0, 1))
    def open_again(self, who: int) -> None:
        if self.path is not None:
            self.indexes[who].close()
            # A file that is made again parts from the other process's.
            with mock.patch.object(chunk_index, "MOST_FORGOTTEN", 1.0):
                self.indexes[who] = ChunkIndex(self.path, REPOSITORY)

    @staticmethod
    def chunks(number: int) -> range:
        return range(number * 3, number * 3 + 5)

    @invariant()
    def agrees(self) -> None:
        for index in getattr(self, "indexes", []):
            known = set().union(*self.lists.values())
            assert {found.pack_id[0] for found in index.packs()} == known
            assert index.loaded() == set(self.lists)
            for chunk in range(27):
                found = places(index, chunk)
                assert {number for number, _, _ in found} == {n for n in known if chunk in self.chunks(n)}
                assert all(number in self.lists[name] for number, _, name in found)

    def teardown(self) -> None:
        for index in getattr(self, "indexes", []):
            index.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()
            self.patch.stop()


TestLists = Lists.TestCase
TestLists.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.index"


def _filled(path: Path, repository: str = REPOSITORY) -> None:
    index = ChunkIndex(path, repository)
    index.add("idx/a", [pack(1, range(5))])
    index.close()


def test_a_kept_file_serves_the_next_process(path: Path) -> None:
    _filled(path)
    again = ChunkIndex(path, REPOSITORY)
    assert places(again, 3) == [(1, 364, "idx/a")]
    again.close()


@pytest.mark.parametrize("how", ["other repository", "no database", "older version", "empty"])
def test_a_file_that_is_not_ours_is_thrown_away(path: Path, how: str) -> None:
    _filled(path, "r2" if how == "other repository" else REPOSITORY)
    if how == "no database":
        path.write_bytes(b"\x00garbage" * 4096)
    if how == "older version":
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 1")
        database.close()
    if how == "empty":
        path.write_bytes(b"")
    again = ChunkIndex(path, REPOSITORY)
    assert again.loaded() == set()
    again.add("idx/b", [pack(2, range(3))])
    assert places(again, 1) == [(2, 164, "idx/b")]
    again.close()


def test_damage_that_is_met_throws_the_file_away_and_the_next_try_succeeds(path: Path) -> None:
    index = ChunkIndex(path, REPOSITORY)
    lists = [
        (f"idx/{number}", [pack(number, range(number * 500, number * 500 + 500))]) for number in range(9)
    ]
    index.add_all(lists)
    index._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index._reader.execute("PRAGMA cache_size = 0")
    with path.open("r+b") as file:
        file.seek(12 * 4096)
        file.write(b"\xff" * 4096 * (path.stat().st_size // 4096 - 12))

    def look() -> None:
        for number in range(4500):
            index.lookup(chunk_id(number))

    with pytest.raises(BusyError, match=r"was damaged .* the next try makes it again"):
        look()
    assert index.loaded() == set()
    index.add_all(lists)
    assert places(index, 4000) == [(8, 64, "idx/8")]
    index.close()


def test_a_file_of_mostly_forgotten_entries_is_made_again(path: Path) -> None:
    index = ChunkIndex(path, REPOSITORY)
    index.add_all([("idx/a", [pack(1, range(60))]), ("idx/b", [pack(2, range(60, 100))])])
    index.forget(["idx/b"])
    index.close()
    assert ChunkIndex(path, REPOSITORY).loaded() == set()


def test_a_few_new_entries_are_put_to_the_others_at_a_start_when_they_have_become_more(path: Path) -> None:
    opened = [ChunkIndex(path, REPOSITORY)]

    def count(table: str) -> int:
        found: int = opened[-1]._reader.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        return found

    index = opened[-1]
    index.add("idx/a", [pack(1, range(200))])
    index.add("idx/b", [pack(2, range(195, 205))])
    assert (count("chunk"), count("fresh")) == (200, 10)
    index.close()
    opened.append(ChunkIndex(path, REPOSITORY))
    index = opened[-1]
    assert (count("chunk"), count("fresh")) == (200, 10)
    index.add("idx/c", [pack(3, range(205, 210))])
    assert (count("chunk"), count("fresh")) == (200, 15)
    assert places(index, 199) == [(1, 19964, "idx/a"), (2, 464, "idx/b")]
    assert places(index, 207) == [(3, 264, "idx/c")]
    index.close()
    opened.append(ChunkIndex(path, REPOSITORY))
    index = opened[-1]
    assert (count("chunk"), count("fresh")) == (215, 0)
    assert places(index, 199) == [(1, 19964, "idx/a"), (2, 464, "idx/b")]
    assert index.chunk_count() == 215
    index.close()


def test_a_large_load_leaves_no_large_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ChunkIndex(path, REPOSITORY)
    index.add("idx/a", [pack(1, range(500))])
    log = path.with_name("x.index-wal")
    assert log.stat().st_size > 0
    monkeypatch.setattr("safehaul.media.index_file._WAL_LIMIT_BYTES", 0)
    index.add("idx/b", [pack(2, range(500, 510))])
    assert log.stat().st_size == 0
    assert places(index, 505) == [(2, 564, "idx/b")]
    index.close()


def test_a_place_where_no_file_can_be_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        ChunkIndex(tmp_path / "file" / "x.index", REPOSITORY)


def test_processes_that_load_and_are_killed_leave_the_file_whole(path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from safehaul.media.chunk_index import ChunkIndex\n"
        "from tests.unit.test_chunk_index import REPOSITORY, pack\n"
        "index = ChunkIndex(Path(sys.argv[1]), REPOSITORY)\n"
        "print('open', flush=True)\n"
        "for number in range(256):\n"
        "    index.add(f'idx/{number}', [pack(number, range(number * 9, number * 9 + 9))])\n"
        "index.close()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    workers[0].kill()
    assert [worker.wait(60) for worker in workers[1:]] == [0, 0]
    workers[0].wait(60)
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.close()
    index = ChunkIndex(path, REPOSITORY)
    assert index.chunk_count() == 256 * 9
    assert all(len(places(index, number)) == 1 for number in range(256 * 9))
    index.close()
