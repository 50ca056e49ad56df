"""The schema that a database has, and the migrations that bring it to ours.

A new database is made by the same migrations as an old one is changed by, so that there is one way only.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import Engine

from safehaul.errors import ConfigError

REVISIONS = ("0001", "0002")
"""Every schema there was, oldest first; the last one is what this safehaul works with."""
NEWEST = REVISIONS[-1]
_BEFORE_MIGRATIONS = 1
"""`schema_version` of a catalogue that was made before there were migrations: revision 0001 without Alembic's table."""
_LOCK_KEY = 0x5AFE_CA7A
"""Of PostgreSQL's advisory lock; any number that nobody else takes."""


def prepare(engine: Engine, shown_url: str, *, upgrade: bool) -> str:
    """Make an empty database's tables, or bring an older schema to the newest when `upgrade` says so.

    Returns the revision that was found, empty for a new database. Two processes at once are fine: the second one waits,
    and finds the work done. Raises ConfigError for a schema that is newer than ours, and for an older one that is not
    to be changed; errors of the database as SQLAlchemy raises them.
    """
    with engine.connect() as connection:
        found = revision_of(connection, shown_url)
    if found == NEWEST:
        return found
    if found and not upgrade:
        raise ConfigError(
            f"the catalogue {shown_url} has schema {found}, this safehaul needs {NEWEST}: start the CommServe of this "
            "version, which upgrades it, or run `safehaul catalog upgrade`"
        )
    with engine.execution_options(writing=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        found = revision_of(connection, shown_url)
        if found != NEWEST:
            migrate(connection, NEWEST)
    return found


def revision_of(connection: Connection, shown_url: str) -> str:
    """The schema of a database; empty when it holds none. Raises ConfigError for one that we do not know."""
    tables = inspect(connection)
    found = ""
    if tables.has_table("alembic_version"):
        found = connection.scalar(text("SELECT version_num FROM alembic_version")) or ""
    elif tables.has_table("schema_version"):
        version = connection.scalar(text("SELECT version FROM schema_version"))
        # Without a row its maker was interrupted, and its tables are those of schema 1 too.
        found = REVISIONS[0] if version in (None, _BEFORE_MIGRATIONS) else str(version)
    if found and found not in REVISIONS:
        raise ConfigError(
            f"the catalogue {shown_url} has schema {found}, which is newer than this safehaul's {NEWEST}: install here "
            "the version that the CommServe has; or, to go back, move the catalogue away and run "
            "`safehaul catalog rebuild`"
        )
    return found


def migrate(connection: Connection, revision: str) -> None:
    """Bring a database to a revision, in the connection's transaction."""
    # Most commands find the newest schema, and need not load Alembic.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    tables = inspect(connection)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    if tables.has_table("schema_version") and not tables.has_table("alembic_version"):
        command.stamp(config, REVISIONS[0])
    command.upgrade(config, revision)
