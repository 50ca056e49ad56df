"""A catalogue of 1,000,000 backups: a table of VMs to search in, indexes for each list, texts compared by bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEYS = {
    "backups": {"vc_guid": 300, "backup_id": 300, "media_agent": 100},
    "disks": {"vc_guid": 300, "backup_id": 300, "media_agent": 100},
    "jobs": {"job_id": 100},
    "job_vms": {"job_id": 100, "vc_guid": 300},
}
_TEXTS = {
    "backups": (
        *("vm_name", "vm_group", "job_id", "status", "reason", "access_node", "vcenter"),
        *("snapshot_created", "committed", "warnings"),
    ),
    "disks": ("label", "transport", "reason"),
    "jobs": ("workflow_id", "vm_group", "status", "reason", "coordinator", "started", "ended"),
    "job_vms": ("vm_name", "status", "reason", "access_node", "backup_id"),
}


def upgrade() -> None:
    """Change the tables of `0001`, and fill the table of VMs from the backups."""
    on_postgresql = op.get_context().dialect.name == "postgresql"
    if on_postgresql:
        _compare_by_bytes()
    collation = "C" if on_postgresql else None
    vms = op.create_table(
        "vms",
        sa.Column("media_agent", sa.String(100, collation), primary_key=True),
        sa.Column("vc_guid", sa.String(300, collation), primary_key=True),
        sa.Column("vm_group", sa.Text(collation=collation), primary_key=True),
        sa.Column("vm_name", sa.Text(collation=collation), primary_key=True),
        sa.Column("folded_name", sa.Text(collation=collation), nullable=False),
    )
    known = op.get_bind().execute(
        sa.text("SELECT DISTINCT media_agent, vc_guid, vm_group, vm_name FROM backups")
    )
    rows = [{**row, "folded_name": row["vm_name"].casefold()} for row in known.mappings()]
    op.bulk_insert(vms, rows)
    op.create_index("backups_by_group_status", "backups", ["vm_group", "status", "committed"])
    op.create_index("backups_by_status", "backups", ["status", "committed"])
    op.create_index("backups_by_job", "backups", ["job_id"])
    op.create_index(
        "backups_sums",
        "backups",
        [
            *("media_agent", "vm_group", "status", "committed"),
            *("capacity_bytes", "read_bytes", "stored_bytes"),
        ],
    )
    op.create_index("jobs_by_group", "jobs", ["vm_group", "started"])
    op.create_index("jobs_by_status", "jobs", ["status", "started"])
    op.create_index("job_vms_by_node", "job_vms", ["job_id", "access_node"])
    # A safehaul from before the migrations looks for 1 here, and refuses a catalogue that it does not know.
    op.execute("UPDATE schema_version SET version = 2")


def _compare_by_bytes() -> None:
    """PostgreSQL alone: its databases sort by the rules of a language, SQLite by bytes."""
    for table, lengths in _KEYS.items():
        for column, length in lengths.items():
            op.alter_column(table, column, type_=sa.String(length, "C"))
    for table, columns in _TEXTS.items():
        for column in columns:
            op.alter_column(table, column, type_=sa.Text(collation="C"))
