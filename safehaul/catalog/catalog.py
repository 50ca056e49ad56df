"""The catalogue: what the repositories hold and what jobs did, in a database made for lists and searches.

It is a convenience and never the truth: every row can be made again from the repository, and gives the same row.
SQLite by default, PostgreSQL by the same code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine, delete, event, select
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from safehaul.catalog.rows import BackupRow, DiskRow, JobRow, JobVmRow
from safehaul.catalog.tables import (
    SCHEMA_VERSION,
    BackupRecord,
    Base,
    DiskRecord,
    JobRecord,
    JobVmRecord,
    SchemaVersion,
)
from safehaul.errors import BusyError, ConfigError

BUSY_TIMEOUT_S = 30.0
OPEN_TRIES = 30


class Catalog:
    """An open catalogue; threads may share it."""

    def __init__(self, url: str) -> None:
        """Open, and make the tables of an empty database.

        Raises ConfigError when the database cannot be opened, lacks its driver, or has another schema.
        """
        self._shown_url = make_url(url).render_as_string(hide_password=True)
        try:
            self._engine = create_engine(url)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the catalogue {self._shown_url} needs the Python package {error.name}, which is not installed beside "
                "safehaul; see [catalog] url"
            ) from None
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
        found = self._make_tables()
        if found and list(found) != [SCHEMA_VERSION]:
            raise ConfigError(
                f"the catalogue {self._shown_url} has schema {found[0]}, this safehaul needs {SCHEMA_VERSION}: "
                "move it away and run `safehaul catalog rebuild`"
            )

    def _make_tables(self) -> list[int]:
        """Make what is missing and return the schema versions that were there before."""
        for attempt in range(OPEN_TRIES):
            try:
                Base.metadata.create_all(self._engine)
                with Session(self._engine) as session, session.begin():
                    found = list(session.scalars(select(SchemaVersion.version)))
                    if not found:
                        session.add(SchemaVersion(version=SCHEMA_VERSION))
            except DBAPIError as error:
                # Workers that start together all find an empty database: the later ones look again.
                if attempt + 1 < OPEN_TRIES and _is_race(str(error.orig)):
                    time.sleep(0.05)
                    continue
                raise ConfigError(
                    f"the catalogue {self._shown_url} cannot be opened: {error.orig}; see [catalog] url"
                ) from None
            return found
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def record_backup(self, backup: BackupRow) -> None:
        """Write a backup; a second time replaces the same rows."""
        self.record_backups([backup])

    def record_backups(self, backups: Iterable[BackupRow]) -> int:
        """Write many backups in one transaction; returns how many."""
        count = 0
        with self._writing() as session:
            for backup in backups:
                session.merge(_backup_record(backup))
                count += 1
        return count

    def remove_backups(self, media_agent: str, vc_guid: str, backup_ids: Iterable[str]) -> int:
        """Take the rows of backups that a MediaAgent no longer lists; returns how many there were. None is fine."""
        count = 0
        with self._writing() as session:
            for backup_id in backup_ids:
                found = session.get(
                    BackupRecord,
                    {"media_agent": media_agent, "vc_guid": vc_guid, "backup_id": backup_id},
                )
                if found is not None:
                    session.delete(found)
                    count += 1
        return count

    def record_job(self, job: JobRow, vms: Sequence[JobVmRow]) -> None:
        """Write a job and its VMs; a second time replaces the same rows."""
        with self._writing() as session:
            session.execute(delete(JobVmRecord).where(JobVmRecord.job_id == job.job_id))
            session.merge(JobRecord(**job.model_dump()))
            session.add_all(JobVmRecord(**vm.model_dump()) for vm in vms)

    def list_backups(
        self,
        *,
        vm: str | None = None,
        vm_group: str | None = None,
        job_id: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        limit: int = 1000,
    ) -> list[BackupRow]:
        """Backups, newest first. `vm` is a VM's name or VC.GUID."""
        query = select(BackupRecord).order_by(BackupRecord.committed.desc(), BackupRecord.backup_id.desc())
        if vm is not None:
            query = query.where((BackupRecord.vm_name == vm) | (BackupRecord.vc_guid == vm))
        if vm_group is not None:
            query = query.where(BackupRecord.vm_group == vm_group)
        if job_id is not None:
            query = query.where(BackupRecord.job_id == job_id)
        if status is not None:
            query = query.where(BackupRecord.status == status)
        if since is not None:
            # As the repository writes times: basic format in UTC, which sorts as text.
            query = query.where(BackupRecord.committed >= since.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"))
        with Session(self._engine) as session:
            return [_backup_row(item) for item in session.scalars(query.limit(limit))]

    def find_backup(self, vc_guid: str, backup_id: str) -> BackupRow | None:
        """One backup, or None."""
        query = select(BackupRecord).where(
            BackupRecord.vc_guid == vc_guid, BackupRecord.backup_id == backup_id
        )
        with Session(self._engine) as session:
            found = session.scalars(query).first()
            return _backup_row(found) if found is not None else None

    def list_jobs(
        self,
        *,
        vm_group: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        node: str | None = None,
        limit: int = 100,
    ) -> list[JobRow]:
        """Jobs, newest first. `node`: those that it coordinated, or that gave it a VM."""
        query = select(JobRecord).order_by(JobRecord.started.desc())
        if vm_group is not None:
            query = query.where(JobRecord.vm_group == vm_group)
        if status is not None:
            query = query.where(JobRecord.status == status)
        if since is not None:
            query = query.where(JobRecord.started >= since.astimezone(UTC).isoformat())
        if node is not None:
            given = select(JobVmRecord.job_id).where(JobVmRecord.access_node == node)
            query = query.where((JobRecord.coordinator == node) | JobRecord.job_id.in_(given))
        with Session(self._engine) as session:
            return [JobRow(**_columns(item)) for item in session.scalars(query.limit(limit))]

    def known_jobs(self, job_ids: Sequence[str]) -> set[str]:
        """Which of these job ids have a row."""
        with Session(self._engine) as session:
            return set(session.scalars(select(JobRecord.job_id).where(JobRecord.job_id.in_(job_ids))))

    def job_vms(self, job_id: str) -> list[JobVmRow]:
        """A job's VMs, by name."""
        query = select(JobVmRecord).where(JobVmRecord.job_id == job_id).order_by(JobVmRecord.vm_name)
        with Session(self._engine) as session:
            return [JobVmRow(**_columns(item)) for item in session.scalars(query)]

    def replace_backups(self, media_agent: str, backups: Iterable[BackupRow]) -> int:
        """A rebuild: the rows of one MediaAgent become exactly these, in one transaction. Returns how many."""
        count = 0
        with self._writing() as session:
            session.execute(delete(DiskRecord).where(DiskRecord.media_agent == media_agent))
            session.execute(delete(BackupRecord).where(BackupRecord.media_agent == media_agent))
            for backup in backups:
                session.add(_backup_record(backup))
                count += 1
        return count

    def export(self) -> list[dict[str, Any]]:
        """Every backup as plain data in a fixed order: two catalogues of one repository export the same."""
        query = select(BackupRecord).order_by(
            BackupRecord.media_agent, BackupRecord.vc_guid, BackupRecord.backup_id
        )
        with Session(self._engine) as session:
            return [_backup_row(item).model_dump(mode="json") for item in session.scalars(query)]

    def _writing(self) -> _Writing:
        return _Writing(self._engine, self._shown_url)


class _Writing:
    """A session in one transaction; a database that stays locked is BusyError, worth another try."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._session = Session(engine)
        self._url = url

    def __enter__(self) -> Session:
        return self._session

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._session.commit()
            elif isinstance(error, DBAPIError):
                # Met inside the transaction instead of at its end: the same thing to the caller.
                raise error
        except OperationalError as problem:
            raise BusyError(f"the catalogue {self._url} cannot be written now: {problem.orig}") from None
        except DBAPIError as problem:
            raise ConfigError(
                f"the catalogue {self._url} cannot be written: {problem.orig}; move it away and run "
                "`safehaul catalog rebuild`"
            ) from None
        finally:
            self._session.close()


def _is_race(message: str) -> bool:
    """True for what another process's making of the same tables causes, in SQLite's and PostgreSQL's words."""
    return any(word in message.casefold() for word in ("already exists", "unique", "locked"))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _backup_record(backup: BackupRow) -> BackupRecord:
    values = backup.model_dump(exclude={"disks", "warnings"})
    place = {"vc_guid": backup.vc_guid, "backup_id": backup.backup_id, "media_agent": backup.media_agent}
    return BackupRecord(
        **values,
        warnings=json.dumps(backup.warnings, ensure_ascii=False),
        disks=[DiskRecord(**place, **disk.model_dump()) for disk in backup.disks],
    )


def _backup_row(record: BackupRecord) -> BackupRow:
    values = _columns(record)
    values["warnings"] = json.loads(record.warnings)
    disks = [DiskRow(**_columns(disk)) for disk in record.disks]
    return BackupRow(**values, disks=sorted(disks, key=lambda disk: disk.key))


def _columns(record: Base) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in record.__table__.columns}
