"""A job's report outlives everything: the catalogue that is down, the repository that is away, the job nobody led."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import records
from activities.commserve import CommServe
from activities.index import MediaAgentIndexing
from activities.peers import Peers
from activities.records import catalog_job, read_job_report, write_job_report, write_report_page
from safehaul.catalog import database
from safehaul.catalog.catalog import Catalog
from safehaul.config.loader import load
from safehaul.media.manifest import BackupRef, SnapshotRecord, read_index
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.store import open_store
from safehaul.messages.certificate import RemovalCertificate
from safehaul.messages.job import CloseJobInput, JobReport, JobStatus, JobTotals
from safehaul.messages.snapshots import RemovalRecord
from safehaul.messages.steps import BackupSession, CompletionMark, IndexInput, IndexWritten, Removal, VmRef
from safehaul.messages.vm import VmReport, VmStatus
from tests.unit.media_backup import VM, contents, new_session, write_disk
from tests.unit.test_cli import CONFIG
from workers.cli.app import run

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "safehaul.toml"
    path.write_text(CONFIG.format(home=tmp_path, installation=uuid.uuid4()))
    assert run(["--config", str(path), "repo", "init"]) == 0
    return path


@pytest.fixture
def peers(config: Path) -> Iterator[Peers]:
    opened = Peers(load(config))
    yield opened
    opened.close()


@pytest.fixture
def holder(config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """The catalogue stands, and cannot be written while this holds it."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(records, "CATALOG_PAUSE_S", 0.05)
    Catalog(f"sqlite:///{config.parent}/catalog.db").close()
    holder = sqlite3.connect(config.parent / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    yield holder
    holder.close()


def _run(method: Any, arg: Any) -> Any:
    return ActivityEnvironment().run(method, arg)


def _close(media_agent: str = "vault") -> CloseJobInput:
    return CloseJobInput(
        job_id="job-1",
        workflow_id="nightly",
        vm_group="nightly",
        media_agent=media_agent,
        pages=[],
        failure="no access node answers",
        started_at=NOW,
    )


def _commserve(peers: Peers) -> CommServe:
    client: Any = None  # these steps need none
    return CommServe(peers, client)


def _index_of(peers: Peers) -> IndexInput:
    repository = peers.repository("vault")
    image = b"x" * 5000
    session = new_session(repository, "s1")
    write_disk(session, image)
    verify_session(session)
    snapshot = SnapshotRecord(name="s", moref="snapshot-7", created="2026-01-01T00:00:00Z")
    ref = commit(session, contents(image).model_copy(update={"snapshot": snapshot}))
    record = RemovalRecord(
        vm_moref="vm-1",
        name=snapshot.name,
        description="marker",
        morefs=["snapshot-7"],
        started_at="2026-01-01T01:00:00+00:00",
        finished_at="2026-01-01T01:00:05+00:00",
        consolidation_needed_before=False,
        consolidation_needed_after=False,
        files_checked=True,
    )
    vm = VmRef(
        job_id="j", vcenter="vc", vc_guid=VM, name="web 1", moref="vm-1", node="n1", media_agent="vault"
    )
    return IndexInput(
        vm=vm,
        session=BackupSession(session_id="s1"),
        backup_id=ref.backup_id,
        mark=CompletionMark(node="n1", marked_at=NOW, snapshot_absent=True, spool_removed=True),
        removal=Removal(gone=True, moref="snapshot-7", record=record.model_dump(mode="json")),
        report=VmReport(vc_guid=VM, name="web 1", status=VmStatus.COMPLETED, backup_id=ref.backup_id),
    )


def test_step_14_succeeds_without_the_catalogue_and_a_rebuild_brings_the_row(
    config: Path, peers: Peers, holder: sqlite3.Connection
) -> None:
    arg = _index_of(peers)
    written: IndexWritten = _run(MediaAgentIndexing(peers).write_index, arg)
    assert "the catalogue does not list this backup" in written.warnings[0]
    assert "cannot be written now" in written.warnings[0]
    index = read_index(peers.repository("vault"), BackupRef(VM, arg.backup_id))
    assert index is not None
    assert index.status == "Completed"
    made = RemovalCertificate.model_validate(index.certificate)
    assert (made.morefs, made.created_at) == (["snapshot-7"], "2026-01-01T00:00:00Z")
    assert peers.catalog().list_backups() == []
    holder.execute("ROLLBACK")
    assert run(["--config", str(config), "catalog", "rebuild"]) == 0
    assert [row.status for row in peers.catalog().list_backups()] == ["Completed"]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"files_checked": False}, "nobody has looked for its files"),
        ({"tree_after": [{"moref": "snapshot-7", "name": "s"}]}, "still in the VM's tree"),
        ({"name": "another"}, "'another' was removed, and the backup was read from 's'"),
        ({"vm_gone": True}, "left vCenter's inventory"),
        (None, "nobody recorded its snapshot's removal"),
    ],
)
def test_step_14_writes_no_index_without_a_certificate(
    peers: Peers, record: dict[str, Any] | None, told: str
) -> None:
    """The word of step 13 that the snapshot is gone is not enough: what it has seen must prove it."""
    arg = _index_of(peers)
    changed = {} if record is None else arg.removal.record | record
    arg = arg.model_copy(update={"removal": arg.removal.model_copy(update={"record": changed})})
    assert arg.removal.gone
    with pytest.raises(ApplicationError, match=told) as refused:
        _run(MediaAgentIndexing(peers).write_index, arg)
    assert refused.value.non_retryable
    assert read_index(peers.repository("vault"), BackupRef(VM, arg.backup_id)) is None
    assert peers.catalog().list_backups() == []


