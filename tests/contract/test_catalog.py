"""Goal: the catalogue gives back what it was given, finds it by every filter, and says the same on every database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from activities.catalog_rows import job_row, job_vm_rows
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import VmRow
from safehaul.errors import ConfigError
from safehaul.messages.job import JobReport, JobStatus, JobTotals
from safehaul.messages.vm import VmReport, VmStatus
from tests.contract.catalog_rows import backup, job, job_vm, moment, numbers


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    opened = Catalog(catalog_url)
    yield opened
    opened.close()


@pytest.fixture
def filled(catalog: Catalog) -> Catalog:
    catalog.record_backups(backup(number) for number in range(1, 13))
    return catalog


def test_a_backup_comes_back_with_its_disks_and_warnings(catalog: Catalog) -> None:
    row = backup(1)
    catalog.record_backup(row.model_copy(update={"disks": row.disks[::-1]}))
    assert catalog.find_backup("guid-1", row.backup_id) == row
    assert catalog.find_backup("guid-1", "another") is None
    assert catalog.find_backup("another", row.backup_id) is None


def test_recording_again_replaces_the_same_rows(catalog: Catalog) -> None:
    catalog.record_backup(backup(1))
    fewer = backup(1, status="Partial", disks=backup(1).disks[:1])
    catalog.record_backup(fewer)
    catalog.record_backups([fewer, fewer])
    assert catalog.list_backups() == [fewer]
    catalog.record_job(job(1), [job_vm(1, "a"), job_vm(1, "b")])
    catalog.record_job(job(1, status="Completed"), [job_vm(1, "b")])
    assert catalog.job_vms("job-1") == [job_vm(1, "b")]
    assert catalog.list_jobs() == [job(1, status="Completed")]


def test_backups_are_found_by_each_filter_and_by_several(filled: Catalog) -> None:
    filled.record_backup(backup(20, status="Failed"))
    assert numbers(filled.list_backups()) == [20, *range(12, 0, -1)]
    assert numbers(filled.list_backups(vm="guid-1")) == [10, 7, 4, 1]
    assert numbers(filled.list_backups(vm="Web 1 ü")) == [10, 7, 4, 1]
    assert filled.list_backups(vm="web 1 ü") == []
    assert numbers(filled.list_backups(vm_group="nightly")) == [11, 9, 7, 5, 3, 1]
    assert numbers(filled.list_backups(vm_group="nightly", vm="guid-1")) == [7, 1]
    assert numbers(filled.list_backups(job_id="job-2")) == [2]
    assert numbers(filled.list_backups(status="Failed")) == [20]
    assert filled.list_backups(status="Failed", vm_group="nightly") == []
    assert numbers(filled.list_backups(since=moment(11))) == [20, 12, 11]
    assert numbers(filled.list_backups(until=moment(3))) == [2, 1]
    assert numbers(filled.list_backups(since=moment(3), until=moment(5), vm_group="weekly")) == [4]
    assert numbers(filled.list_backups(limit=2)) == [20, 12]


def test_a_search_finds_any_part_of_a_name_in_upper_and_lower_case(filled: Catalog) -> None:
    for number, name in enumerate(("ÜBER_STRASSE", "50% off", "a_b", "aXb"), start=21):
        filled.record_backup(backup(number, vc_guid=f"guid-{name}", vm_name=name))
    assert numbers(filled.list_backups(search="WEB 1")) == [10, 7, 4, 1]
    assert numbers(filled.list_backups(search="eb 1 Ü", vm_group="nightly")) == [7, 1]
    assert numbers(filled.list_backups(search="über_straße")) == [21]
    assert numbers(filled.list_backups(search="0% O")) == [22]
    assert numbers(filled.list_backups(search="A_B")) == [23]
    assert filled.list_backups(search="%") == filled.list_backups(search="50%")
    assert filled.list_backups(search="guid") == []
    assert [vm.vm_name for vm in filled.find_vms("eR_s")] == ["ÜBER_STRASSE"]
    assert [vm.vm_name for vm in filled.find_vms("b", limit=4)] == ["a_b", "aXb", "Web 0 ü", "Web 0 ü"]


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_pages_give_each_backup_once_however_many_share_a_moment(filled: Catalog, limit: int) -> None:
    filled.record_backups(
        backup(12, vc_guid=f"guid-{name}", media_agent=agent) for name in "abc" for agent in "xy"
    )
    everything = filled.list_backups()
    assert len(everything) == 18
    found, after = [], None
    while page := filled.list_backups(after=after, limit=limit):
        found += page
        after = page[-1].place
    assert found == everything
    assert filled.list_backups(after=everything[3].place, vm_group="nightly", limit=1) == [
        next(row for row in everything[4:] if row.vm_group == "nightly")
    ]


def test_a_search_for_what_many_names_have_gives_the_newest(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.record_backups(backup(number, vm_name=f"Web {number:04}") for number in range(40))
    few = catalog.list_backups(search="WEB", limit=7)
    monkeypatch.setattr("safehaul.catalog.catalog.MANY_NAMES", 10)
    assert catalog.list_backups(search="WEB", limit=7) == few
    assert numbers(few) == list(range(39, 32, -1))
    assert numbers(catalog.list_backups(search="web 002", limit=7)) == list(range(29, 22, -1))


def test_sums_are_those_of_the_listed_rows(filled: Catalog) -> None:
    filled.record_backups([backup(13, status="Partial"), backup(14, media_agent="copy")])
    for since, until, group in [
        (None, None, None),
        (moment(5), None, None),
        (None, moment(5), "weekly"),
        (moment(4), moment(9), "nightly"),
    ]:
        rows = filled.list_backups(since=since, until=until, vm_group=group)
        sums = filled.sums(since=since, until=until, vm_group=group)
        assert sum(item.backups for item in sums) == len(rows) > 0
        assert sum(item.read_bytes for item in sums) == sum(row.read_bytes for row in rows)
        assert sum(item.stored_bytes for item in sums) == sum(row.stored_bytes for row in rows)
        assert sum(item.capacity_bytes for item in sums) == sum(row.capacity_bytes for row in rows)
        assert max(item.newest for item in sums) == rows[0].committed
        assert min(item.oldest for item in sums) == rows[-1].committed
        keys = [(item.media_agent, item.vm_group, item.status) for item in sums]
        assert keys == sorted({(row.media_agent, row.vm_group, row.status) for row in rows})


def test_a_removed_backup_is_gone_and_its_vm_with_the_last_one(filled: Catalog) -> None:
    ids = {number: backup(number).backup_id for number in range(1, 13)}
    assert filled.known_backups("vault", "guid-1") == {ids[number] for number in (1, 4, 7, 10)}
    assert filled.remove_backups("vault", "guid-1", [ids[1], ids[4], ids[2], "another"]) == 2
    assert filled.remove_backups("copy", "guid-1", [ids[7]]) == 0
    assert numbers(filled.list_backups(vm="guid-1")) == [10, 7]
    assert filled.known_vms("vault") == {"guid-0", "guid-1", "guid-2"}
    assert filled.remove_backups("vault", "guid-1", [ids[7]]) == 1
    kept = VmRow(media_agent="vault", vc_guid="guid-1", vm_group="weekly", vm_name="Web 1 ü")
    assert filled.find_vms("web 1") == [kept]
    assert filled.remove_backups("vault", "guid-1", [ids[10]]) == 1
    assert filled.find_vms("web 1") == []
    assert filled.known_vms("vault") == {"guid-0", "guid-2"}
    filled.record_backup(backup(1))
    assert numbers(filled.list_backups(search="web 1")) == [1]


def test_jobs_are_found_by_each_filter(catalog: Catalog) -> None:
    for number in range(1, 6):
        catalog.record_job(job(number), [job_vm(number, "b"), job_vm(number, "a", f"node-{number}")])
    catalog.record_job(job(6, vm_group="weekly", coordinator="node-9", status="Failed"), [])
    assert [row.job_id[4:] for row in catalog.list_jobs()] == ["6", "5", "4", "3", "2", "1"]
    assert [row.job_id[4:] for row in catalog.list_jobs(vm_group="nightly", limit=2)] == ["5", "4"]
    assert [row.job_id[4:] for row in catalog.list_jobs(status="Failed")] == ["6"]
    assert [row.job_id[4:] for row in catalog.list_jobs(node="node-9")] == ["6"]
    assert [row.job_id[4:] for row in catalog.list_jobs(node="node-3")] == ["3"]
    assert [row.job_id[4:] for row in catalog.list_jobs(since=moment(5))] == ["6", "5"]
    assert [vm.vm_name for vm in catalog.job_vms("job-3")] == ["a", "b"]
    assert catalog.known_jobs(["job-1", "job-7"]) == {"job-1"}


def test_texts_are_in_the_order_of_their_bytes(catalog: Catalog) -> None:
    """A language's rules put `a` before `B`, and `-` nowhere: two catalogues of one repository would list otherwise."""
    names = ["B", "a", "a-b", "ab", "É", "z"]
    catalog.record_backups(backup(1, vc_guid=name, backup_id=name) for name in reversed(names))
    assert [row["vc_guid"] for row in catalog.export()] == sorted(names)
    assert [row.vc_guid for row in catalog.list_backups()] == sorted(names, reverse=True)
    catalog.record_job(job(1), [job_vm(1, name) for name in reversed(names)])
    assert [vm.vm_name for vm in catalog.job_vms("job-1")] == sorted(names)


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


