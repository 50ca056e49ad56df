"""What the web UI shows of a job and of a VM: readable, bounded, and no VM's name is ever markup."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote

from safehaul.messages.job import JobStatus
from safehaul.messages.progress import JobProgress, NodeProgress, VmProgress
from safehaul.messages.vm import DiskReport, VmReport, VmStatus
from workflows.job_details import job_details
from workflows.markdown import MAX_ENCODED_BYTES, cell
from workflows.vm_details import VmScene, vm_details

NOW = datetime(2026, 11, 25, 10, 0, tzinfo=UTC)
HOSTILE = "x](javascript:alert(1)) ![i](http://evil) <b>| `www.evil` \n# head *b*"


def test_a_name_can_neither_link_nor_break_the_table() -> None:
    shown = cell(HOSTILE)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[\[\]<>|`*#!]", shown), shown
    assert "://" not in shown
    assert "www.e" not in shown


def _progress(running: int) -> JobProgress:
    return JobProgress(
        job_id="j",
        vm_group="nightly",
        status=JobStatus.RUNNING,
        stage="backing up",
        running=[
            VmProgress(
                name=f"{HOSTILE} {number}",
                vc_guid=f"vc.{number}",
                node="n1",
                child_id=f"nightly-1/0123/vc.{number}",
                started_at=NOW,
            )
            for number in range(running)
        ],
        nodes=[NodeProgress(name="n2", streams=2, lost=True)],
        recent=[
            VmReport(
                vc_guid="g", name=f"web-{number}", status=VmStatus.FAILED, reason="r" * 5000, child_id="c"
            )
            for number in range(10)
        ],
        left_out=["l" * 5000] * 100,
    )


def test_a_large_job_stays_within_what_a_web_server_passes_on() -> None:
    shown = job_details(_progress(1000), "default")
    assert len(quote(shown)) <= MAX_ENCODED_BYTES + 50
    assert "1000 running" in shown
    assert "… 990 more" in shown


def test_the_jobs_table_links_each_vm_and_names_silent_nodes() -> None:
    shown = job_details(_progress(1), "name space")
    assert "(/namespaces/name%20space/workflows/nightly-1%2F0123%2Fvc.0)" in shown
    assert "n2: does not answer" in shown
    newest = shown.index("[web-9]")
    assert newest < shown.index("[web-8]"), "the newest end comes first"


def test_a_paused_job_and_a_paused_vm_say_since_when() -> None:
    shown = job_details(_progress(1).model_copy(update={"paused_since": NOW}), "default")
    assert "Paused since 2026-11-25 10:00:00 UTC: no VM is given out" in shown
    assert "Paused" not in job_details(_progress(1), "default")
    scene = replace(_scene(None), paused="Paused since 2026-11-25 10:00:00 UTC: no snapshot is held")
    assert "no snapshot is held" in vm_details(scene)


def _scene(report: VmReport | None) -> VmScene:
    disks = [
        DiskReport(key=1, label="Hard disk 1", transport="nas", bytes_capacity=1 << 30, bytes_read=1 << 20),
        DiskReport(key=2, label="Hard disk 2", transport="nas", bytes_capacity=1 << 30),
        DiskReport(key=3, label="Hard disk 3", transport="none", reason="it is independent"),
    ]
    return VmScene(
        name="web",
        node="n1",
        step=11,
        stage="reading Hard disk 2",
        snapshot="`snapshot-1`: held",
        disks=disks,
        read=frozenset({1}),
        seconds={"6": 0.5},
        warnings=["w"],
        rejected=["signal 'halt' does not exist"],
        report=report,
    )


def test_a_vms_table_tells_each_disks_state() -> None:
    shown = vm_details(_scene(None)).replace("\N{NO-BREAK SPACE}", " ").replace("\N{EM SPACE}", "")
    assert "step 11: reading Hard disk 2" in shown
    assert "snapshot-1`: held" in shown
    assert "| Hard disk 1 | 1.0 GiB | 1.0 MiB | 0 B | read |" in shown
    assert "| Hard disk 2 | 1.0 GiB | – | – | reading |" in shown
    assert "skipped: it is independent" in shown
    assert "- signal 'halt' does not exist" in shown


def test_a_vms_end_is_shown_with_its_reason_and_backup() -> None:
    report = VmReport(
        vc_guid="vc.vm", name="web", status=VmStatus.FAILED, reason="step 11: full", backup_id="b"
    )
    shown = vm_details(_scene(report))
    assert "**Failed**: step 11: full" in shown
    assert "`vc.vm/b`" in shown
    assert "reading" not in shown
