"""Goal: the CommServe upgrades the catalogue when it starts, waits for none that is away, and refuses a newer one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.peers import Peers
from lab.processes import free_port
from safehaul.catalog import schema
from safehaul.config.loader import load
from safehaul.errors import ConfigError
from tests.unit.test_cli import config
from workers.commserve import open_catalog

__all__ = ["config"]
BEFORE_MIGRATIONS = Path(__file__).parents[1] / "contract" / "catalog_schemas" / "before_migrations.sql"


@pytest.fixture
def database(config: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(config.parent / "catalog.db")
    opened.executescript(BEFORE_MIGRATIONS.read_text())
    yield opened
    opened.close()


def test_an_old_catalogue_is_upgraded_at_the_commserves_start_and_by_nobody_else(
    config: Path, database: sqlite3.Connection
) -> None:
    media_agent = Peers(load(config))
    with pytest.raises(ConfigError, match="start the CommServe"):
        media_agent.catalog()
    commserve = Peers(load(config), upgrade_catalog=True)
    open_catalog(commserve)
    assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.NEWEST,)]
    # What was refused before is opened now, without a new start.
    assert len(media_agent.catalog().list_backups()) == 2
    media_agent.close()
    commserve.close()


def test_a_catalogue_that_is_away_holds_no_job_up(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = f"postgresql://safehaul@127.0.0.1:{free_port()}/catalog"
    config.write_text(config.read_text().replace(f"sqlite:///{config.parent}/catalog.db", away))
    peers = Peers(load(config), upgrade_catalog=True)
    open_catalog(peers)
    assert "does its server run?" in caplog.text
    assert "jobs run without it" in caplog.text
    peers.close()


def test_a_newer_catalogue_stops_the_start(config: Path, database: sqlite3.Connection) -> None:
    database.execute("UPDATE schema_version SET version = 99")
    database.commit()
    peers = Peers(load(config), upgrade_catalog=True)
    with pytest.raises(ConfigError, match=r"schema 99, which is newer .* install here"):
        open_catalog(peers)
    peers.close()
