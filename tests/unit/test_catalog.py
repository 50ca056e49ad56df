"""The catalogue in a file: what may be wrong with that. tests/contract/test_catalog.py has what every database does."""

from __future__ import annotations

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safehaul.catalog import database
from safehaul.catalog.catalog import Catalog
from safehaul.errors import BusyError, ConfigError
from tests.contract.catalog_rows import backup, job


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'catalog.db'}"


def test_a_place_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be opened: .*see \[catalog\] url"):
        Catalog(f"sqlite:///{tmp_path}/no/such/directory/catalog.db")


def test_a_file_that_is_no_database_is_a_configuration_error(tmp_path: Path, url: str) -> None:
    (tmp_path / "catalog.db").write_bytes(b"something else" * 1000)
    with pytest.raises(ConfigError, match="not a database"):
        Catalog(url)


def test_a_database_without_its_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs the Python package psycopg, .* see \[catalog\] url"):
        Catalog("postgresql://safehaul@db.example.net/catalog")


def test_threads_that_open_and_write_together_lose_nothing(url: str) -> None:
    def work(number: int) -> None:
        mine = Catalog(url)
        mine.record_backup(backup(number))
        mine.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    opened = Catalog(url)
    assert len(opened.list_backups()) == 6
    opened.close()


def test_a_catalogue_that_stays_locked_is_worth_another_try(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    catalog = Catalog(url)
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match="cannot be written now"):
        catalog.record_backup(backup(1))
    with pytest.raises(BusyError, match="cannot be written now"):
        catalog.record_job(job(1), [])
    assert catalog.list_backups() == []
    holder.execute("ROLLBACK")
    holder.close()
    catalog.record_backup(backup(1))
    assert catalog.list_backups() == [backup(1)]
    catalog.close()
