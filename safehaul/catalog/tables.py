"""The catalogue's tables. No migration tool yet: the whole catalogue can be rebuilt from the repository.

A version that differs is refused with the command that rebuilds; migrations come when a rebuild is too slow.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

SCHEMA_VERSION = 1


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {int: BigInteger, str: Text}  # noqa: RUF012 - SQLAlchemy's own way


class SchemaVersion(Base):
    """One row: which schema this is."""

    __tablename__ = "schema_version"
    version: Mapped[int] = mapped_column(primary_key=True)


class BackupRecord(Base):
    """A backup."""

    __tablename__ = "backups"
    vc_guid: Mapped[str] = mapped_column(String(300), primary_key=True)
    backup_id: Mapped[str] = mapped_column(String(300), primary_key=True)
    media_agent: Mapped[str] = mapped_column(String(100), primary_key=True)
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
    disks: Mapped[list[DiskRecord]] = relationship(
        cascade="all, delete-orphan", order_by="DiskRecord.key", lazy="selectin"
    )

    __table_args__ = (
        Index("backups_by_time", "committed"),
        Index("backups_by_vm", "vm_name", "committed"),
        Index("backups_by_group", "vm_group", "committed"),
    )


class DiskRecord(Base):
    """A disk of a backup."""

    __tablename__ = "disks"
    vc_guid: Mapped[str] = mapped_column(String(300), primary_key=True)
    backup_id: Mapped[str] = mapped_column(String(300), primary_key=True)
    media_agent: Mapped[str] = mapped_column(String(100), primary_key=True)
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
    job_id: Mapped[str] = mapped_column(String(100), primary_key=True)
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

    __table_args__ = (Index("jobs_by_time", "started"),)


class JobVmRecord(Base):
    """A VM in a job."""

    __tablename__ = "job_vms"
    job_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    vc_guid: Mapped[str] = mapped_column(String(300), primary_key=True)
    vm_name: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    access_node: Mapped[str]
    backup_id: Mapped[str]
    read_bytes: Mapped[int]
    stored_bytes: Mapped[int]
