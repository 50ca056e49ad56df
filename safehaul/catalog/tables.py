"""The catalogue's tables in their newest form; `migrations/versions` makes them, step by step, from any older one.

Texts are compared byte by byte on every database (PostgreSQL's own collation would sort otherwise than SQLite).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine


def _by_bytes(length: int | None = None) -> TypeEngine[str]:
    if length is None:
        return Text().with_variant(Text(collation="C"), "postgresql")
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {int: BigInteger, str: _by_bytes()}  # noqa: RUF012 - SQLAlchemy's own way


class SchemaVersion(Base):
    """One row, for ever 2: it stops a safehaul from before the migrations, which looks for 1 here."""

    __tablename__ = "schema_version"
    version: Mapped[int] = mapped_column(primary_key=True)


class VmRecord(Base):
    """A VM that has backups, under each name and group that they have: what searches and counts of VMs read.

    A hundredth of the backups' rows, so that a search may look at all of them.
    """

    __tablename__ = "vms"
    media_agent: Mapped[str] = mapped_column(_by_bytes(100), primary_key=True)
    vc_guid: Mapped[str] = mapped_column(_by_bytes(300), primary_key=True)
    vm_group: Mapped[str] = mapped_column(primary_key=True)
    vm_name: Mapped[str] = mapped_column(primary_key=True)
    folded_name: Mapped[str]
    """The name without upper and lower case, as Python's `casefold` makes it."""


class BackupRecord(Base):
    """A backup."""

    __tablename__ = "backups"
    vc_guid: Mapped[str] = mapped_column(_by_bytes(300), primary_key=True)
    backup_id: Mapped[str] = mapped_column(_by_bytes(300), primary_key=True)
    media_agent: Mapped[str] = mapped_column(_by_bytes(100), primary_key=True)
    vm_name: Mapped[str]
    vm_group: Mapped[str]
    job_id: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    access_node: Mapped[str]
    vcenter: Mapped[str]
    snapshot_created: Mapped[str]
    committed: Mapped[str]
    capacity_bytes: Mapped[int]
    read_bytes: Mapped[int]
    stored_bytes: Mapped[int]
    warnings: Mapped[str]
    """JSON list of texts."""

    __table_args__ = (
        Index("backups_by_time", "committed"),
        Index("backups_by_vm", "vm_name", "committed"),
        Index("backups_by_group", "vm_group", "committed"),
        Index("backups_by_group_status", "vm_group", "status", "committed"),
        Index("backups_by_status", "status", "committed"),
        Index("backups_by_job", "job_id"),
        # All that a sum reads, so that it need not read the rows.
        Index(
            "backups_sums",
            "media_agent",
            "vm_group",
            "status",
            "committed",
            "capacity_bytes",
            "read_bytes",
            "stored_bytes",
        ),
    )


class DiskRecord(Base):
    """A disk of a backup."""

    __tablename__ = "disks"
    vc_guid: Mapped[str] = mapped_column(_by_bytes(300), primary_key=True)
    backup_id: Mapped[str] = mapped_column(_by_bytes(300), primary_key=True)
    media_agent: Mapped[str] = mapped_column(_by_bytes(100), primary_key=True)
    key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str]
    transport: Mapped[str]
    reason: Mapped[str]
    capacity_bytes: Mapped[int]
    read_bytes: Mapped[int]
    stored_bytes: Mapped[int]

    __table_args__ = (
        ForeignKeyConstraint(
            ["vc_guid", "backup_id", "media_agent"],
            ["backups.vc_guid", "backups.backup_id", "backups.media_agent"],
            ondelete="CASCADE",
        ),
    )


class JobRecord(Base):
    """A job."""

    __tablename__ = "jobs"
    job_id: Mapped[str] = mapped_column(_by_bytes(100), primary_key=True)
    workflow_id: Mapped[str]
    vm_group: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    coordinator: Mapped[str]
    started: Mapped[str]
    ended: Mapped[str]
    vms: Mapped[int]
    completed: Mapped[int]
    partial: Mapped[int]
    failed: Mapped[int]
    cancelled: Mapped[int]
    read_bytes: Mapped[int]
    stored_bytes: Mapped[int]

    __table_args__ = (
        Index("jobs_by_time", "started"),
        Index("jobs_by_group", "vm_group", "started"),
        Index("jobs_by_status", "status", "started"),
    )


class JobVmRecord(Base):
    """A VM in a job."""

    __tablename__ = "job_vms"
    job_id: Mapped[str] = mapped_column(_by_bytes(100), primary_key=True)
    vc_guid: Mapped[str] = mapped_column(_by_bytes(300), primary_key=True)
    vm_name: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    access_node: Mapped[str]
    backup_id: Mapped[str]
    read_bytes: Mapped[int]
    stored_bytes: Mapped[int]

    __table_args__ = (Index("job_vms_by_node", "job_id", "access_node"),)
