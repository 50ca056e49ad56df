"""Rows for the catalogue's tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from safehaul.catalog.rows import BackupRow, DiskRow, JobRow, JobVmRow

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def moment(number: int) -> datetime:
    """When backup `number` was committed: one each day."""
    return BEGIN + timedelta(days=number)


def backup(number: int, **changes: object) -> BackupRow:
    """Backup `number`, of one of three VMs and two groups."""
    when = moment(number).strftime("%Y%m%dT%H%M%SZ")
    values: dict[str, object] = {
        "vc_guid": f"guid-{number % 3}",
        "backup_id": f"{when}-x",
        "vm_name": f"Web {number % 3} ü",
        "vm_group": "nightly" if number % 2 else "weekly",
        "job_id": f"job-{number}",
        "media_agent": "vault",
        "status": "Completed",
        "committed": when,
        "capacity_bytes": 1 << 45,
        "read_bytes": 1000 + number,
        "stored_bytes": 10 + number,
        "disks": [
            DiskRow(key=2000, label="Hard disk 1", transport="nas", capacity_bytes=1 << 45),
            DiskRow(key=2001, label="Hard disk 2", transport="none", reason="independent"),
        ],
        "warnings": ["not quiesced", "ünïcode"],
    }
    return BackupRow.model_validate(values | changes)


def numbers(rows: list[BackupRow]) -> list[int]:
    """Which backups these are, by `backup`'s number."""
    return [
        (datetime.strptime(row.committed, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - BEGIN).days for row in rows
    ]


def job(number: int, **changes: object) -> JobRow:
    """Job `number`, one each day."""
    values: dict[str, object] = {
        "job_id": f"job-{number}",
        "workflow_id": "nightly",
        "vm_group": "nightly",
        "status": "Partial",
        "coordinator": "node-1",
        "started": moment(number).isoformat(),
        "ended": (moment(number) + timedelta(hours=1)).isoformat(),
        "vms": 2,
    }
    return JobRow.model_validate(values | changes)


def job_vm(number: int, name: str, node: str = "node-2") -> JobVmRow:
    """A VM of job `number`."""
    return JobVmRow(
        job_id=f"job-{number}", vc_guid=f"guid-{name}", vm_name=name, status="Completed", access_node=node
    )
