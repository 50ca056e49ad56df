"""The catalogue's SQL, the same for every database, and how its records become rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, exists, func, or_, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from safehaul.catalog.rows import BackupPlace, BackupRow, DiskRow
from safehaul.catalog.tables import BackupRecord, Base, DiskRecord, JobRecord, JobVmRecord, VmRecord

_PLACE = tuple_(
    BackupRecord.committed, BackupRecord.backup_id, BackupRecord.vc_guid, BackupRecord.media_agent
)
_DISKS = Base.metadata.tables[DiskRecord.__tablename__]
_DISKS_OF = 200
"""Backups whose disks are asked for at once."""
_ORDER = [column.desc() for column in _PLACE.clauses]


def newest_backups(
    since: datetime | None, until: datetime | None, after: BackupPlace | None
) -> Select[BackupRecord]:
    """Backups, newest first, within a time and after a place."""
    query = select(BackupRecord).order_by(*_ORDER)
    if after is not None:
        # The first condition says nothing new: it is the one that an index by time can begin with.
        query = query.where(BackupRecord.committed <= after.committed, tuple_(*after) > _PLACE)
    return query.where(*_within(BackupRecord.committed.expression, since, until))


def name_has(search: str) -> ColumnElement[bool]:
    """Whether a VM's name has a text in it, in upper or lower case."""
    return VmRecord.folded_name.contains(search.casefold(), autoescape=True)


def backup_sums(
    vm_group: str | None, since: datetime | None, until: datetime | None, *, on_sqlite: bool
) -> Select[Any]:
    """Sums in the order of the index `backups_sums`, so that nothing need be sorted; the callers add them up."""
    # SQLite knows nothing of a span's length, and would look up half of all backups one by one rather than read through
    # the index that has all it needs. Of an expression it takes no index by time.
    column: ColumnElement[str] = BackupRecord.committed.expression
    committed = column.concat("") if on_sqlite else column
    by = (BackupRecord.media_agent, BackupRecord.vm_group, BackupRecord.status)
    query = select(
        *by,
        func.count().label("backups"),
        func.min(BackupRecord.committed).label("oldest"),
        func.max(BackupRecord.committed).label("newest"),
        *(
            # PostgreSQL's sum of integers is a decimal.
            func.sum(column).cast(column.type).label(column.key)
            for column in (BackupRecord.capacity_bytes, BackupRecord.read_bytes, BackupRecord.stored_bytes)
        ),
    )
    if vm_group is not None:
        query = query.where(BackupRecord.vm_group == vm_group)
    return query.where(*_within(committed, since, until)).group_by(*by).order_by(*by)


def newest_jobs(since: datetime | None, node: str | None) -> Select[JobRecord]:
    """Jobs, newest first: since a time, and with a node."""
    query = select(JobRecord).order_by(JobRecord.started.desc(), JobRecord.job_id.desc())
    if since is not None:
        query = query.where(JobRecord.started >= since.astimezone(UTC).isoformat())
    if node is not None:
        given = exists().where(JobVmRecord.job_id == JobRecord.job_id, JobVmRecord.access_node == node)
        query = query.where((JobRecord.coordinator == node) | given)
    return query


