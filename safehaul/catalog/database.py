"""The catalogue's connections: how each kind of database is opened, read and written, and what its errors mean."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from safehaul.catalog import schema
from safehaul.errors import BusyError, ConfigError, ConnectionLostError, SafehaulError

BUSY_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10
OPEN_TRIES = 30
SQLITE_CACHE_KIB = 16 << 10
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied",
)
"""What a PostgreSQL server says when another try is refused too. There is no code for it before the login."""
_REBUILD = "move it away and run `safehaul catalog rebuild`"


class Database:
    """An open database with the newest schema; threads may share it."""

    def __init__(self, url: str, *, upgrade: bool = False) -> None:
        """Open, and make the tables of an empty database; with `upgrade` an older schema is brought to the newest.

        Raises ConfigError when the database cannot be opened, lacks its driver, or has another schema;
        ConnectionLostError when its server does not answer, BusyError when it is locked.
        """
        parsed = make_url(url)
        self.shown_url = parsed.render_as_string(hide_password=True)
        try:
            self.engine = create_engine(url, **_options(parsed.get_backend_name()))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the catalogue {self.shown_url} needs the Python package {error.name}, which is not installed beside "
                "safehaul; see [catalog] url"
            ) from None
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        try:
            self.found_schema = self._prepare(upgrade=upgrade)
        except BaseException:
            self.engine.dispose()
            raise
        # A transaction that writes says so at its start: one that read first could not wait for another writer.
        self._writer = self.engine.execution_options(writing=True)

    def _prepare(self, *, upgrade: bool) -> str:
        for attempt in range(OPEN_TRIES):
            try:
                return schema.prepare(self.engine, self.shown_url, upgrade=upgrade)
            except DBAPIError as error:
                # Several processes turn a new SQLite file to WAL: only one of them may, and the others do not wait.
                if attempt + 1 < OPEN_TRIES and "locked" in str(error.orig):
                    time.sleep(0.05)
                    continue
                raise self._not_opened(error) from None
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session to read in. Raises as `writing` does."""
        with self._translated("read"), Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one transaction, committed at its end.

        Raises BusyError for a database that is locked or full now, ConnectionLostError when its server is gone,
        ConfigError for one that refuses the statement.
        """
        with self._translated("written"), Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if self._unanswered(error):
                raise ConnectionLostError(
                    f"the catalogue {self.shown_url} cannot be {done}: its server does not answer: {_text(error)}"
                ) from None
            if isinstance(error, OperationalError) and not self._refused(error):
                raise BusyError(
                    f"the catalogue {self.shown_url} cannot be {done} now: {_text(error)}"
                ) from None
            raise ConfigError(
                f"the catalogue {self.shown_url} cannot be {done}: {_text(error)}; {_REBUILD}"
            ) from None

    def _not_opened(self, error: DBAPIError) -> SafehaulError:
        what = f"the catalogue {self.shown_url} cannot be opened: {_text(error)}"
        if self.engine.dialect.name == "sqlite":
            if "locked" in str(error.orig):
                return BusyError(f"{what}; another process holds it for long")
            return ConfigError(f"{what}; see [catalog] url")
        if self._unanswered(error):
            return ConnectionLostError(f"{what}; does its server run? See [catalog] url")
        if isinstance(error, OperationalError) and not self._refused(error):
            return BusyError(f"{what}; another process upgrades it, or holds it for long")
        return ConfigError(
            f"{what}; see [catalog] url and password, and docs/catalogue.md for what the server needs"
        )

    def _unanswered(self, error: DBAPIError) -> bool:
        """What PostgreSQL itself says has a code; what its client says of a server that it cannot reach has none."""
        if self.engine.dialect.name != "postgresql" or self._refused(error):
            return False
        without_code = getattr(error.orig, "sqlstate", None) is None
        return error.connection_invalidated or (
            without_code and isinstance(error, OperationalError | InterfaceError)
        )

    def _refused(self, error: DBAPIError) -> bool:
        return self.engine.dialect.name == "postgresql" and any(
            refusal in str(error.orig) for refusal in _REFUSALS
        )


def _options(backend: str) -> dict[str, Any]:
    if backend == "sqlite":
        return {}
    return {
        # A server that was started again is noticed before a statement, not by it.
        "pool_pre_ping": True,
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "safehaul",
            "options": f"-c lock_timeout={int(BUSY_TIMEOUT_S * 1000)}",
        },
    }


def _text(error: DBAPIError) -> str:
    """The database's own words in one line; they hold no password."""
    return " ".join(str(error.orig).split())


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver begins no transaction by itself: `_begin_sqlite` says when, and of which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA cache_size=-{SQLITE_CACHE_KIB}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
