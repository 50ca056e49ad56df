"""Goal: a database server that is away, or comes back, is told apart from one that refuses."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from lab.processes import free_port
from safehaul.catalog import database, schema
from safehaul.catalog.catalog import Catalog
from safehaul.errors import BusyError, ConnectionLostError
from tests.contract import postgresql
from tests.contract.catalog_rows import backup
from tests.contract.postgresql import PASSWORD, PostgreSql

pytestmark = postgresql.NEEDS


@pytest.fixture
def own_server() -> Iterator[PostgreSql]:
    """One that the test may stop."""
    with postgresql.running() as started:
        yield started


def test_a_server_that_is_away_is_worth_another_try(own_server: PostgreSql) -> None:
    with pytest.raises(
        ConnectionLostError, match=r"cannot be opened: .*refused.* does its server run\?"
    ) as caught:
        Catalog(f"postgresql://user:hidden@127.0.0.1:{free_port()}/catalog")
    assert "hidden" not in str(caught.value)
    catalog = Catalog(own_server.database())
    catalog.record_backup(backup(1))
    own_server.stop()
    with pytest.raises(ConnectionLostError, match="server does not answer") as caught:
        catalog.record_backup(backup(2))
    assert PASSWORD not in str(caught.value)
    with pytest.raises(ConnectionLostError, match="server does not answer"):
        catalog.list_backups()
    own_server.start()
    catalog.record_backup(backup(2))
    assert catalog.list_backups() == [backup(2), backup(1)]
    catalog.close()


def test_a_table_that_stays_locked_is_worth_another_try(
    postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    url = postgresql_server.database()
    catalog = Catalog(url)
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE backups IN EXCLUSIVE MODE")
        with pytest.raises(BusyError, match=r"cannot be written now: .*lock timeout"):
            catalog.record_backup(backup(1))
        assert catalog.list_backups() == []
        holder.rollback()
    catalog.record_backup(backup(1))
    assert catalog.list_backups() == [backup(1)]
    catalog.close()


def test_an_upgrade_that_another_process_is_at_is_worth_another_try(
    postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    url = postgresql_server.database()
    with psycopg.connect(url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (schema._LOCK_KEY,))
        with pytest.raises(
            BusyError, match=r"cannot be opened: .*lock timeout.* another process upgrades it"
        ):
            Catalog(url)
        holder.rollback()
    Catalog(url).close()
