"""Goal: every catalogue that there ever was becomes the newest one without losing a row, on every database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from safehaul.catalog import migrations, schema
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.tables import Base
from safehaul.errors import ConfigError
from tests.contract import postgresql
from tests.contract.catalog_rows import backup
from tests.contract.postgresql import PostgreSql

BEFORE_MIGRATIONS = Path(__file__).parent / "catalog_schemas" / "before_migrations.sql"
SCRIPTS = Path(migrations.__file__).parent


def _statements(url: str) -> list[str]:
    lines = [line for line in BEFORE_MIGRATIONS.read_text().splitlines() if not line.startswith("--")]
    script = "\n".join(lines)
    if url.startswith("postgresql"):
        script = script.replace("version BIGINT", "version BIGSERIAL")
    return [statement for statement in script.split(";\n") if statement.strip()]


@pytest.fixture
def old_url(catalog_url: str) -> str:
    """A catalogue as the last safehaul without migrations left it."""
    engine = create_engine(catalog_url)
    with engine.begin() as connection:
        for statement in _statements(catalog_url):
            connection.exec_driver_sql(statement)
    engine.dispose()
    return catalog_url


def _shape(url: str) -> dict[str, Any]:
    """Everything that the database tells of its tables, but for Alembic's own."""
    engine = create_engine(url)
    shape: dict[str, Any] = {}
    with engine.connect() as connection:
        found = inspect(connection)
        for table in found.get_table_names():
            if table == "alembic_version":
                continue
            shape[table] = {
                "columns": [{**column, "type": repr(column["type"])} for column in found.get_columns(table)],
                "key": found.get_pk_constraint(table),
                "foreign keys": found.get_foreign_keys(table),
                "indexes": sorted(found.get_indexes(table), key=lambda index: str(index["name"])),
            }
        if connection.dialect.name == "postgresql":
            query = (
                "SELECT table_name, column_name, collation_name FROM information_schema.columns "
                "WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2"
            )
            shape["collations"] = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return shape


def _created(like: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A second database of the same kind, made by `create_all` from the newest models."""
    if like.startswith("sqlite"):
        url = f"sqlite:///{tmp_path / 'created.db'}"
    else:
        server: PostgreSql = request.getfixturevalue("postgresql_server")
        url = server.database()
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    return url


def test_the_schema_before_migrations_becomes_the_newest_and_keeps_its_rows(old_url: str) -> None:
    catalog = Catalog(old_url, upgrade=True)
    assert catalog.found_schema == "0001"
    rows = catalog.list_backups(search="web_SS")
    assert [(row.backup_id, row.status, row.warnings, len(row.disks)) for row in rows] == [
        ("20260102T000000Z-x", "Partial", [], 0),
        ("20260101T000000Z-x", "Completed", ["w"], 1),
    ]
    assert [row.job_id for row in catalog.list_jobs(node="node-1")] == ["job-1"]
    assert [vm.vm_name for vm in catalog.job_vms("job-1")] == ["WEB_ß"]
    catalog.record_backup(backup(5))
    assert len(list(catalog.export())) == 3
    catalog.close()


def test_every_way_to_the_newest_schema_ends_at_the_models(
    old_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    created = _created(old_url, tmp_path, request)
    Catalog(old_url, upgrade=True).close()
    assert _shape(old_url) == _shape(created)
    engine = create_engine(created)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            table.drop(connection)
    engine.dispose()
    Catalog(created).close()
    assert _shape(created) == _shape(old_url)
    engine = create_engine(created)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_each_migration_can_be_the_last_one(catalog_url: str) -> None:
    """A catalogue of each schema on the way becomes the newest."""
    for revision in schema.REVISIONS:
        engine = create_engine(catalog_url)
        with engine.begin() as connection:
            schema.migrate(connection, revision)
            assert schema.revision_of(connection, "shown") == revision
        engine.dispose()
    catalog = Catalog(catalog_url)
    assert catalog.found_schema == schema.NEWEST
    catalog.close()


def test_the_known_revisions_are_those_of_the_scripts_which_a_wheel_holds() -> None:
    script = ScriptDirectory(str(SCRIPTS))
    assert [item.revision for item in script.walk_revisions()] == list(reversed(schema.REVISIONS))
    # What pyproject.toml finds are packages.
    assert all((folder / "__init__.py").exists() for folder in (SCRIPTS, SCRIPTS / "versions"))


def test_an_older_schema_is_left_alone_unless_it_is_to_be_upgraded(old_url: str) -> None:
    before = _shape(old_url)
    with pytest.raises(
        ConfigError, match=r"0001, .* needs 0002: start the CommServe .*`safehaul catalog upgrade`"
    ):
        Catalog(old_url)
    assert _shape(old_url) == before


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_newer_schema_is_refused_with_the_next_step(catalog_url: str, upgrade: bool) -> None:
    Catalog(catalog_url).close()
    engine = create_engine(catalog_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(
        ConfigError, match=r"schema 0999, which is newer .*install .*`safehaul catalog rebuild`"
    ):
        Catalog(catalog_url, upgrade=upgrade)


def test_a_safehaul_from_before_the_migrations_refuses_what_they_made(catalog_url: str) -> None:
    """It takes any number but 1 in this table for another schema."""
    Catalog(catalog_url).close()
    engine = create_engine(catalog_url)
    with engine.connect() as connection:
        assert list(connection.scalars(text("SELECT version FROM schema_version"))) == [2]
    engine.dispose()


def test_an_upgrade_that_fails_changes_nothing(old_url: str) -> None:
    engine = create_engine(old_url)
    with engine.begin() as connection:
        # The last index but one that the migration makes.
        connection.execute(text("CREATE INDEX jobs_by_status ON jobs (reason)"))
    before = _shape(old_url)
    with pytest.raises(ConfigError, match="already exists"):
        Catalog(old_url, upgrade=True)
    assert _shape(old_url) == before
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX jobs_by_status"))
    engine.dispose()
    catalog = Catalog(old_url, upgrade=True)
    assert len(catalog.list_backups()) == 2
    catalog.close()


def test_processes_that_upgrade_at_once_all_succeed(old_url: str) -> None:
    program = (
        "import sys\n"
        "from safehaul.catalog.catalog import Catalog\n"
        "catalog = Catalog(sys.argv[1], upgrade=True)\n"
        "assert len(catalog.list_backups(search='web')) == 2\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program, old_url]) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]


@postgresql.NEEDS
def test_what_a_server_refuses_is_told_without_the_password(postgresql_server: PostgreSql) -> None:
    refused = {
        postgresql_server.url("postgres", password="wr0ng"): "authentication failed",
        postgresql_server.url("postgres", user="nobody"): "authentication failed",
        postgresql_server.url("missing"): 'database "missing" does not exist',
    }
    for url, reason in refused.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            Catalog(url)
        shown = repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__)
        assert "wr0ng" not in shown
        assert postgresql.PASSWORD not in shown
        assert f"***@127.0.0.1:{postgresql_server.port}" in shown
