"""The catalogue: writing twice changes nothing, a rebuild gives the same rows, and no process is in another's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow, DiskRow, JobRow, JobVmRow
from safehaul.errors import ConfigError


def _backup(number: int, **changes: object) -> BackupRow:
    values: dict[str, object] = {
        "vc_guid": f"vc.{number % 3}",
        "backup_id": f"2026-{number:03}",
        "vm_name": f"vm{number % 3}",
        "vm_group": "nightly",
        "job_id": "j1",
        "media_agent": "vault",
        "status": "Completed",
        "committed": f"2026-{number:03}",
        "disks": [
            DiskRow(key=2001, label="b", transport="none", reason="RDM"),
            DiskRow(key=2000, label="a", transport="nas"),
        ],
        "warnings": ["ünïcode"],
    }
    return BackupRow.model_validate(values | changes)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'catalog.db'}"


def test_a_backup_written_twice_is_one_row_with_the_newest_values(url: str) -> None:
    catalog = Catalog(url)
    catalog.record_backup(_backup(1, status="Partial"))
    catalog.record_backup(_backup(1))
    (row,) = catalog.list_backups()
    assert row.status == "Completed"
    assert [disk.key for disk in row.disks] == [2000, 2001]
    assert row.warnings == ["ünïcode"]
    catalog.close()


def test_backups_are_found_by_vm_group_and_time(url: str) -> None:
    catalog = Catalog(url)
    catalog.record_backups(_backup(number) for number in range(6))
    assert [row.backup_id for row in catalog.list_backups(vm="vm1")] == ["2026-004", "2026-001"]
    assert [row.backup_id for row in catalog.list_backups(vm="vc.1")] == ["2026-004", "2026-001"]
    assert catalog.list_backups(vm_group="other") == []
    assert len(catalog.list_backups(limit=2)) == 2
    assert catalog.find_backup("vc.1", "2026-001") is not None
    assert catalog.find_backup("vc.1", "none") is None
    catalog.close()


def test_a_rebuild_gives_the_same_rows_and_drops_what_is_not_there(url: str) -> None:
    catalog = Catalog(url)
    rows = [_backup(number) for number in range(6)]
    catalog.record_backups(rows)
    before = catalog.export()
    catalog.record_backup(_backup(99))
    assert catalog.replace_backups("vault", reversed(rows)) == 6
    assert catalog.export() == before
    catalog.close()


def test_the_rows_of_forgotten_backups_go_and_no_others(url: str) -> None:
    catalog = Catalog(url)
    rows = [_backup(number) for number in range(6)]
    catalog.record_backups([*rows, _backup(1, media_agent="other")])
    assert catalog.remove_backups("vault", "vc.1", ["2026-001", "2026-000", "none"]) == 1
    assert catalog.remove_backups("vault", "vc.1", ["2026-001"]) == 0
    left = [(row["media_agent"], row["backup_id"]) for row in catalog.export()]
    assert ("vault", "2026-001") not in left
    assert ("other", "2026-001") in left
    assert len(left) == 6
    catalog.record_backup(rows[1])
    assert len(catalog.export()) == 7
    catalog.close()


def test_a_job_written_twice_is_one_job(url: str) -> None:
    catalog = Catalog(url)
    job = JobRow(job_id="j", workflow_id="w", vm_group="g", status="Completed", started="1", ended="2", vms=1)
    vms = [JobVmRow(job_id="j", vc_guid="a.b", vm_name="x", status="Completed")]
    catalog.record_job(job, vms)
    catalog.record_job(job, vms)
    assert catalog.list_jobs() == [job]
    assert catalog.job_vms("j") == vms
    catalog.close()


def test_another_schema_is_refused_with_the_next_step(url: str) -> None:
    Catalog(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("update schema_version set version = 99"))
    engine.dispose()
    with pytest.raises(ConfigError, match="safehaul catalog rebuild"):
        Catalog(url)


def test_a_database_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        Catalog(f"sqlite:///{tmp_path}/no/such/directory/catalog.db")


def test_a_database_without_its_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs the Python package psycopg, .* see \[catalog\] url"):
        Catalog("postgresql://safehaul@db.example.net/catalog")


def test_processes_that_open_and_write_an_empty_database_at_once_do_not_fail(url: str) -> None:
    program = (
        "import sys\n"
        "from safehaul.catalog.catalog import Catalog\n"
        "from safehaul.catalog.rows import BackupRow\n"
        "catalog = Catalog(sys.argv[1])\n"
        "for number in range(20):\n"
        "    catalog.record_backup(BackupRow(vc_guid=sys.argv[2], backup_id=str(number), vm_name='x', vm_group='g',\n"
        "        job_id='j', media_agent='v', status='Completed', committed=str(number)))\n"
        "catalog.close()\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program, url, str(number)]) for number in range(4)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0, 0]
    catalog = Catalog(url)
    assert len(catalog.list_backups()) == 80
    catalog.close()


def test_a_refused_row_is_an_error_of_ours_and_changes_nothing(url: str) -> None:
    catalog = Catalog(url)
    job = JobRow(job_id="j", workflow_id="w", vm_group="g", status="Completed", started="1", ended="2", vms=1)
    vm = JobVmRow(job_id="j", vc_guid="a.b", vm_name="x", status="Completed")
    with pytest.raises(ConfigError, match=r"cannot be written: .*UNIQUE.*catalog rebuild"):
        catalog.record_job(job, [vm, vm])
    assert catalog.list_jobs() == []
    catalog.close()
