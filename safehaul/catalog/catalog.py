"""The catalogue: what the repositories hold and what jobs did, in a database made for lists and searches.

It is a convenience and never the truth: every row can be made again from the repository, and gives the same row.
SQLite by default, PostgreSQL by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import delete, select

from safehaul.catalog import statements
from safehaul.catalog.database import Database
from safehaul.catalog.rows import BackupPlace, BackupRow, BackupSum, JobRow, JobVmRow, VmRow
from safehaul.catalog.tables import BackupRecord, JobRecord, JobVmRecord, VmRecord

BATCH_ROWS = 500
"""Backups that are written in one transaction: other writers wait for no more than these."""
MANY_NAMES = 300
"""Above so many matching names a search reads the newest backups and looks at their names, below it the other way."""

ItemT = TypeVar("ItemT")


class Catalog:
    """An open catalogue; threads may share it.

    Every method raises BusyError for a database that is locked, ConnectionLostError for one whose server does not
    answer, ConfigError for one that refuses.
    """

    def __init__(self, url: str, *, upgrade: bool = False) -> None:
        """Open, and make the tables of an empty database; with `upgrade` an older schema is brought to the newest.

        Raises ConfigError when the database cannot be opened, lacks its driver, or has another schema.
        """
        self._database = Database(url, upgrade=upgrade)

    @property
    def found_schema(self) -> str:
        """The schema before this opening, empty for a database that was made by it."""
        return self._database.found_schema

    def close(self) -> None:
        """Release the connections."""
        self._database.close()

    def record_backup(self, backup: BackupRow) -> None:
        """Write a backup; a second time replaces the same rows."""
        self.record_backups([backup])

    def record_backups(self, backups: Iterable[BackupRow]) -> int:
        """Write many backups, BATCH_ROWS in one transaction; returns how many."""
        count = 0
        for batch in _batched(backups):
            with self._database.writing() as session:
                statements.write_backups(session, batch)
            count += len(batch)
        return count

    def remove_backups(self, media_agent: str, vc_guid: str, backup_ids: Iterable[str]) -> int:
        """Take backups of one VM out, those that its repository no longer has; returns how many rows there were."""
        count = 0
        for batch in _batched(backup_ids):
            with self._database.writing() as session:
                count += statements.remove_backups(session, media_agent, vc_guid, batch)
        return count

    def record_job(self, job: JobRow, vms: Sequence[JobVmRow]) -> None:
        """Write a job and its VMs; a second time replaces the same rows."""
        with self._database.writing() as session:
            statements.upsert(session, JobRecord, [job.model_dump()])
            session.execute(delete(JobVmRecord).where(JobVmRecord.job_id == job.job_id))
            session.add_all(JobVmRecord(**vm.model_dump()) for vm in vms)

    def list_backups(
        self,
        *,
        vm: str | None = None,
        search: str | None = None,
        vm_group: str | None = None,
        job_id: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: BackupPlace | None = None,
        limit: int = 1000,
    ) -> list[BackupRow]:
        """Backups, newest first.

        `vm` is a VM's name or VC.GUID, `search` any part of its name, in upper or lower case. `since` counts,
        `until` no longer does. `after` is the place of the last one of the page before.
        """
        with self._database.reading() as session:
            query = statements.newest_backups(since, until, after)
            of_few_vms = vm is not None
            if vm is not None:
                query = query.where((BackupRecord.vm_name == vm) | (BackupRecord.vc_guid == vm))
            if search is not None:
                found = select(VmRecord.vm_name).where(statements.name_has(search)).distinct()
                names = session.scalars(found.limit(MANY_NAMES + 1)).all()
                of_few_vms = of_few_vms or len(names) <= MANY_NAMES
                name = BackupRecord.vm_name
                # An expression of a column, for which no index is taken.
                by_time = name.concat("").in_(found)
                query = query.where(name.in_(names) if len(names) <= MANY_NAMES else by_time)
            for column, value in ((BackupRecord.vm_group, vm_group), (BackupRecord.status, status)):
                if value is not None:
                    # SQLite would rather read a whole group than a few VMs by their names.
                    query = query.where((column.concat("") if of_few_vms else column) == value)
            if job_id is not None:
                query = query.where(BackupRecord.job_id == job_id)
            return statements.backup_rows(session, session.scalars(query.limit(limit)).all())

    def find_backup(self, vc_guid: str, backup_id: str) -> BackupRow | None:
        """One backup, or None."""
        query = select(BackupRecord).where(
            BackupRecord.vc_guid == vc_guid, BackupRecord.backup_id == backup_id
        )
        with self._database.reading() as session:
            found = session.scalars(query.order_by(BackupRecord.media_agent).limit(1)).all()
            return next(iter(statements.backup_rows(session, found)), None)

    def find_vms(self, search: str = "", limit: int = 1000) -> list[VmRow]:
        """VMs that have backups, by name: those with `search` in it, in upper or lower case."""
        query = select(VmRecord).order_by(VmRecord.folded_name, VmRecord.vm_name, VmRecord.vc_guid)
        with self._database.reading() as session:
            found = session.scalars(query.where(statements.name_has(search)).limit(limit))
            return [VmRow(**statements.columns(item, but="folded_name")) for item in found]

    def sums(
        self, *, vm_group: str | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> list[BackupSum]:
        """Sums over the backups, for each MediaAgent, VM group and status that has some."""
        with self._database.reading() as session:
            on_sqlite = self._database.engine.dialect.name == "sqlite"
            query = statements.backup_sums(vm_group, since, until, on_sqlite=on_sqlite)
            found = session.execute(query).mappings()
            return [BackupSum.model_validate(dict(row)) for row in found]

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
        query = statements.newest_jobs(since, node)
        if vm_group is not None:
            query = query.where(JobRecord.vm_group == vm_group)
        if status is not None:
            query = query.where(JobRecord.status == status)
        with self._database.reading() as session:
            return [JobRow(**statements.columns(item)) for item in session.scalars(query.limit(limit))]

    def known_jobs(self, job_ids: Sequence[str]) -> set[str]:
        """Which of these job ids have a row."""
        with self._database.reading() as session:
            return set(session.scalars(select(JobRecord.job_id).where(JobRecord.job_id.in_(job_ids))))

    def job_vms(self, job_id: str) -> list[JobVmRow]:
        """A job's VMs, by name."""
        query = select(JobVmRecord).where(JobVmRecord.job_id == job_id)
        with self._database.reading() as session:
            found = session.scalars(query.order_by(JobVmRecord.vm_name, JobVmRecord.vc_guid))
            return [JobVmRow(**statements.columns(item)) for item in found]

    def known_vms(self, media_agent: str) -> set[str]:
        """VC.GUIDs of the VMs that have backups with a MediaAgent."""
        query = select(VmRecord.vc_guid).where(VmRecord.media_agent == media_agent).distinct()
        with self._database.reading() as session:
            return set(session.scalars(query))

    def known_backups(self, media_agent: str, vc_guid: str) -> set[str]:
        """Ids of a VM's backups with a MediaAgent."""
        query = select(BackupRecord.backup_id).where(
            BackupRecord.vc_guid == vc_guid, BackupRecord.media_agent == media_agent
        )
        with self._database.reading() as session:
            return set(session.scalars(query))

    def export(self) -> Iterator[dict[str, Any]]:
        """Every backup as plain data in a fixed order: two catalogues of one repository export the same."""
        query = select(BackupRecord).order_by(
            BackupRecord.media_agent, BackupRecord.vc_guid, BackupRecord.backup_id
        )
        with self._database.reading() as session:
            found = session.scalars(query.execution_options(yield_per=BATCH_ROWS))
            for batch in found.partitions():
                for row in statements.backup_rows(session, batch):
                    yield row.model_dump(mode="json")


def _batched(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch
