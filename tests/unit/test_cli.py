"""The command line: exit codes that scripts can use, JSON, help that teaches, foreign text made harmless."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import typer.main

from safehaul.media.files import FileWriter
from safehaul.media.manifest import BackupContents, DiskDescription
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import open_session
from safehaul.media.store import LocalStore
from safehaul.media.writer import DiskWriter
from workers.cli.app import app, run
from workers.cli.output import plain, safe, size

CONFIG = """
installation_id = "{installation}"
cache_dir = "{home}/cache"
[temporal]
address = "127.0.0.1:1"
[catalog]
url = "sqlite:///{home}/catalog.db"
[[vcenters]]
name = "vc"
url = "https://vc.example.net"
user = "u"
password = {{ env = "NOT_SET" }}
[[access_nodes]]
name = "n1"
[[media_agents]]
name = "vault"
repository = "file://{home}/repository"
pack_size_bytes = "1 MiB"
[[vm_groups]]
name = "nightly"
vcenter = "vc"
media_agent = "vault"
rules = [{{ name = "*" }}]
"""
CHUNK = 1 << 20
IMAGE = b"\x01" * CHUNK + bytes(CHUNK) + b"\x02" * 512


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "safehaul.toml"
    path.write_text(CONFIG.format(home=tmp_path, installation=uuid.uuid4()))
    return path


@pytest.fixture
def backup(config: Path) -> str:
    """A repository with one backup of one disk; its id as a person writes it."""
    assert run(["--config", str(config), "repo", "init"]) == 0
    return _back_up(config, "s1")


def _back_up(config: Path, name: str) -> str:
    repository = Repository.open(LocalStore(config.parent / "repository"))
    session = open_session(repository, name, vc_guid="vc.vm", vm_name="web", point_in_time="snapshot-1")
    with FileWriter(session) as files:
        files.add("[ds] web/web.vmx", "config", b'displayName = "web"\n')
        files.finish()
    with DiskWriter(session, 2000, len(IMAGE)) as writer:
        writer.write(IMAGE, 0)
        writer.finish()
    verify_session(session)
    disk = DiskDescription(key=2000, label="Hard disk 1", capacity_bytes=len(IMAGE))
    ref = commit(session, BackupContents(disks=[disk]))
    repository.close()
    return f"{ref.vc_guid}/{ref.backup_id}"


def _commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        return [path]
    return [found for name, child in children.items() for found in _commands(child, (*path, name))]


ALL = _commands(typer.main.get_command(app))


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_commands_help_teaches_with_an_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--help"]) == 0
    assert "Example: safehaul" in " ".join(capsys.readouterr().out.split()).replace("│ ", "")


def test_wrong_usage_ends_with_2() -> None:
    assert run(["no-such-command"]) == 2
    assert run(["job", "start"]) == 2


def test_a_broken_configuration_is_told_whole_and_ends_with_2(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(
        config.read_text().replace('vcenter = "vc"', 'vcenter = "vx"').replace("file://", "ftp://")
    )
    assert run(["--config", str(config), "config", "check"]) == 2
    told = capsys.readouterr().err
    assert "vm_groups" in told
    assert "repository" in told
    assert run(["--config", str(config), "config", "check", "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_good_configuration_is_said_to_be_good(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", str(config), "config", "check"]) == 0
    assert "no problem found" in capsys.readouterr().out


def test_an_unknown_group_lists_those_that_exist_and_ends_with_2(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(config), "job", "start", "weekly"]) == 2
    assert "nightly" in capsys.readouterr().err


WHOLE: dict[str, Any] = {"vcenter": "vc", "media_agent": "vault", "rules": [{"name": "web-*"}]}


def _start_whole(config: Path, given: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = run(["--config", str(config), "job", "start", "--group-json", given])
    return code, capsys.readouterr().err


def test_a_whole_group_is_started_from_the_command_line_and_from_a_file(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: a good group gets as far as the Temporal server, which is not there: 5, and no complaint about it."""
    path = config.parent / "group.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(WHOLE, indent=2).encode())
    for given in (json.dumps(WHOLE), f" {json.dumps({**WHOLE, 'name': 'adhoc'})}", f"@{path}"):
        code, told = _start_whole(config, given, capsys)
        assert (code, "127.0.0.1:1" in told) == (5, True), told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('{"rules": ', "the inline VM group is not JSON: Expecting value: line 1"),
        ("[]", "vm_group: must be the name of a VM group"),
        ("{}", "vm_group: must be the name of a VM group"),
        ('"nightly"', "give a group's name without --group-json: 'nightly'"),
        (json.dumps({**WHOLE, "streems": 3}), "vm_group.streems: unknown key, did you mean 'streams'?"),
        (
            json.dumps({**WHOLE, "vcenter": "vx"}),
            "vm_group.vcenter: there is no vCenter 'vx' in [[vcenters]]",
        ),
        (json.dumps({**WHOLE, "name": "nightly"}), "vm_group.name: is the name of a configured VM group"),
        (
            '{"vcenter": ' + "[" * 100 + "]" * 100 + "}",
            "vm_group: is nested more than 32 deep: no VM group is",
        ),
        ('{"vcenter": ' + "[" * 50_000 + "]" * 50_000 + "}", "vm_group: is nested"),
        (json.dumps({**WHOLE, "rules": [{"name": "x" * 300_000}]}), "vm_group: is larger than 256 KiB"),
        ("@/nonexistent/group.json", "/nonexistent/group.json cannot be read: No such file or directory"),
        ("@/dev/zero", "/dev/zero is larger than 1048576 bytes"),
        ("@/proc/self/exe", "/proc/self/exe is "),
        ("@", ". cannot be read: Is a directory"),
    ],
)
def test_a_whole_group_that_is_wrong_is_told_before_anybody_is_asked_and_ends_with_2(
    config: Path, capsys: pytest.CaptureFixture[str], given: str, told: str
) -> None:
    code, error = _start_whole(config, given, capsys)
    assert code == 2, error
    assert told in " ".join(error.split())
    assert "Traceback" not in error


