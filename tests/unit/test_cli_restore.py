"""The restore commands: what is asked of a person, what is refused at once, and how a restore looks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from safehaul.errors import InvalidInputError
from safehaul.messages.restore import (
    CardReport,
    OldDisk,
    RestoredDisk,
    RestoreKind,
    RestoreProgress,
    RestoreReport,
    RestoreStatus,
)
from workers.cli import restore
from workers.cli.app import run
from workers.cli.restore_calls import _bytes_of
from workers.cli.restore_view import RestoreView, show_report, stage_text

BACKUP = "vc.1/20261123T003839Z-c64f5b959f5192a3"


def test_network_mappings_are_read_one_by_one() -> None:
    pairs = ["VM Network=Isolated", "a=b", "a=b"]
    assert restore.parse_networks(pairs) == {"VM Network": "Isolated", "a": "b"}


@pytest.mark.parametrize("pairs", [["x"], ["=x"], ["x="], ["a=b=c"], ["a=b", "a=c"]])
def test_a_mapping_that_says_no_one_thing_is_refused(pairs: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="--network"):
        restore.parse_networks(pairs)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["vm", BACKUP, "--name", "x"], "datastore: a restore as a new VM needs it"),
        (["vm", BACKUP, "--in-place", "--confirm", "x", "--name", "y"], "name: a restore in place keeps"),
        (["vm", BACKUP, "--in-place"], "--confirm"),
        (["vm", "nonsense", "--name", "x", "--datastore", "y"], "VC.GUID/TIME-ID"),
        (["vm", BACKUP, "--name", "x", "--datastore", "y", "--network", "a"], "--network"),
        (["disk", BACKUP, "2000"], "--to FILE or --to-vm NAME"),
        (["disk", BACKUP, "2000", "--to", "f", "--to-vm", "x"], "--to FILE or --to-vm NAME"),
        (["disk", BACKUP, "2000", "--to", "f", "--datastore", "x"], "--datastore goes with --to-vm"),
    ],
)
def test_a_wrong_use_ends_with_2_before_anything_is_asked(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["restore", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_person_is_asked_for_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def prompt(text: str, **options: Any) -> str:
        asked.append(text)
        assert options["err"], "stdout may be for JSON only"
        return answers.pop()

    monkeypatch.setattr("typer.prompt", prompt)
    answers = ["web"]
    assert restore._confirmed(None) == "web"
    assert "Type the VM's name" in asked[0]
    answers = [""]
    with pytest.raises(InvalidInputError, match="nothing was changed"):
        restore._confirmed(None)
    assert restore._confirmed("given") == "given"


def test_a_disks_bytes_count_once_written_and_once_compared() -> None:
    assert [_bytes_of(["write", 5, 10]), _bytes_of(["compare", 5, 10]), _bytes_of(["vm.vmx"])] == [5, 15, 0]


def test_progress_is_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RestoreProgress(
        stage="writing", name="web", node="n1", disk="[red]d", disks=2, disks_done=1, bytes_total=40
    )
    with RestoreView(quiet=False) as view:
        view.update(progress, 5)
        view.update(progress, 7)
        view.update(None, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["web on n1: writing: [red]d (1 of 2 disks done)", stage_text(None)]
    with RestoreView(quiet=True) as view:
        view.update(progress, 5)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_it_is_a_bar_of_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    progress = RestoreProgress(stage="writing", name="web", disks=1, bytes_done=0, bytes_total=4 * 2**20)
    with RestoreView(quiet=False) as view:
        view.update(progress, 2**20)
        view.update(None, 0)
        view.update(progress, 3 * 2**20)
    assert "3.0/4.0 MiB" in capsys.readouterr().out


def test_a_report_says_what_was_done_and_what_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    disk = RestoredDisk(
        key=2000,
        label="Hard disk 1",
        capacity_bytes=2**20,
        bytes_written=2**19,
        bytes_compared=2**20,
        seconds=1.0,
        path="[ds] web/new.vmdk",
    )
    report = RestoreReport(
        kind=RestoreKind.IN_PLACE,
        status=RestoreStatus.PARTIAL,
        reason="the VM was not powered on: no license",
        backup=BACKUP,
        name="web",
        moref="vm-7",
        disks=[disk],
        cards=[CardReport(label="Network adapter 1", network="VM Network")],
        old_disks=[
            OldDisk(path="[ds] web/old.vmdk", reason="kept"),
            OldDisk(path="[ds] b.vmdk", removed=True),
        ],
        started_at=now,
        ended_at=now,
    )
    show_report(report)
    told = capsys.readouterr().out
    for wanted in (
        "web (vm-7), in place: Partial: the VM was not powered on: no license",
        "[ds] web/new.vmdk",
        "old disk [ds] web/old.vmdk: kept",
        "old disk [ds] b.vmdk: deleted",
        "1.0 MiB written, read back and compared",
    ):
        assert wanted in told
    assert "Network adapter" not in told, "a restore in place leaves the cards alone"
    show_report(report.model_copy(update={"kind": RestoreKind.NEW_VM}))
    assert "by vCenter, later" in capsys.readouterr().out