def test_processes_that_open_and_write_an_empty_database_at_once_do_not_fail(catalog_url: str) -> None:
    program = (
        "import sys\n"
        "from safehaul.catalog.catalog import Catalog\n"
        "from tests.contract.catalog_rows import backup\n"
        "catalog = Catalog(sys.argv[1])\n"
        "for number in range(20):\n"
        "    catalog.record_backup(backup(number, media_agent=sys.argv[2]))\n"
        "    catalog.record_backup(backup(number, status='Partial'))\n"
        "catalog.close()\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, catalog_url, str(number)]) for number in range(3)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    catalog = Catalog(catalog_url)
    assert len(catalog.list_backups()) == 80
    catalog.close()


def test_threads_that_write_and_remove_one_vms_backups_leave_rows_and_vms_agreeing(catalog: Catalog) -> None:
    def work(number: int) -> None:
        for _ in range(15):
            catalog.record_backups([backup(number), backup(number + 3)])
            catalog.remove_backups(
                "vault", "guid-1", [backup(number).backup_id, backup(number + 3).backup_id]
            )
        if number == 7:
            catalog.record_backup(backup(number))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, (1, 7, 13)))
    assert numbers(catalog.list_backups()) == [7]
    assert numbers(catalog.list_backups(search="web")) == [7]


def test_a_refused_row_is_an_error_of_ours_and_changes_nothing(catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"(?i)cannot be written: .*unique.*catalog rebuild"):
        catalog.record_job(job(1), [job_vm(1, "a"), job_vm(1, "a")])
    assert catalog.list_jobs() == []
