"""A catalogue of 10,000 VMs with 100 nights of backups, and the jobs that made them; the questions people ask of it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, text
from sqlalchemy.engine import Engine

from safehaul.catalog.catalog import Catalog
from safehaul.catalog.tables import Base

BEGIN = datetime(2026, 1, 1, 22, tzinfo=UTC)
NODES = 16
GROUPS = 20


@dataclass(frozen=True)
class Size:
    """How large the catalogue is; two disks a backup, one job for each group and night."""

    vms: int = 10_000
    nights: int = 100

    @property
    def backups(self) -> int:
        """Rows of backups."""
        return self.vms * self.nights


@dataclass(frozen=True)
class _Vm:
    guid: str
    name: str
    group: str
    node: str


def _vms(size: Size) -> list[_Vm]:
    made = random.Random(4)
    vcenter = uuid.UUID(int=made.getrandbits(128))
    sites = ("fra", "muc", "ber", "ham")
    roles = ("web", "db", "file", "mail", "build", "vdi", "erp", "Test")
    return [
        _Vm(
            guid=f"{vcenter}.{uuid.UUID(int=made.getrandbits(128))}",
            name=f"{made.choice(sites)}-{made.choice(roles)}-{number:05}",
            group=f"group-{number % GROUPS:02}",
            node=f"node-{made.randrange(NODES):02}",
        )
        for number in range(size.vms)
    ]


def fill(engine: Engine, size: Size) -> None:
    """Fill an empty catalogue as 100 nights would, in bulk, and let the database look at what it has."""
    vms = _vms(size)
    rows = {
        "vms": _vm_rows(vms),
        "backups": _backups(vms, size),
        "disks": _disks(vms, size),
        "jobs": _jobs(size),
        "job_vms": _job_vms(vms, size),
    }
    for name, values in rows.items():
        _insert(engine, Base.metadata.tables[name], values)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            # What autovacuum does by and by; SQLite goes without statistics, as a catalogue of ours does.
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))


def _vm_rows(vms: Sequence[_Vm]) -> Iterator[dict[str, Any]]:
    for vm in vms:
        yield {
            "media_agent": "vault",
            "vc_guid": vm.guid,
            "vm_group": vm.group,
            "vm_name": vm.name,
            "folded_name": vm.name.casefold(),
        }


def _backup_id(night: int, number: int) -> tuple[str, str]:
    """A backup's id and when it was committed."""
    when = BEGIN + timedelta(days=night, seconds=3 * number)
    stamp = when.strftime("%Y%m%dT%H%M%SZ")
    committed = (when + timedelta(seconds=90)).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{(night * 1_000_003 + number) * 0x9E3779B97F4A7C15 % 2**64:016x}", committed


def _status(night: int, number: int) -> str:
    dice = (number * 7919 + night * 104_729) % 1000
    return "Failed" if dice == 0 else "Unindexed" if dice == 1 else "Partial" if dice < 20 else "Completed"


def _backups(vms: Sequence[_Vm], size: Size) -> Iterator[dict[str, Any]]:
    for night in range(size.nights):
        for number, vm in enumerate(vms):
            backup_id, committed = _backup_id(night, number)
            yield {
                "vc_guid": vm.guid,
                "backup_id": backup_id,
                "media_agent": "vault",
                "vm_name": vm.name,
                "vm_group": vm.group,
                "job_id": _job_id(night, number % GROUPS),
                "status": _status(night, number),
                "reason": "",
                "access_node": vm.node,
                "vcenter": "vcenter-1",
                "snapshot_created": committed,
                "committed": committed,
                "capacity_bytes": 100 << 30,
                "read_bytes": 3 << 30,
                "stored_bytes": 1 << 30,
                "warnings": "[]",
            }


def _disks(vms: Sequence[_Vm], size: Size) -> Iterator[dict[str, Any]]:
    for night in range(size.nights):
        for number, vm in enumerate(vms):
            backup_id, _ = _backup_id(night, number)
            for key in (2000, 2001):
                yield {
                    "vc_guid": vm.guid,
                    "backup_id": backup_id,
                    "media_agent": "vault",
                    "key": key,
                    "label": f"Hard disk {key - 1999}",
                    "transport": "nas",
                    "reason": "",
                    "capacity_bytes": 50 << 30,
                    "read_bytes": 3 << 29,
                    "stored_bytes": 1 << 29,
                }


def _job_id(night: int, group: int) -> str:
    return str(uuid.UUID(int=(night << 64) + group))


