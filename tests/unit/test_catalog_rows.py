"""The catalogue gives back what it was given, the same again after a rebuild, and refuses what it does not know."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from activities.catalog_rows import job_row, job_vm_rows
from safehaul.catalog import catalog as catalog_module
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow, DiskRow, JobRow, JobVmRow
from safehaul.errors import BusyError, ConfigError
from safehaul.messages.job import JobReport, JobStatus, JobTotals
from safehaul.messages.vm import VmReport, VmStatus


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(url(tmp_path))
    yield opened
    opened.close()


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'catalog.sqlite'}"


def backup(number: int, **changes: object) -> BackupRow:
    row = BackupRow(
        vc_guid=f"guid-{number % 3}",
        backup_id=f"2026010{number}T000000Z-x",
        vm_name=f"web {number % 3} ü",
        vm_group="nightly" if number % 2 else "weekly",
        job_id=f"job-{number}",
        media_agent="ma1",
        status="Completed",
        committed=f"2026010{number}T000100Z",
        capacity_bytes=1 << 45,
        disks=[
            DiskRow(key=2001, label="Hard disk 2", transport="", reason="independent"),
            DiskRow(key=2000, label="Hard disk 1", transport="nas", capacity_bytes=1 << 45),
        ],
        warnings=["not quiesced"],
    )
    return row.model_copy(update=changes)


def ordered(row: BackupRow) -> BackupRow:
    return row.model_copy(update={"disks": sorted(row.disks, key=lambda disk: disk.key)})


def job(number: int) -> JobRow:
    return JobRow(
        job_id=f"job-{number}",
        workflow_id="nightly",
        vm_group="nightly",
        status="Partial",
        started=f"2026-01-0{number}T00:00:00Z",
        ended=f"2026-01-0{number}T01:00:00Z",
        vms=2,
    )


def job_vm(number: int, name: str) -> JobVmRow:
    return JobVmRow(job_id=f"job-{number}", vc_guid=f"guid-{name}", vm_name=name, status="Completed")


def test_a_backup_comes_back_with_its_disks_and_warnings(catalog: Catalog) -> None:
    catalog.record_backup(backup(1))
    assert catalog.find_backup("guid-1", "20260101T000000Z-x") == ordered(backup(1))
    assert catalog.find_backup("guid-1", "another") is None


def test_recording_again_replaces_the_same_rows(catalog: Catalog) -> None:
    catalog.record_backup(backup(1))
    fewer = backup(1, status="Partial", disks=backup(1).disks[:1])
    catalog.record_backup(fewer)
    catalog.record_backup(fewer)
    assert catalog.list_backups() == [fewer]
    catalog.record_job(job(1), [job_vm(1, "a"), job_vm(1, "b")])
    catalog.record_job(job(1), [job_vm(1, "b")])
    assert catalog.job_vms("job-1") == [job_vm(1, "b")]
    assert catalog.list_jobs() == [job(1)]


def test_lists_are_filtered_and_newest_first(catalog: Catalog) -> None:
    catalog.record_backups(backup(number) for number in range(1, 7))
    newest = [row.backup_id[7] for row in catalog.list_backups()]
    assert newest == ["6", "5", "4", "3", "2", "1"]
    assert [row.backup_id[7] for row in catalog.list_backups(vm="guid-1")] == ["4", "1"]
    assert [row.backup_id[7] for row in catalog.list_backups(vm="web 1 ü")] == ["4", "1"]
    assert [row.backup_id[7] for row in catalog.list_backups(vm_group="nightly")] == ["5", "3", "1"]
    assert [row.backup_id[7] for row in catalog.list_backups(job_id="job-2")] == ["2"]
    assert catalog.list_backups(status="Failed") == []
    assert len(catalog.list_backups(limit=2)) == 2
    for number in (1, 2):
        catalog.record_job(job(number), [])
    assert [row.job_id for row in catalog.list_jobs(vm_group="nightly")] == ["job-2", "job-1"]
    assert catalog.list_jobs(vm_group="weekly") == []


def test_a_rebuild_gives_the_same_rows_and_keeps_other_media_agents(catalog: Catalog, tmp_path: Path) -> None:
    rows = [backup(number) for number in range(1, 7)]
    other = backup(1, media_agent="ma2")
    catalog.record_backups([*rows, other])
    catalog.record_job(job(1), [job_vm(1, "a")])
    before = catalog.export()
    catalog.record_backup(backup(8))
    assert catalog.replace_backups("ma1", reversed(rows)) == 6
    assert catalog.export() == before
    assert catalog.list_jobs() == [job(1)]
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.sqlite'}")
    fresh.replace_backups("ma1", rows)
    fresh.replace_backups("ma2", [other])
    assert fresh.export() == before
    fresh.close()


def test_a_jobs_vms_without_a_vc_guid_of_their_own_have_a_row_each(catalog: Catalog) -> None:
    """They are in the report as Failed, and must not keep the whole job out of the catalogue."""
    failed = [("vc.twin", "twin a"), ("vc.twin", "twin b"), ("", "lost"), ("", "orphan")]
    vms = [
        VmReport(vc_guid=guid, name=name, status=VmStatus.FAILED, reason="no VC.GUID of its own")
        for guid, name in failed
    ]
    vms.append(VmReport(vc_guid="vc.good", name="good", status=VmStatus.COMPLETED))
    now = datetime.now(UTC)
    report = JobReport(
        job_id="job-7",
        workflow_id="nightly-7",
        vm_group="nightly",
        status=JobStatus.PARTIAL,
        totals=JobTotals(vms=5),
        vms=vms,
        pages=[],
        started_at=now,
        ended_at=now,
    )
    catalog.record_job(job_row(report), job_vm_rows(report, vms))
    rows = {row.vm_name: row.vc_guid for row in catalog.job_vms("job-7")}
    assert rows == {
        "good": "vc.good",
        "twin a": "vc.twin#1",
        "twin b": "vc.twin#2",
        "lost": "#1",
        "orphan": "#2",
    }


def test_another_schema_is_refused_with_the_command_that_rebuilds(catalog: Catalog, tmp_path: Path) -> None:
    catalog.close()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as database:
        database.execute("UPDATE schema_version SET version = 99")
    database.close()
    with pytest.raises(ConfigError, match=r"schema 99.*catalog rebuild"):
        Catalog(url(tmp_path))


def test_a_place_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        Catalog(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.sqlite'}")


def test_workers_that_open_and_write_together_lose_nothing(tmp_path: Path) -> None:
    def work(number: int) -> None:
        mine = Catalog(url(tmp_path))
        mine.record_backup(backup(number))
        mine.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(1, 7)))
    opened = Catalog(url(tmp_path))
    assert len(opened.list_backups()) == 6
    opened.close()


def test_a_catalogue_that_stays_locked_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "BUSY_TIMEOUT_S", 0.05)
    catalog = Catalog(url(tmp_path))
    holder = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match="cannot be written now"):
        catalog.record_backup(backup(1))
    with pytest.raises(BusyError, match="cannot be written now"):
        catalog.record_job(job(1), [])
    holder.execute("ROLLBACK")
    holder.close()
    catalog.record_backup(backup(1))
    assert catalog.list_backups() == [ordered(backup(1))]
    catalog.close()