def _within(
    committed: ColumnElement[str], since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    conditions = []
    # As the repository writes times: basic format in UTC, which sorts as text.
    if since is not None:
        conditions.append(committed >= since.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"))
    if until is not None:
        conditions.append(committed < until.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"))
    return conditions


def upsert(
    session: Session, record: type[Base], rows: Sequence[dict[str, Any]], *, keep: bool = False
) -> None:
    """Insert rows; those whose key is there are replaced, or stay when `keep` says so."""
    if not rows:
        return
    table = record.metadata.tables[record.__tablename__]
    dialect = session.get_bind().dialect.name
    insert = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)
    keys = [column.name for column in table.primary_key]
    if keep:
        session.execute(insert.on_conflict_do_nothing(index_elements=keys), rows)
        return
    given = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    session.execute(insert.on_conflict_do_update(index_elements=keys, set_=given), rows)


def write_backups(session: Session, backups: Iterable[BackupRow]) -> None:
    """Write backups with their disks and VMs; those that are there are replaced."""
    rows = {(item.vc_guid, item.backup_id, item.media_agent): item for item in backups}
    # In one order by all writers, and VMs first: no two of them can wait for each other.
    ordered = [rows[key] for key in sorted(rows)]
    vms = {(item.media_agent, item.vc_guid, item.vm_group, item.vm_name) for item in ordered}
    names = ("media_agent", "vc_guid", "vm_group", "vm_name")
    upsert(
        session,
        VmRecord,
        [{**dict(zip(names, vm, strict=True)), "folded_name": vm[-1].casefold()} for vm in sorted(vms)],
        keep=True,
    )
    upsert(session, BackupRecord, [_backup_values(item) for item in ordered])
    session.connection().execute(
        delete(_DISKS).where(
            _DISKS.c.vc_guid == bindparam("guid"),
            _DISKS.c.backup_id == bindparam("id"),
            _DISKS.c.media_agent == bindparam("agent"),
        ),
        [dict(zip(("guid", "id", "agent"), key, strict=True)) for key in sorted(rows)],
    )
    upsert(session, DiskRecord, [disk for item in ordered for disk in _disk_values(item)])


def remove_backups(session: Session, media_agent: str, vc_guid: str, backup_ids: Sequence[str]) -> int:
    """Take backups out, with their disks, and their VM with its last one."""
    if session.get_bind().dialect.name == "postgresql":
        # Who writes a backup says first that its VM is there; the VM's last backup must not go meanwhile.
        session.execute(text("LOCK TABLE vms IN SHARE ROW EXCLUSIVE MODE"))
    ours = (BackupRecord.vc_guid == vc_guid, BackupRecord.media_agent == media_agent)
    found = session.scalars(
        select(BackupRecord.backup_id).where(*ours, BackupRecord.backup_id.in_(backup_ids))
    )
    there = sorted(found)
    session.execute(delete(BackupRecord).where(*ours, BackupRecord.backup_id.in_(there)))
    another = exists().where(
        BackupRecord.vc_guid == VmRecord.vc_guid,
        BackupRecord.media_agent == VmRecord.media_agent,
        BackupRecord.vm_group == VmRecord.vm_group,
        BackupRecord.vm_name == VmRecord.vm_name,
    )
    session.execute(
        delete(VmRecord).where(
            VmRecord.media_agent == media_agent, VmRecord.vc_guid == vc_guid, ~another.correlate(VmRecord)
        )
    )
    return len(there)


def _backup_values(backup: BackupRow) -> dict[str, Any]:
    values = backup.model_dump(exclude={"disks", "warnings"})
    return {**values, "warnings": json.dumps(backup.warnings, ensure_ascii=False)}


def _disk_values(backup: BackupRow) -> list[dict[str, Any]]:
    place = {"vc_guid": backup.vc_guid, "backup_id": backup.backup_id, "media_agent": backup.media_agent}
    # Of skipped disks that had no key all are 0: one row stands for them.
    disks = {disk.key: disk for disk in backup.disks}
    return [{**place, **disk.model_dump()} for disk in disks.values()]


def backup_rows(session: Session, records: Sequence[BackupRecord]) -> list[BackupRow]:
    """Backups as callers get them, with their disks."""
    disks: dict[tuple[str, str, str], list[DiskRow]] = {}
    for begin in range(0, len(records), _DISKS_OF):
        # SQLite looks through the whole table for `(a, b, c) IN (…)`, and takes the key for each part of an OR.
        wanted = or_(*(_disks_of(record) for record in records[begin : begin + _DISKS_OF]))
        for disk in session.scalars(select(DiskRecord).where(wanted)):
            place = (disk.vc_guid, disk.backup_id, disk.media_agent)
            disks.setdefault(place, []).append(DiskRow(**columns(disk)))
    rows = []
    for record in records:
        found = disks.get((record.vc_guid, record.backup_id, record.media_agent), [])
        values = columns(record) | {"warnings": json.loads(record.warnings)}
        rows.append(BackupRow(**values, disks=sorted(found, key=lambda disk: disk.key)))
    return rows


def _disks_of(record: BackupRecord) -> ColumnElement[bool]:
    return and_(
        DiskRecord.vc_guid == record.vc_guid,
        DiskRecord.backup_id == record.backup_id,
        DiskRecord.media_agent == record.media_agent,
    )


def columns(record: Base, *, but: str = "") -> dict[str, Any]:
    """A record's values by name."""
    return {
        column.name: getattr(record, column.name) for column in record.__table__.columns if column.name != but
    }
