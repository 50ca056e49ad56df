"""The demo must be able to fail: each thing that it promises is broken once; its checks and its exit code say so."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lab.proof
from lab.datacentre import DataCentre
from lab.proof import Witness
from lab.site import demo_site
from tests.e2e.site import data_centre, run_job
from workers.cli.demo import Demo
from workers.cli.demo_checks import Checks

pytestmark = pytest.mark.slow
VMS = 3
EQUAL = "  ✓ the disks of 3 backups equal the frozen point in time, byte for byte"
NOTHING_LEFT = "  ✓ no snapshot and no file left behind, foreign snapshots untouched"


@dataclass
class Stage:
    """The demo's data centre after its job, and what the demo's checks say of it."""

    lab: DataCentre
    report: dict[str, Any]
    served_bytes: int

    def checks(self) -> tuple[Checks, list[str]]:
        said: list[str] = []
        return Checks(self.lab, said.append), said


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with data_centre(demo_site(VMS)) as started:
        started.start_workers()
        before = started.served_bytes()
        report = run_job(started, "demo-1")
        yield Stage(started, report, started.served_bytes() - before)


@pytest.mark.requires_debian("mke2fs", package="e2fsprogs")
def test_what_is_true_passes(stage: Stage) -> None:
    checks, said = stage.checks()
    witness = Witness(stage.lab.hosts, stage.lab.state / "datastores")
    checks.job(stage.report, VMS, stage.served_bytes)
    checks.disks(stage.report)
    checks.nothing_left(witness)
    assert checks.failures == []
    assert EQUAL in said
    assert NOTHING_LEFT in said
    assert "  ✓ e2fsck finds the file systems of 1 disks clean" in said


def test_a_missing_vm_and_bytes_that_nobody_served_fail(stage: Stage) -> None:
    checks, said = stage.checks()
    checks.job(stage.report, VMS + 1, stage.served_bytes // 2)
    missing, served = checks.failures
    assert "the report tells of 3 VMs of 4" in missing
    assert "(0.50" in served
    assert said == []


def test_a_wrong_byte_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of each restored image is not what was stored."""
    restore = stage.lab.safehaul

    def flipping(*arguments: str, **options: Any) -> str:
        printed = restore(*arguments, **options)
        with Path(arguments[-1]).open("r+b") as image:
            image.seek(5_000_000)
            (byte,) = image.read(1)
            image.seek(5_000_000)
            image.write(bytes([byte ^ 1]))
        return printed

    monkeypatch.setattr(stage.lab, "safehaul", flipping)
    checks, said = stage.checks()
    checks.disks(stage.report)
    assert (
        "Büro Server 01, Hard disk 1: the bytes are not those of the frozen point in time" in checks.failures
    )
    assert EQUAL not in said


def test_a_report_that_lost_a_disk_fails(stage: Stage) -> None:
    report = copy.deepcopy(stage.report)
    next(vm for vm in report["vms"] if len(vm["disks"]) > 1)["disks"].pop()
    checks, said = stage.checks()
    checks.disks(report)
    assert checks.failures == [
        "Büro Server 01, Hard disk 2: frozen, neither stored nor skipped with a reason"
    ]
    assert EQUAL not in said


@pytest.mark.requires_debian("mke2fs", package="e2fsprogs")
def test_without_e2fsck_file_systems_are_said_not_to_be_checked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lab.proof, "E2FSCK_PATH", str(tmp_path))
    checks, said = stage.checks()
    checks.disks(stage.report)
    assert checks.failures == []
    (line,) = [line for line in said if "e2fsck" in line]
    assert line.startswith("  – the file systems of 1 disks: not checked: e2fsck is not installed")


def test_a_leftover_snapshot_fails(stage: Stage) -> None:
    hosts = stage.lab.hosts
    witness = Witness(hosts, stage.lab.state / "datastores")
    vm = next(vm for vm in hosts.state().vms if vm.name == "files")
    task = hosts.wait_task(hosts.create_snapshot(vm.moref, "safehaul forgot me").task)
    checks, said = stage.checks()
    checks.nothing_left(witness)
    assert any("('safehaul forgot me') is left behind" in line for line in checks.failures)
    assert any("-000001-delta.vmdk is left behind" in line for line in checks.failures)
    assert said == []
    hosts.wait_task(hosts.remove_snapshot(str(task.result)).task)
    checks, said = stage.checks()
    checks.nothing_left(witness)
    assert (checks.failures, said) == ([], [NOTHING_LEFT])


def test_a_touched_foreign_snapshot_fails(stage: Stage) -> None:
    hosts = stage.lab.hosts
    witness = Witness(hosts, stage.lab.state / "datastores")
    (foreign,) = [item for vm in hosts.state().vms for item in vm.snapshots]
    hosts.wait_task(hosts.remove_snapshot(foreign.moref).task)
    checks, said = stage.checks()
    checks.nothing_left(witness)
    assert any("foreign snapshot" in line and "was touched" in line for line in checks.failures)
    assert said == []


class Meddled(Demo):
    """The demo, during which somebody starts a process in its directory."""

    stray: subprocess.Popen[bytes] | None = None

    def _restore_one(self, report: dict[str, Any]) -> None:
        super()._restore_one(report)
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        self.stray = subprocess.Popen(command, cwd=self._lab.home, start_new_session=True)


@pytest.fixture
def _own_place(tmp_path: Path) -> Iterator[None]:
    """The demo takes the signals, and makes its directory where temporary files go: both are given back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
    yield
    tempfile.tempdir = before
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_place")
def test_a_leftover_process_fails_the_demo_and_its_exit_code() -> None:
    """In a session of its own: none that the lab has started, knows and ends."""
    said: list[str] = []
    demo = Meddled(VMS, keep=False, say=said.append)
    try:
        assert demo.run() == 1
        assert demo.stray is not None
        failures = [line for line in said if line.startswith("  ✗ ")]
        assert [f"processes are left behind: {demo.stray.pid} " in line for line in failures] == [True], (
            failures
        )
        assert said[-1] == "demo: FAILED"
    finally:
        if demo.stray is not None:
            os.kill(demo.stray.pid, signal.SIGKILL)
            demo.stray.wait()
