"""The live table: fits the terminal with a thousand VMs, puts trouble first, tells pace and time left."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client

from safehaul.messages.job import JobStatus, JobTotals
from safehaul.messages.progress import JobProgress, NodeProgress, TransferBeat, VmProgress
from safehaul.messages.vm import VmReport, VmStatus
from tests.replay.test_golden_names import ACTIVITIES
from workers.cli.job_pace import Measure, Pace
from workers.cli.job_table import live_table
from workers.cli.job_view import LiveView
from workers.cli.vm_looks import BESIDE, DOING, LOOKS_PER_RENEWAL, VmLook, VmLooks, look_at

NOW = datetime.now(UTC)
MIB = 1 << 20
STATE = PendingActivityState


def _progress(running: int, nodes: int = 4, lost: str = "") -> JobProgress:
    return JobProgress(
        job_id="j",
        vm_group="nightly",
        status=JobStatus.RUNNING,
        stage="backing up",
        started_at=NOW - timedelta(seconds=75),
        coordinator="node-00",
        waiting=500,
        running=[
            VmProgress(
                name=f"vm-{number:04}",
                vc_guid=f"vc.{number}",
                node=f"node-{number % nodes:02}",
                child_id=f"c{number}",
                started_at=NOW - timedelta(seconds=number),
                capacity_bytes=64 * MIB,
            )
            for number in range(running)
        ],
        nodes=[
            NodeProgress(name=f"node-{number:02}", streams=250, lost=f"node-{number:02}" == lost)
            for number in range(nodes)
        ],
        totals=JobTotals(vms=200, completed=190, failed=10),
        capacity_bytes=1700 * 64 * MIB,
        capacity_ended_bytes=200 * 64 * MIB,
        recent=[
            VmReport(vc_guid=f"g{n}", name=f"done-{n}", status=VmStatus.FAILED, reason="x\ny" * 200)
            for n in range(10)
        ],
        left_out=["node-99: did not answer"] * 50,
    )


def _shown(progress: JobProgress, looks: Any, *, height: int = 40, width: int = 120) -> str:
    screen = Console(width=width, height=height, force_terminal=False, record=True, file=None)
    with screen.capture() as capture:
        screen.print(live_table(progress, looks, Measure(3 * MIB, 12 * MIB, MIB), height=height, width=width))
    return capture.get()


def test_a_paused_job_says_what_its_vms_wait_for() -> None:
    """Between two steps a VM waits for the CommServe, unless somebody has paused its job."""
    progress = _progress(2).model_copy(update={"paused_since": NOW})
    reading = VmLook(step=11, doing="reading Hard disk 1", waits_for="filer")
    shown = _shown(progress, {"c0": VmLook(), "c1": reading}.get)
    assert "the job's resume" in shown
    assert "reading Hard disk 1" in shown
    assert "the job's resume" not in _shown(_progress(2), {"c0": VmLook(), "c1": reading}.get)


@pytest.mark.parametrize(("height", "width"), [(24, 80), (40, 120), (60, 200)])
@pytest.mark.parametrize("nodes", [1, 4, 60])
def test_a_thousand_running_vms_fit_the_terminal(height: int, width: int, nodes: int) -> None:
    shown = _shown(_progress(1000, nodes), lambda _: None, height=height, width=width)
    lines = shown.splitlines()
    assert len(lines) <= height
    troubled = VmLook(step=8, doing="checking the transport", trouble="EACCES " * 100)
    assert (
        len(_shown(_progress(1000, nodes), lambda _: troubled, height=height, width=width).splitlines())
        <= height
    )
    assert max(len(line) for line in lines) <= width
    assert "1700 VMs: 500 waiting, 1000 running, 200 ended (190 completed, 10 failed)" in shown
    assert "25 %" in shown
    assert "about 9 s left" in shown


def test_trouble_comes_first_and_the_rest_is_counted_at_its_node() -> None:
    def looks(child_id: str) -> VmLook | None:
        trouble = "try 3 of 20: ESTALE on [ds] web.vmdk" * 5 if child_id == "c3" else ""
        return VmLook(step=11, doing="reading Hard disk 1", waits_for="filer", trouble=trouble)

    shown = _shown(_progress(1000), looks, width=160)
    assert "vm-0003: try 3 of 20" in shown
    assert "try 3 of 20: ESTALE" in shown
    assert "of them not shown" in shown
    row = next(line for line in _shown(_progress(1000), looks, width=100).splitlines() if "vm-0003" in line)
    assert "11 reading Hard disk 1" in row, "a long reason takes no room from what happens"


def test_a_silent_node_is_named() -> None:
    shown = _shown(_progress(8, nodes=60, lost="node-59"), lambda _: None)
    assert "node-59" in shown
    assert "does not answer" in shown


def test_a_vms_row_tells_step_progress_rate_and_what_it_waits_for() -> None:
    beat = TransferBeat(disk="Hard disk 2", done_bytes=16 * MIB, capacity_bytes=64 * MIB, waits_for="filer")
    look = VmLook(
        step=11, doing="reading Hard disk 2", waits_for="filer", beat=beat, beat_at=NOW, rate=3.0 * MIB
    )
    shown = _shown(_progress(1, nodes=1), lambda _: look, width=160)
    row = next(line for line in shown.splitlines() if "vm-0000" in line)
    for piece in ("11 reading Hard disk 2", "25 % of 64.0 MiB", "3.0 MiB/s", "filer"):
        assert piece in row
    node = next(line for line in shown.splitlines() if "node-00" in line and "streams" in line)
    assert "1 running of 250 streams" in node
    assert "3.0 MiB/s" in node


def test_the_pace_is_measured_over_the_disks_and_gives_the_time_left() -> None:
    progress = _progress(0).model_copy(update={"capacity_bytes": 100 * MIB, "capacity_ended_bytes": 0})
    pace = Pace()
    assert pace.measure(progress, lambda _: None, now=0.0).bytes_per_s is None
    later = progress.model_copy(update={"capacity_ended_bytes": 20 * MIB})
    measured = pace.measure(later, lambda _: None, now=10.0)
    assert measured.bytes_per_s == 2 * MIB
    assert measured.left_s == 40
    assert measured.text() == "20.0 MiB of 100.0 MiB · 2.0 MiB/s · about 40 s left"


def _pending(state: int, **fields: Any) -> PendingActivityInfo:
    info = PendingActivityInfo(state=cast("Any", state), attempt=1, maximum_attempts=20, **fields)
    info.activity_type.name = "transfer_disk"
    return info


def _stamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return stamp


def test_what_a_vm_waits_for_is_told_of_each_state() -> None:
    untaken = look_at(_pending(STATE.PENDING_ACTIVITY_STATE_SCHEDULED, scheduled_time=_stamp(-12)), None)
    assert untaken.waits_for == "a worker to take it, for 12 s"
    failed = _pending(STATE.PENDING_ACTIVITY_STATE_SCHEDULED, next_attempt_schedule_time=_stamp(8.4))
    failed.last_failure.message, failed.attempt = "the filer is busy", 3
    again = look_at(failed, None)
    assert again.waits_for == "its next try, in 8 s"
    assert again.trouble == "try 3 of 20: the filer is busy"
    silent = look_at(_pending(STATE.PENDING_ACTIVITY_STATE_STARTED, last_heartbeat_time=_stamp(-15)), None)
    assert (silent.waits_for, silent.trouble) == ("filer", "no sign of life for 15 s")
    assert look_at(_pending(STATE.PENDING_ACTIVITY_STATE_STARTED, paused=True), None).waits_for.startswith(
        "somebody"
    )
    stopping = look_at(_pending(STATE.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED), None)
    assert stopping.waits_for == "a safe point to stop"
    assert look_at(None, None).waits_for == "CommServe"


def test_every_step_of_a_vm_has_its_words() -> None:
    owners = ("Snapshots", "Transport", "Transfers", "AccessNodeIndexing", "MediaAgentIndexing")
    steps = {name for owner, names in ACTIVITIES.items() if owner.__name__ in owners for name in names}
    assert DOING.keys() == steps - BESIDE | {"ask_for_vm"}


class CountingClient:
    """A fake: answers Describe for any workflow, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_workflow_handle(self, name: str) -> Any:
        async def describe(**_options: Any) -> Any:
            self.asked.append(name)
            return SimpleNamespace(raw_description=SimpleNamespace(pending_activities=[]))

        return SimpleNamespace(describe=describe)


def test_the_server_is_asked_about_so_many_vms_a_second_and_all_have_their_turn() -> None:
    client = CountingClient()
    looks = VmLooks(cast("Client", client))
    running = _progress(100).running
    for renewal in range(1, 6):
        asyncio.run(looks.renew(running))
        assert len(client.asked) == renewal * LOOKS_PER_RENEWAL
    assert set(client.asked) == {vm.child_id for vm in running}
    asyncio.run(looks.renew(running))
    assert len(client.asked) == 100, "nothing new can be seen so soon"


def test_a_log_gets_plain_lines_each_change_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = _progress(2)

    def looks(child_id: str) -> VmLook | None:
        return (
            VmLook(step=8, doing="checking the transport", trouble="try 2: EACCES")
            if child_id == "c0"
            else None
        )

    with LiveView(quiet=False) as view:
        view.update(progress, looks)
        view.update(progress, looks)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count("vm-0000 on node-00: checking the transport: try 2: EACCES") == 1
    assert printed.count("done-9 on no node: Failed") == 1
    assert printed.count("2 running, 500 waiting") == 1
