"""The tables as the last safehaul without migrations made them (its `schema_version` was 1)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables in an empty database."""
    op.create_table("schema_version", sa.Column("version", sa.BigInteger, primary_key=True))
    op.execute("INSERT INTO schema_version (version) VALUES (1)")
    op.create_table(
        "backups",
        *_backup_key(),
        *_texts("vm_name", "vm_group", "job_id", "status", "reason", "access_node", "vcenter"),
        *_texts("snapshot_created", "committed"),
        *_numbers("capacity_bytes", "read_bytes", "stored_bytes"),
        *_texts("warnings"),
    )
    op.create_index("backups_by_time", "backups", ["committed"])
    op.create_index("backups_by_vm", "backups", ["vm_name", "committed"])
    op.create_index("backups_by_group", "backups", ["vm_group", "committed"])
    op.create_table(
        "disks",
        *_backup_key(),
        sa.Column("key", sa.BigInteger, primary_key=True, autoincrement=False),
        *_texts("label", "transport", "reason"),
        *_numbers("capacity_bytes", "read_bytes", "stored_bytes"),
        sa.ForeignKeyConstraint(
            ["vc_guid", "backup_id", "media_agent"],
            ["backups.vc_guid", "backups.backup_id", "backups.media_agent"],
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(100), primary_key=True),
        *_texts("workflow_id", "vm_group", "status", "reason", "coordinator", "started", "ended"),
        *_numbers("vms", "completed", "partial", "failed", "cancelled", "read_bytes", "stored_bytes"),
    )
    op.create_index("jobs_by_time", "jobs", ["started"])
    op.create_table(
        "job_vms",
        sa.Column("job_id", sa.String(100), primary_key=True),
        sa.Column("vc_guid", sa.String(300), primary_key=True),
        *_texts("vm_name", "status", "reason", "access_node", "backup_id"),
        *_numbers("read_bytes", "stored_bytes"),
    )


def _backup_key() -> list[sa.Column[str]]:
    return [
        sa.Column("vc_guid", sa.String(300), primary_key=True),
        sa.Column("backup_id", sa.String(300), primary_key=True),
        sa.Column("media_agent", sa.String(100), primary_key=True),
    ]


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]