def test_a_job_that_nobody_led_stands_in_the_repository(peers: Peers) -> None:
    report = _run(_commserve(peers).report_unled_job, _close())
    stored, vms = read_job_report(peers.repository("vault"), "job-1")
    assert (stored, vms) == (report, [])
    assert (stored.status, stored.reason) == (JobStatus.FAILED, "no access node answers")
    assert [row.job_id for row in peers.catalog().list_jobs()] == ["job-1"]
    assert _run(_commserve(peers).report_unled_job, _close()) == report, "the first report stands"


def test_a_job_that_nobody_led_is_reported_without_the_catalogue_or_without_the_repository(
    peers: Peers, holder: sqlite3.Connection
) -> None:
    _run(_commserve(peers).report_unled_job, _close())
    assert read_job_report(peers.repository("vault"), "job-1")[0].workflow_id == "nightly"


def test_a_job_whose_repository_is_away_is_in_the_catalogue(config: Path) -> None:
    (config.parent / "repository").rename(config.parent / "away")
    peers = Peers(load(config))
    report = _run(_commserve(peers).report_unled_job, _close())
    assert report.status == "Failed"
    assert [row.job_id for row in peers.catalog().list_jobs()] == ["job-1"]
    peers.close()


def test_a_job_that_can_be_kept_nowhere_is_an_error(config: Path, holder: sqlite3.Connection) -> None:
    (config.parent / "repository").rename(config.parent / "away")
    peers = Peers(load(config))
    with pytest.raises(Exception, match=r"cannot be kept: .*cannot be written now"):
        _run(_commserve(peers).report_unled_job, _close())
    peers.close()


def _vm(name: str, vc_guid: str, status: VmStatus) -> VmReport:
    return VmReport(vc_guid=vc_guid, name=name, status=status, bytes_read=7, bytes_stored=3)


def test_a_rebuilt_catalogue_has_the_jobs_again(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two VMs that share a VC.GUID are both refused, and both stand in the list."""
    repository = Repository.open(open_store(f"file://{config.parent}/repository"))
    vms = [
        _vm("web", "vc.1", VmStatus.COMPLETED),
        _vm("twin", "vc.2", VmStatus.FAILED),
        _vm("other twin", "vc.2", VmStatus.FAILED),
    ]
    write_report_page(repository, "job-1", "reports/a", vms[:2])
    write_report_page(repository, "job-1", "reports/b", vms[2:])
    totals = JobTotals()
    for vm in vms:
        totals = totals.plus(vm)
    report = write_job_report(
        repository,
        JobReport(
            job_id="job-1",
            workflow_id="nightly",
            vm_group="nightly",
            status=JobStatus.PARTIAL,
            totals=totals,
            vms=vms,
            pages=["reports/a", "reports/b"],
            started_at=NOW,
            ended_at=NOW,
        ),
    )
    repository.close()
    url = f"sqlite:///{config.parent}/catalog.db"
    first = Catalog(url)
    catalog_job(first, report, vms)
    before = first.list_jobs(), first.job_vms("job-1")
    first.close()
    assert len(before[1]) == 3
    for path in config.parent.glob("catalog.db*"):
        path.unlink()
    assert run(["--config", str(config), "catalog", "rebuild"]) == 0
    assert "1 jobs" in capsys.readouterr().out
    second = Catalog(url)
    assert (second.list_jobs(), second.job_vms("job-1")) == before
    second.close()


def test_a_damaged_report_hides_no_other(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = Repository.open(open_store(f"file://{config.parent}/repository"))
    for name in ("a", "b"):
        write_job_report(
            repository,
            JobReport(
                job_id=name,
                workflow_id="nightly",
                vm_group="nightly",
                status=JobStatus.COMPLETED,
                totals=JobTotals(),
                vms=[],
                pages=[],
                started_at=NOW,
                ended_at=NOW,
            ),
        )
    repository.close()
    path = config.parent / "repository" / "jobs" / "a" / "report"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    assert run(["--config", str(config), "catalog", "rebuild"]) == 1
    told = capsys.readouterr().out
    assert "vault: 0 backups, 1 jobs" in told
    assert "job a" in told