def _jobs(size: Size) -> Iterator[dict[str, Any]]:
    for night in range(size.nights):
        for group in range(GROUPS):
            started = BEGIN + timedelta(days=night, seconds=group)
            yield {
                "job_id": _job_id(night, group),
                "workflow_id": f"nightly-{group}",
                "vm_group": f"group-{group:02}",
                "status": "Partial" if (night + group) % 10 == 0 else "Completed",
                "reason": "",
                "coordinator": f"node-{group % NODES:02}",
                "started": started.isoformat(),
                "ended": (started + timedelta(hours=8)).isoformat(),
                "vms": size.vms // GROUPS,
                "completed": size.vms // GROUPS,
                "partial": 0,
                "failed": 0,
                "cancelled": 0,
                "read_bytes": 1 << 40,
                "stored_bytes": 1 << 38,
            }


def _job_vms(vms: Sequence[_Vm], size: Size) -> Iterator[dict[str, Any]]:
    for night in range(size.nights):
        for number, vm in enumerate(vms):
            backup_id, _ = _backup_id(night, number)
            yield {
                "job_id": _job_id(night, number % GROUPS),
                "vc_guid": vm.guid,
                "vm_name": vm.name,
                "status": _status(night, number),
                "reason": "",
                "access_node": vm.node,
                "backup_id": backup_id,
                "read_bytes": 3 << 30,
                "stored_bytes": 1 << 30,
            }


def _insert(engine: Engine, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    names = [column.name for column in table.columns]
    plain = engine.raw_connection()
    try:
        cursor: Any = plain.cursor()
        if engine.dialect.name == "postgresql":
            with cursor.copy(f"COPY {table.name} ({', '.join(names)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row([row[name] for name in names])
        else:
            cursor.execute("PRAGMA synchronous = OFF")
            cursor.execute("PRAGMA cache_size = -400000")
            cursor.execute("BEGIN IMMEDIATE")
            holders = ", ".join("?" * len(names))
            quoted = ", ".join(f'"{name}"' for name in names)
            cursor.executemany(
                f"INSERT INTO {table.name} ({quoted}) VALUES ({holders})",
                ([row[name] for name in names] for row in rows),
            )
        plain.commit()
        cursor.close()
    finally:
        plain.close()


def questions(catalog: Catalog) -> dict[str, Callable[[], Sequence[object]]]:
    """What people ask → the call that answers."""
    vm = catalog.list_backups(limit=1)[0]
    middle = catalog.list_backups(until=BEGIN + timedelta(days=50), limit=1)[0].place
    since, until = BEGIN + timedelta(days=60), BEGIN + timedelta(days=67)
    return {
        "the newest 100": lambda: catalog.list_backups(limit=100),
        "a page of 100 in the middle": lambda: catalog.list_backups(limit=100, after=middle),
        "the newest 1,000": lambda: catalog.list_backups(limit=1000),
        "all of a VM, by its name": lambda: catalog.list_backups(vm=vm.vm_name),
        "all of a VM, by its VC.GUID": lambda: catalog.list_backups(vm=vm.vc_guid),
        "of a VM group": lambda: catalog.list_backups(vm_group="group-07", limit=100),
        "of a status (1 in 1,000)": lambda: catalog.list_backups(status="Failed", limit=100),
        "of a status and group": lambda: catalog.list_backups(
            status="Failed", vm_group="group-07", limit=100
        ),
        "of a status and group that has none": lambda: catalog.list_backups(
            status="Cancelled", vm_group="group-07", limit=100
        ),
        "of a job (500 VMs)": lambda: catalog.list_backups(job_id=vm.job_id, limit=1000),
        "of a week long ago": lambda: catalog.list_backups(limit=100, since=since, until=until),
        "of a week and group": lambda: catalog.list_backups(
            limit=100, vm_group="group-07", since=since, until=until
        ),
        "search: one VM": lambda: catalog.list_backups(search="B-0042", limit=100),
        "search: a quarter of all VMs": lambda: catalog.list_backups(search="FRA", limit=100),
        "search: 10 VMs, of a group": lambda: catalog.list_backups(
            search="-0012", vm_group="group-07", limit=100
        ),
        "search: nothing": lambda: catalog.list_backups(search="no such VM", limit=100),
        "VMs by a part of the name": lambda: catalog.find_vms("web", limit=100),
        "sums of everything": catalog.sums,
        "sums of a group": lambda: catalog.sums(vm_group="group-07"),
        "sums of a week": lambda: catalog.sums(since=since, until=until),
        "sums of half of the time": lambda: catalog.sums(since=BEGIN + timedelta(days=50)),
        "sums of a third": lambda: catalog.sums(
            since=BEGIN + timedelta(days=30), until=BEGIN + timedelta(days=63)
        ),
        "the newest 100 jobs": catalog.list_jobs,
        "jobs of a group": lambda: catalog.list_jobs(vm_group="group-07"),
        "jobs of a status": lambda: catalog.list_jobs(status="Partial"),
        "jobs with a node": lambda: catalog.list_jobs(node="node-03"),
        "jobs with a node that has none": lambda: catalog.list_jobs(node="node-99"),
        "the VMs of a job (500)": lambda: catalog.job_vms(vm.job_id),
    }
