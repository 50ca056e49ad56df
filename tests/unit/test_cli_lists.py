"""Lists, checks and completion of the command line: filters that fit, exit codes, nothing that breaks a shell."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.processes import tool
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow, JobRow, JobVmRow
from safehaul.errors import InvalidInputError
from tests.unit.test_cli import ALL, CHUNK, _flip, backup, config
from workers.cli import output
from workers.cli.app import run
from workers.cli.job_list import ListedJob, Wanted, merged
from workers.cli.times import parse_since

__all__ = ["backup", "config"]

WITHOUT_JSON = {
    ("worker", "commserve"),
    ("worker", "access-node"),
    ("worker", "media-agent"),
    ("disk", "cat"),
}
"""Workers run until they are ended, and log; `disk cat` writes a disk's bytes."""


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_every_command_that_shows_or_does_something_has_json(capsys: pytest.CaptureFixture[str]) -> None:
    missing = set()
    for command in ALL:
        assert run([*command, "--help"]) == 0
        if "--json" not in capsys.readouterr().out:
            missing.add(command)
    assert missing == WITHOUT_JSON


def _job(number: int, **changes: object) -> JobRow:
    values: dict[str, object] = {
        "job_id": f"id-{number}",
        "workflow_id": f"nightly-{number}",
        "vm_group": "nightly",
        "status": "Completed",
        "coordinator": "n1",
        "started": f"2026-11-{number:02}T01:00:00+00:00",
        "ended": f"2026-11-{number:02}T01:01:30+00:00",
        "vms": 3,
        "completed": 3,
        "read_bytes": 3 << 20,
    }
    return JobRow.model_validate(values | changes)


@pytest.fixture
def jobs(config: Path) -> Path:
    catalog = Catalog(f"sqlite:///{config.parent}/catalog.db")
    vm = JobVmRow(job_id="id-2", vc_guid="vc.1", vm_name="web", status="Completed", access_node="n7")
    catalog.record_job(_job(1), [])
    catalog.record_job(_job(2, status="Partial"), [vm])
    catalog.record_job(_job(3, vm_group="weekly", coordinator="n2"), [])
    catalog.close()
    return config


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["nightly-3", "nightly-2", "nightly-1"]),
        (["--group", "nightly"], ["nightly-2", "nightly-1"]),
        (["--status", "partial"], ["nightly-2"]),
        (["--since", "2026-11-02"], ["nightly-3", "nightly-2"]),
        (["--node", "n7"], ["nightly-2"]),
        (["--node", "n2"], ["nightly-3"]),
        (["--limit", "1"], ["nightly-3"]),
        (["--running"], []),
        (["--group", "nightly", "--status", "completed", "--node", "n1"], ["nightly-1"]),
    ],
)
def test_past_jobs_are_filtered(
    jobs: Path, filters: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(jobs), "job", "list", "--past", "--json", *filters]) == 0
    assert [job["workflow_id"] for job in _json(capsys)] == expected


def test_the_list_reads_well_and_an_empty_one_says_what_to_do(
    jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(jobs), "job", "list", "--past"]) == 0
    shown = capsys.readouterr().out
    assert "1 min 30 s" in shown
    assert "3.0 MiB" in shown
    assert run(["--config", str(jobs), "job", "list", "--past", "--group", "none"]) == 0
    assert "safehaul job start" in capsys.readouterr().out