def test_a_job_is_started_for_a_name_or_a_whole_group_and_not_for_both(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--config", str(config), "job", "start", "nightly", "--group-json", json.dumps(WHOLE)]
    assert run(both) == 2
    assert "either the name of a VM group, or --group-json" in capsys.readouterr().err


def test_a_temporal_server_that_is_not_there_ends_with_5(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(config), "job", "start", "nightly"]) == 5
    error = capsys.readouterr().err
    assert "127.0.0.1:1" in error
    assert "Traceback" not in error


def test_a_repository_is_made_described_and_verified(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(config), "repo", "init"]) == 1, "a second init must not touch it"
    capsys.readouterr()
    assert run(["--config", str(config), "repo", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backup_count"] == 1
    assert run(["--config", str(config), "repo", "verify", "--full", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damage"] == []
    assert run(["--config", str(config), "backups", "show", backup, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["vm_name"] == "web"


def test_damage_is_named_and_ends_with_1(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (config.parent / "repository" / "packs").rglob("*"):
        if path.is_file():
            _flip(path, 100)
    assert run(["--config", str(config), "repo", "verify", "--full"]) == 1
    assert "web" in capsys.readouterr().out
    target = config.parent / "out.raw"
    assert run(["--config", str(config), "restore", "disk", backup, "2000", "--to", str(target)]) == 1
    told = capsys.readouterr().err
    assert "Hard disk 1" in told
    assert "offset" in told
    assert not target.exists()


def test_noted_damage_is_healed_by_the_next_backup(config: Path, backup: str) -> None:
    repository = config.parent / "repository"
    for path in (repository / "packs").rglob("*"):
        if path.is_file():
            _flip(path, 100)
    assert run(["--config", str(config), "repo", "verify", "--full"]) == 1
    assert not list((repository / "gc").glob("*")), "a look changes nothing"
    assert run(["--config", str(config), "repo", "verify", "--full", "--note-damage"]) == 1
    assert list((repository / "gc").glob("*"))
    _back_up(config, "s2")
    assert run(["--config", str(config), "backups", "verify", backup]) == 0


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_disk_is_restored_to_a_sparse_file_that_is_never_overwritten(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = config.parent / "out.raw"
    arguments = ["--config", str(config), "restore", "disk", backup, "Hard disk 1", "--to", str(target)]
    assert run(arguments) == 0
    assert target.read_bytes() == IMAGE
    assert target.stat().st_blocks * 512 < len(IMAGE)
    assert run(arguments) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert run([*arguments[:4], backup, "9", "--to", "x"]) == 2
    assert "2000 (Hard disk 1)" in capsys.readouterr().err


def test_a_range_of_a_disk_is_written_to_standard_output(
    config: Path, backup: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = ["--config", str(config), "disk", "cat", backup]
    assert run([*arguments, "2000", "--offset", "1023 KiB", "--length", "3 KiB"]) == 0
    assert capfdbinary.readouterr().out == IMAGE[1023 << 10 : 1026 << 10]
    assert run([*arguments, "Hard disk 1"]) == 0
    assert capfdbinary.readouterr().out == IMAGE
    assert run([*arguments, "2000", "--offset", str(len(IMAGE) + 1)]) == 2
    assert run([*arguments, "2000", "--length", "3 KB"]) == 2
    assert b"KiB" in capfdbinary.readouterr().err


def test_the_catalogue_is_rebuilt_from_the_repository(
    config: Path, backup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--config", str(config), "catalog", "rebuild", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "backups": {"vault": 1},
        "removed": {"vault": 0},
        "jobs": {"vault": 0},
        "unread": [],
    }
    assert run(["--config", str(config), "backups", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert f"{rows[0]['vc_guid']}/{rows[0]['backup_id']}" == backup


def test_a_backup_that_is_not_named_as_one_ends_with_2(config: Path) -> None:
    assert run(["--config", str(config), "backups", "show", "nonsense"]) == 2


def test_foreign_text_is_shown_and_not_obeyed() -> None:
    assert plain("a\x1b[31mb\x00") == "a\\x1b[31mb\\x00"
    assert safe("[red]x") == r"\[red]x"


def test_sizes_read_well() -> None:
    assert [size(0), size(1023), size(1536), size(3 << 40)] == ["0 B", "1,023 B", "1.5 KiB", "3.0 TiB"]