def test_a_server_that_is_not_there_ends_with_5_and_names_the_way_without(
    jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(jobs), "job", "list"]) == 5
    assert "--past" in capsys.readouterr().err


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_a_name_never_becomes_part_of_a_query(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no name"):
        Wanted(vm_group=name)
    with pytest.raises(InvalidInputError, match="no name"):
        Wanted(node=name)


def test_running_jobs_come_first_then_the_newest() -> None:
    def job(name: str, status: str, day: int) -> ListedJob:
        started = datetime(2026, 11, day, tzinfo=UTC)
        return ListedJob(workflow_id=name, job_id=name, status=status, started=started)

    ended, running = [job("a", "Failed", 3), job("b", "Completed", 1)], [job("c", "Running", 2)]
    assert [item.workflow_id for item in merged([ended, running], 2)] == ["c", "a"]


def test_since_is_a_span_or_a_time() -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert parse_since(None) is None
    assert parse_since("90m", now) == datetime(2026, 11, 25, 10, 30, tzinfo=UTC)
    assert parse_since("1w", now) == datetime(2026, 11, 18, 12, tzinfo=UTC)
    assert parse_since("2026-11-25T18:00") == datetime(2026, 11, 25, 18, tzinfo=UTC)
    assert parse_since("2026-11-25T18:00+02:00") == datetime(2026, 11, 25, 16, tzinfo=UTC)
    for wrong in ("yesterday", "7", "-1d", "999999w", "", "1d; drop"):
        with pytest.raises(InvalidInputError, match="--since"):
            parse_since(wrong, now)


def test_a_backup_is_verified_alone_and_with_all_of_its_vm(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", str(config), "backups", "verify"]
    assert run([*base, backup]) == 0
    assert "sound" in capsys.readouterr().out
    assert run(["--config", str(config), "catalog", "rebuild"]) == 0
    capsys.readouterr()
    for vm in ("web", "vc.vm"):
        assert run([*base, vm, "--all", "--json"]) == 0
        (found,) = _json(capsys)
        assert found["sound"] is True
        assert found["bytes_read"] >= CHUNK + 512
    assert run([*base, "other", "--all"]) == 2
    assert "backups list" in capsys.readouterr().err
    assert run([*base, "vc.vm/none"]) == 1
    assert "no backup none" in capsys.readouterr().err


def test_damage_is_named_by_disk_and_offset_and_ends_with_1(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (config.parent / "repository" / "packs").rglob("*"):
        if path.is_file():
            _flip(path, 100)
    base = ["--config", str(config), "backups", "verify"]
    assert run([*base, backup, "--json"]) == 1
    (found,) = _json(capsys)
    assert found["sound"] is False
    assert found["damage"]
    assert run([*base, "vc.vm", "--all"]) == 1
    shown = capsys.readouterr().out
    assert "DAMAGED" in shown
    assert "back the VM up again" in shown


def test_two_vms_of_one_name_must_be_told_apart(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = Catalog(f"sqlite:///{config.parent}/catalog.db")
    for guid in ("vc.1", "vc.2"):
        catalog.record_backup(
            BackupRow(
                vc_guid=guid,
                backup_id="b",
                vm_name="twin",
                vm_group="g",
                job_id="j",
                media_agent="vault",
                status="Completed",
                committed="20261101T000000Z",
            )
        )
    catalog.close()
    for what in (["twin", "--all"], ["twin/latest"]):
        assert run(["--config", str(config), "backups", "verify", *what]) == 2
        assert "vc.1, vc.2" in capsys.readouterr().err


def test_the_newest_backup_of_a_vm_is_called_latest(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", str(config)]
    assert run([*base, "backups", "verify", "web/latest"]) == 2
    assert "no backup of a VM 'web'" in capsys.readouterr().err
    catalog = Catalog(f"sqlite:///{config.parent}/catalog.db")
    vc_guid, backup_id = backup.split("/")
    for row_id, committed in (("20260101T000000Z-a", "20260101T000000Z"), (backup_id, "20260102T000000Z")):
        for guid, name in ((vc_guid, "web"), ("vc.3", "web 100% / blue")):
            catalog.record_backup(
                BackupRow(
                    vc_guid=guid,
                    backup_id=row_id,
                    vm_name=name,
                    vm_group="g",
                    job_id="j",
                    media_agent="vault",
                    status="Completed",
                    committed=committed,
                )
            )
    catalog.close()
    assert run([*base, "backups", "list", "--vm", "web", "--ids"]) == 0
    assert capsys.readouterr().out == f"{backup}\n{vc_guid}/20260101T000000Z-a\n"
    for vm in ("web", vc_guid):
        assert run([*base, "backups", "verify", f"{vm}/latest", "--json"]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out)[0]["backup_id"] == backup_id
        assert f"{vm}/latest is {backup}, Completed, committed 20260102T000000Z" in told.err
    assert run([*base, "backups", "show", "web 100% / blue/latest"]) == 1
    assert "there is no backup" in capsys.readouterr().err, "the row is older than the repository"
    target = config.parent / "latest.raw"
    assert run([*base, "restore", "disk", "web/latest", "2000", "--to", str(target)]) == 0
    assert target.exists()


@pytest.fixture
def offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """What bash would offer at the end of a line; nothing may go to stderr."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_SAFEHAUL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        capsys.readouterr()
        assert run([]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return [item for item in shown.out.splitlines() if item]

    return ask


def test_the_shell_is_offered_groups_nodes_jobs_and_backups(
    jobs: Path, backup: str, offered: Callable[[str], list[str]]
) -> None:
    assert run(["--config", str(jobs), "catalog", "rebuild"]) == 0
    begin = f"safehaul --config {jobs}"
    assert offered(f"{begin} job start n") == ["nightly"]
    assert offered(f"{begin} worker access-node ") == ["n1"]
    assert offered(f"{begin} job watch nightly-") == ["nightly-3", "nightly-2", "nightly-1"]
    assert offered(f"{begin} backups verify vc") == [backup]
    assert offered(f"{begin} backups list --vm w") == ["web"]


def test_completion_without_a_configuration_offers_nothing_and_prints_nothing(
    offered: Callable[[str], list[str]],
) -> None:
    assert offered("safehaul --config /nowhere.toml job watch ") == []
    assert offered("safehaul --config /nowhere.toml repo info --media-agent ") == []


def test_the_installed_command_completes_itself() -> None:
    environment = dict(os.environ) | {"_SAFEHAUL_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "safehaul jo", "COMP_CWORD": "1"}
    command = [tool("safehaul")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert (done.stdout.split(), done.stderr) == (["job"], "")
    environment["_SAFEHAUL_COMPLETE"] = "source_bash"
    script = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert "complete -o default -F _safehaul_completion safehaul" in script.stdout


def test_a_narrow_terminal_breaks_no_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backup_id = f"{'a' * 36}.{'b' * 36}/20261126T112712Z-0011223344556677"
    rows = [("数据库 main", "1.2 MiB", backup_id), ("[red]x", "13.0 MiB", "")]
    monkeypatch.setattr(output, "console", lambda: Console(width=80, highlight=False))
    output.table(["VM", "stored>", "backup"], rows)
    assert capsys.readouterr().out.splitlines() == [
        "VM             stored  backup",
        "数据库 main   1.2 MiB",
        f"    {backup_id}",
        "[red]x       13.0 MiB",
    ]
    monkeypatch.setattr(output, "console", lambda: Console(width=200, highlight=False))
    output.table(["VM", "stored>", "backup"], rows)
    shown = capsys.readouterr().out
    assert f"│ {backup_id} │" in shown
    assert "│ [red]x " in shown
